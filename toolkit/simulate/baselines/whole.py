"""Baselines that train the whole network in one place: centralised, local only, FedAvg."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import msgspec
import torch
from torch import nn

from coordinator.model.aggregate import CrossLayerMean
from toolkit.nn.network import StagedNetwork
from toolkit.nn.steps import make_optimizer, server_step
from toolkit.nn.zoo import build_network
from toolkit.simulate.baselines.setup import LABEL_BYTES, Learner, RoundLosses, Setup, n_bytes


def new_network(setup: Setup) -> StagedNetwork:
    """The network as the run's seed makes it."""
    network = build_network(setup.job.model, seed=setup.job.seed).to(setup.compute)
    setup.numerics.lay_out(network)
    return network


class Centralised:
    """The server trains on everybody's samples, which were sent to it once."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._network = new_network(setup)
        self._optimizer = make_optimizer(self._network, setup.job.optimizer)
        learners = setup.learners.values()
        self._all = Learner(
            name="centralised",
            job=msgspec.structs.replace(setup.job, round_steps=setup.job.round_steps * len(setup.learners)),
            x=torch.cat([learner.x for learner in learners]),
            y=torch.cat([learner.y for learner in learners]),
            fingerprint="/".join(learner.fingerprint for learner in learners),
            times=next(iter(learners)).times,
        )
        sent_s = 0.0
        for learner in learners:
            up = learner.x.numel() * learner.x.element_size() + LABEL_BYTES * len(learner.y)
            setup.costs.add(learner.name, up=up)
            sent_s = max(sent_s, up / learner.times.line.up_bytes_per_s)
        setup.costs.wall_s += sent_s

    def train_round(self, round_: int) -> float:
        """One pass over all samples."""
        self._optimizer.lr = self._setup.lr(round_)
        losses = RoundLosses(round_)
        for step, (x, y, seed) in enumerate(self._all.batches(round_), start=1):
            losses.add(server_step(self._network, self._optimizer, x, y, seed=seed).loss, step=step)
        spent_s = self._all.n_batches * self._setup.times.server_whole_step_s
        self._setup.costs.server_s += spent_s
        self._setup.costs.wall_s += spent_s
        return losses.mean

    def route(self, name: str) -> tuple[str, nn.Module]:
        """The one network, for every device."""
        del name
        return "whole", self._network

    def device_state(self, name: str) -> Mapping[str, torch.Tensor]:
        """A device holds nothing."""
        del name
        return {}

    def server_state(self) -> Mapping[str, torch.Tensor]:
        """The network."""
        return self._network.state_dict()


class Local:
    """Each device trains a whole network on its own samples, alone."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._networks = {name: new_network(setup) for name in setup.learners}
        self._optimizers = {
            name: make_optimizer(network, setup.job.optimizer) for name, network in self._networks.items()
        }

    def train_round(self, round_: int) -> float:
        """One local round on every device."""
        losses, longest_s = RoundLosses(round_), 0.0
        for name, learner in self._setup.learners.items():
            optimizer = self._optimizers[name]
            optimizer.lr = self._setup.lr(round_)
            for step, (x, y, seed) in enumerate(learner.batches(round_), start=1):
                made = server_step(self._networks[name], optimizer, x, y, seed=seed)
                losses.add(made.loss, step=step, device=name)
            spent_s = learner.n_batches * learner.times.whole_step_s
            self._setup.costs.add(name, compute_s=spent_s)
            longest_s = max(longest_s, spent_s)
        self._setup.costs.wall_s += longest_s
        return losses.mean

    def route(self, name: str) -> tuple[str, nn.Module]:
        """A device's own network."""
        return "whole", self._networks[name]

    def device_state(self, name: str) -> Mapping[str, torch.Tensor]:
        """A device's own network."""
        return self._networks[name].state_dict()

    def server_state(self) -> Mapping[str, torch.Tensor]:
        """There is no server."""
        return {}


class FedAvg:
    """Each device trains the whole network from the common weights; then they are averaged by samples.

    Optimizers begin anew each round. Source: McMahan et al., arXiv 1602.05629.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._network = new_network(setup)

    def train_round(self, round_: int) -> float:
        """One local round on every device, then the mean."""
        setup, mean = self._setup, CrossLayerMean()
        losses, longest_s, size = RoundLosses(round_), 0.0, n_bytes(self._network.state_dict())
        for name in sorted(setup.learners):
            learner = setup.learners[name]
            on_device = copy.deepcopy(self._network)
            optimizer = make_optimizer(on_device, setup.job.optimizer)
            optimizer.lr = setup.lr(round_)
            for step, (x, y, seed) in enumerate(learner.batches(round_), start=1):
                made = server_step(on_device, optimizer, x, y, seed=seed)
                losses.add(made.loss, step=step, device=name)
            mean.add(on_device.state_dict(), len(learner.y))
            spent_s = learner.n_batches * learner.times.whole_step_s
            setup.costs.add(name, compute_s=spent_s, up=size, down=size)
            line = learner.times.line
            sent_s = size / line.up_bytes_per_s + size / line.down_bytes_per_s + 2 * line.delay_s
            longest_s = max(longest_s, spent_s + sent_s)
        self._network.load_state_dict(mean.result())
        setup.costs.wall_s += longest_s
        return losses.mean

    def route(self, name: str) -> tuple[str, nn.Module]:
        """The common network, for every device."""
        del name
        return "whole", self._network

    def device_state(self, name: str) -> Mapping[str, torch.Tensor]:
        """Every device holds the common network."""
        del name
        return self._network.state_dict()

    def server_state(self) -> Mapping[str, torch.Tensor]:
        """The common network."""
        return self._network.state_dict()
