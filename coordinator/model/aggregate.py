"""The cross-layer mean: layer l becomes the weighted mean over the copies that hold it.

Source: Hetero-SplitEE, arXiv 2512.09313. Sums run in float64 with integer weights, in the order that copies are added,
with one cast at the end; a layer with one holder is copied, no arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

BnRule = Literal["mean", "pooled"]
_MEAN, _VAR = "running_mean", "running_var"


class CrossLayerMean:
    """Running sums over copies, added one at a time in ascending device id.

    Tensors are told apart by name; a copy that lacks a layer simply lacks its names. Floating tensors are averaged,
    others (counters of batch norm) take the maximum.

    Args:
        bn: "mean" averages running variances as they are; "pooled" makes those of the pooled samples,
            ``sum w (v + m^2) / sum w - mean^2``, since a mean of variances forgets the variance of means.
    """

    def __init__(self, *, bn: BnRule = "mean") -> None:
        self._pools = bn == "pooled"
        self._only: dict[str, tuple[torch.Tensor, int, torch.Tensor | None]] = {}
        self._sums: dict[str, torch.Tensor] = {}
        self._weights: dict[str, int] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    def add(self, tensors: Mapping[str, torch.Tensor], weight: int, *, without: tuple[str, ...] = ()) -> None:
        """Add one copy, tensor by tensor.

        Args:
            tensors: of the copy; they may change afterwards.
            weight: from 1.
            without: what the names of tensors begin with that are left out.
        """
        for name in tensors:
            if name.startswith(without):
                continue
            tensor = tensors[name]
            mean = tensors.get(name.removesuffix(_VAR) + _MEAN) if self._is_pooled(name) else None
            if name in self._sums:
                self._add(name, tensor, weight, mean)
            elif name in self._only:
                self._dtypes[name] = tensor.dtype
                for term in (self._only.pop(name), (tensor, weight, mean)):
                    self._add(name, *term)
            else:
                self._only[name] = (tensor.clone(), weight, None if mean is None else mean.clone())

    def result(self) -> dict[str, torch.Tensor]:
        """The means of every layer that any added copy held; other layers stay as they were."""
        made = {name: tensor for name, (tensor, _, _) in self._only.items()}
        for name, total in self._sums.items():
            made[name] = self._finished(name, total)
        return made

    def _is_pooled(self, name: str) -> bool:
        return self._pools and name.endswith(_VAR)

    def _add(self, name: str, tensor: torch.Tensor, weight: int, mean: torch.Tensor | None) -> None:
        held = self._sums.get(name)
        if not tensor.is_floating_point():
            self._sums[name] = tensor.clone() if held is None else torch.maximum(held, tensor.to(held.device))
            return
        term = tensor.to(torch.float64)
        if mean is not None:
            term = term + mean.to(torch.float64).square()
        # A copy that was on disk comes from the memory, one that was not perhaps from a GPU.
        # Exact, fused or not: a float32 times an integer below 2**29 fits into float64.
        self._sums[name] = term * weight if held is None else held.add_(term.to(held.device), alpha=weight)
        self._weights[name] = self._weights.get(name, 0) + weight

    def _finished(self, name: str, total: torch.Tensor) -> torch.Tensor:
        if name not in self._weights:
            return total
        value = total / self._weights[name]
        if self._is_pooled(name):
            of_mean = name.removesuffix(_VAR) + _MEAN
            value = (value - (self._sums[of_mean] / self._weights[of_mean]).square()).clamp_min(0)
        return value.to(self._dtypes[name])
