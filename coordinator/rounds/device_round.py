"""One device within the open round: what came, how far its list is taken up, and sums for the report."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from coordinator.store.checkpoints import OpenDevice
from coordinator.store.ledger import Gathered
from toolkit.wire.payloads import Batch

if TYPE_CHECKING:
    import torch

ItemKind = Literal["train", "eval", "weights"]
RETURNS = ("left", "offline")
"""Excuses that end when the device is back."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A whole, valid batch and the digest of the payload that brought it."""

    batch: Batch
    digest: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class WeightsDelivery:
    """A device's segment as it stands behind its list, by name, and the digest of the payload that brought it."""

    segment: Mapping[str, torch.Tensor]
    segment_step: int
    digest: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Unfit:
    """A batch that came whole and that nothing can be trained on; the digest of its payload, and why."""

    digest: str
    reason: str
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Aside:
    """A held-out batch that was taken up: what its entry needs; the batch itself is with the trainer."""

    digest: str
    segment_step: int


@dataclass(slots=True)
class DeviceRound:
    """One device within the open round: its list, the cursor on it, and sums for the report.

    Attributes:
        limit: first seq that it has no credit for.
        ready_to: first training seq that is not here in order.
        held_out: held-out batches taken up; they enter the ledger at the close.
        weights: here, while something before it in the list is not.
        given: the entry of the weights taken up; likewise.
        n_refused: training batches passed over as unfit.
        postponed: it missed its turn and stands at the end of the order.
    """

    n_train: int
    n_eval: int
    n_weights: int = 0
    next: int = 1
    limit: int = 1
    ready_to: int = 1
    waiting: dict[int, Delivery | Unfit] = field(default_factory=dict)
    held_out: list[Aside | Unfit] = field(default_factory=list)
    weights: WeightsDelivery | None = None
    given: Gathered | None = None
    excused: str = ""
    postponed: bool = False
    n_refused: int = 0
    n_samples: int = 0
    n_bytes: int = 0
    weights_bytes: int = 0
    lowered_bytes: int = 0
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    exit_loss_sum: float = 0.0

    @property
    def n_owed(self) -> int:
        """Length of the list."""
        return self.n_train + self.n_eval + self.n_weights

    @property
    def complete(self) -> bool:
        """Whether nothing more is waited for."""
        return self.next > self.n_owed or bool(self.excused)

    @property
    def share_taken(self) -> float:
        """How much of the list was taken up, 0 to 1."""
        return (self.next - 1) / self.n_owed

    @property
    def n_taken(self) -> int:
        """Training batches taken up, applied or refused."""
        return min(self.next - 1, self.n_train)

    @property
    def n_applied(self) -> int:
        """Training batches applied."""
        return self.n_taken - self.n_refused

    def kind_of(self, seq: int) -> ItemKind:
        """What stands at a place of the list."""
        if seq > self.n_train + self.n_eval:
            return "weights"
        return "train" if seq <= self.n_train else "eval"

    @property
    def wanted(self) -> int:
        """First seq of its list that is not here: neither taken up, nor waiting for its turn behind those that are."""
        seq = next(seq for seq in itertools.count(self.next) if seq not in self.waiting)
        return seq + (self.weights is not None and seq == self.n_owed)

    def n_ready(self) -> int:
        """Training batches that are here in order."""
        return max(0, self.ready_to - self.next)

    def put(self, seq: int, delivery: Delivery | Unfit) -> None:
        """Take a delivery in."""
        self.waiting[seq] = delivery
        self.n_bytes += delivery.n_bytes
        while self.ready_to <= self.n_train and self.ready_to in self.waiting:
            self.ready_to += 1

    def excuse(self, reason: str) -> None:
        """Wait for it no longer: it has no more credit, and what is here behind a gap is of no use."""
        self.excused = reason
        wanted = self.limit = self.wanted
        self.waiting = {seq: delivery for seq, delivery in self.waiting.items() if seq < wanted}
        if wanted <= self.n_owed:
            self.weights = None

    def expect(self) -> None:
        """Wait for it again; what waits here already counts as credit used."""
        self.excused = ""
        self.limit = self.wanted

    def as_committed(self) -> OpenDevice:
        """What a commit within the round keeps: held-out batches are asked for again."""
        return OpenDevice(
            owed=(self.n_train, self.n_eval, self.n_weights),
            excused="" if self.excused in RETURNS else self.excused,
            next=min(self.next, self.n_train + 1),
            n_samples=self.n_samples,
            n_bytes=self.n_bytes,
            n_refused=self.n_refused,
            loss_sum=self.loss_sum,
            loss_weight=self.loss_weight,
            exit_loss_sum=self.exit_loss_sum,
        )
