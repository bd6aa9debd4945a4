"""Gradient descent with momentum, as light as the boards it runs on.

torch's own optimizers load its compiler when one is made: a second, and 75 MB of the 512 that a small board has.
This one computes what ``torch.optim.SGD`` computes, bit for bit, which a test holds.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import Parameter


class Sgd:
    """``v = momentum * v + grad + weight_decay * w; w = w - lr * v``, the first ``v`` being the gradient itself.

    A parameter without a gradient is left alone, and so is its momentum.

    Attributes:
        lr: learning rate of the next step.
        momentum_buffers: parameter to ``v``; a parameter that never had a gradient has none.
    """

    def __init__(
        self, parameters: Iterable[Parameter], *, lr: float, momentum: float, weight_decay: float
    ) -> None:
        self.lr = lr
        self.momentum_buffers: dict[Parameter, torch.Tensor] = {}
        self._parameters = list(parameters)
        self._momentum = momentum
        self._weight_decay = weight_decay

    def zero_grad(self) -> None:
        """Drop all gradients, so that what a step does not run has none."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        for parameter in self._parameters:
            if parameter.grad is None:
                continue
            change = parameter.grad
            if self._weight_decay:
                change = change.add(parameter, alpha=self._weight_decay)
            if self._momentum:
                held = self.momentum_buffers.get(parameter)
                if held is None:
                    held = self.momentum_buffers[parameter] = change.clone()
                else:
                    held.mul_(self._momentum).add_(change)
                change = held
            parameter.add_(change, alpha=-self.lr)
