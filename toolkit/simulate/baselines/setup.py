"""What every baseline starts from, and what it counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from toolkit.errors import TrainingError
from toolkit.nn.compute import Numerics
from toolkit.nn.recipe import steps_in_round, train_recipe
from toolkit.nn.steps import lr_at
from toolkit.simulate.times import DeviceTimes, FleetTimes
from toolkit.wire.job import Job

LABEL_BYTES = 8
Samples = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Learner:
    """One device: its job, and its training samples x (N, ...) normalised and y (N,) in the run's class order.

    ``activation_shape`` is that of one sample at its cut.
    """

    name: str
    job: Job
    x: torch.Tensor
    y: torch.Tensor
    fingerprint: str
    times: DeviceTimes
    activation_shape: Sequence[int] = ()

    @property
    def n_batches(self) -> int:
        """Batches in a round: as many as in a split run."""
        return steps_in_round(len(self.y), self.job.batch_size, self.job.round_steps)

    def batches(self, round_: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        """A round's batches, made of the same samples as in a split run, each with its seed."""
        for seq in range(1, self.n_batches + 1):
            recipe = train_recipe(
                seed=self.job.seed,
                device=self.name,
                fingerprint=self.fingerprint,
                n_train=len(self.y),
                batch_size=self.job.batch_size,
                round_steps=self.job.round_steps,
                round_=round_,
                seq=seq,
            )
            chosen = torch.from_numpy(recipe.indices).to(self.x.device)
            yield self.x[chosen], self.y[chosen], recipe.seed


@dataclass(slots=True)
class Costs:
    """Virtual seconds and bytes so far; by device where it says so."""

    wall_s: float = 0.0
    server_s: float = 0.0
    device_s: dict[str, float] = field(default_factory=dict)
    up_bytes: dict[str, int] = field(default_factory=dict)
    down_bytes: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, *, compute_s: float = 0.0, up: int = 0, down: int = 0) -> None:
        """Charge a device."""
        self.device_s[name] = self.device_s.get(name, 0.0) + compute_s
        self.up_bytes[name] = self.up_bytes.get(name, 0) + up
        self.down_bytes[name] = self.down_bytes.get(name, 0) + down


@dataclass(frozen=True, slots=True)
class Setup:
    """The fleet of a baseline, and where and in what form it is computed."""

    learners: Mapping[str, Learner]
    times: FleetTimes
    costs: Costs
    compute: torch.device
    numerics: Numerics

    @property
    def job(self) -> Job:
        """Any device's, for what all share."""
        return next(iter(self.learners.values())).job

    def lr(self, round_: int) -> float:
        """Learning rate of a round."""
        return lr_at(self.job.optimizer, round_=round_, rounds=self.job.rounds)


class Baseline(Protocol):
    """One way to train."""

    def train_round(self, round_: int) -> float:
        """Train one round; returns its mean loss, nats."""
        ...

    def route(self, name: str) -> tuple[str, nn.Module]:
        """What answers for a device: the route's name and its network, the same object where devices share it."""
        ...

    def device_state(self, name: str) -> Mapping[str, torch.Tensor]:
        """The weights that a device holds."""
        ...

    def server_state(self) -> Mapping[str, torch.Tensor]:
        """The weights that the server holds."""
        ...


class RoundLosses:
    """The losses of one round's steps, nats."""

    def __init__(self, round_: int) -> None:
        self._round = round_
        self._losses: list[float] = []

    def add(self, loss: float, *, step: int, device: str = "") -> None:
        """Take the loss of a step, counted from 1 on its device; without one where samples of all are mixed.

        Raises: TrainingError: it is not finite.
        """
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss{f' of device {device!r}' if device else ''} is {loss} in round {self._round}, step {step}.",
                hint="Lower the learning rate (--set run.lr=0.01), or look for damaged samples "
                f"in {'this device' if device else 'a device'}'s data.",
                device=device,
                round=self._round,
                step=step,
            )
        self._losses.append(loss)

    @property
    def mean(self) -> float:
        """Over all steps taken."""
        return sum(self._losses) / len(self._losses)


def n_bytes(state: Mapping[str, torch.Tensor]) -> int:
    """Bytes of weights as they would travel."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
