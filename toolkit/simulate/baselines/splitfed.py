"""SplitFed: the server returns gradients, and prefixes are averaged at every round's end.

Source: Thapa et al., arXiv 2004.12088 (SFLV1 with a server copy a device, SFLV2 with a shared one); here with a cut of
its own for each device, so a layer is averaged over the devices that hold it. Batches of the devices take turns (ours).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from coordinator.model.aggregate import CrossLayerMean
from toolkit.nn.cut import depth_of, take_segment, take_suffix
from toolkit.nn.seeds import seeded
from toolkit.nn.sgd import Sgd
from toolkit.nn.steps import make_optimizer
from toolkit.nn.weights import UNSAVED, load_training_state, training_state
from toolkit.simulate.baselines.setup import LABEL_BYTES, Learner, RoundLosses, Setup, n_bytes
from toolkit.simulate.baselines.whole import new_network

FLOAT_BYTES = 4


class SplitFed:
    """Train whole networks cut in two: activations go up, gradients come down, both as float32.

    Args:
        setup: the fleet.
        shared: one server network for all devices; otherwise a copy each, averaged at every round's end.
    """

    def __init__(self, setup: Setup, *, shared: bool) -> None:
        self._setup = setup
        self._segments: dict[str, nn.Module] = {}
        self._suffixes: dict[str, nn.Module] = {}
        server = new_network(setup)
        for name, learner in setup.learners.items():
            self._segments[name] = take_segment(new_network(setup), learner.job.cut)
            self._suffixes[name] = take_suffix(server if shared else new_network(setup), learner.job.cut)
        spec = setup.job.optimizer
        self._of_segment = {name: make_optimizer(segment, spec) for name, segment in self._segments.items()}
        self._deepest = min(setup.learners, key=lambda n: depth_of(server, setup.learners[n].job.cut))
        if shared:
            theta = make_optimizer(self._suffixes[self._deepest], spec)
            self._of_suffix = dict.fromkeys(setup.learners, theta)
        else:
            self._of_suffix = {name: make_optimizer(suffix, spec) for name, suffix in self._suffixes.items()}
        self._shared = shared

    def train_round(self, round_: int) -> float:
        """Every device's batches in turns, then the means."""
        for optimizer in (*self._of_segment.values(), *self._of_suffix.values()):
            optimizer.lr = self._setup.lr(round_)
        waiting = {name: learner.batches(round_) for name, learner in sorted(self._setup.learners.items())}
        losses, spent_s, step = RoundLosses(round_), dict.fromkeys(waiting, 0.0), 0
        server_before_s = self._setup.costs.server_s
        while waiting:
            step += 1
            for name in list(waiting):
                batch = next(waiting[name], None)
                if batch is None:
                    del waiting[name]
                    continue
                loss = split_step(
                    self._segments[name],
                    self._of_segment[name],
                    self._suffixes[name],
                    self._of_suffix[name],
                    batch,
                )
                losses.add(loss, step=step, device=name)
                spent_s[name] += self._charge(self._setup.learners[name], len(batch[1]))
        spent_s = {name: s + self._charge_prefix(self._setup.learners[name]) for name, s in spent_s.items()}
        # Devices overlap; the server is one.
        server_s = self._setup.costs.server_s - server_before_s
        self._setup.costs.wall_s += max(server_s, *spent_s.values())
        self._average(self._segments, self._of_segment)
        if not self._shared:
            self._average(self._suffixes, self._of_suffix)
        return losses.mean

    def route(self, name: str) -> tuple[str, nn.Module]:
        """A device's segment and the server's layers behind it; there are no exits."""
        return "server", nn.Sequential(self._segments[name], self._suffixes[name])

    def device_state(self, name: str) -> Mapping[str, torch.Tensor]:
        """A device's segment."""
        return self._segments[name].state_dict()

    def server_state(self) -> Mapping[str, torch.Tensor]:
        """The layers behind the shallowest cut; copies are equal at a round's end."""
        return self._suffixes[self._deepest].state_dict()

    def _average(self, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Sgd]) -> None:
        mean = CrossLayerMean()
        for name in sorted(modules):
            own = training_state(modules[name], optimizers[name])
            shared = {key: tensor for key, tensor in own.items() if not key.startswith(UNSAVED)}
            mean.add(shared, len(self._setup.learners[name].y))
        made = mean.result()
        for name, module in modules.items():
            own = training_state(module, optimizers[name])
            load_training_state(module, optimizers[name], {key: made.get(key, own[key]) for key in own})

    def _charge(self, learner: Learner, n_samples: int) -> float:
        """Charge one step; returns how long the device was at it, from its samples to its update."""
        job, line, costs = learner.job, learner.times.line, self._setup.costs
        down = prod(learner.activation_shape) * n_samples * FLOAT_BYTES
        up = down + LABEL_BYTES * n_samples
        compute_s, server_s = learner.times.step_s[job.cut], self._setup.times.server_step_s[job.cut]
        costs.add(learner.name, compute_s=compute_s, up=up, down=down)
        costs.server_s += server_s
        sent_s = up / line.up_bytes_per_s + down / line.down_bytes_per_s + 2 * line.delay_s
        return compute_s + server_s + sent_s

    def _charge_prefix(self, learner: Learner) -> float:
        size, line = n_bytes(self._segments[learner.name].state_dict()), learner.times.line
        self._setup.costs.add(learner.name, up=size, down=size)
        return size / line.up_bytes_per_s + size / line.down_bytes_per_s + 2 * line.delay_s


def split_step(
    segment: nn.Module,
    of_segment: Sgd,
    suffix: nn.Module,
    of_suffix: Sgd,
    batch: tuple[torch.Tensor, torch.Tensor, int],
) -> float:
    """Train both halves on one batch; the gradient at the cut is what comes down.

    Returns: mean cross-entropy before the update, nats.
    """
    x, y, seed = batch
    segment.train()
    suffix.train()
    of_segment.zero_grad()
    of_suffix.zero_grad()
    with seeded(seed):
        h = segment(x)
        arrived = h.detach().requires_grad_()
        loss = cross_entropy(suffix(arrived), y)
    loss.backward()  # type: ignore[no-untyped-call]
    of_suffix.step()
    h.backward(arrived.grad)
    of_segment.step()
    return loss.item()
