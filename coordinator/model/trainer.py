"""What the loop of rounds needs of the server's model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from coordinator.strategy.base import PooledBatch, SubBatch
from toolkit.wire.payloads import Batch

if TYPE_CHECKING:
    import torch


class Trainer(Protocol):
    """Trains on what the loop hands it."""

    @property
    def resident(self) -> Collection[str]:
        """Devices whose copy is in memory."""
        ...

    @property
    def n_free_copies(self) -> int:
        """Copies that can be opened before another has to leave the memory."""
        ...

    def apply(self, device: str, batch: Batch, *, round_: int, seq: int) -> float:
        """Train on one batch; returns its loss, nats."""
        ...

    def pool(self, device: str, batch: Batch, *, seq: int) -> None:
        """Keep one batch for the round's mixed steps."""

    def begin_mixing(self, batches: Sequence[PooledBatch]) -> None:
        """Say how sub-batches count the pool's batches."""

    def apply_mixed(self, parts: Sequence[SubBatch], *, round_: int, step: int) -> list[float]:
        """Train on samples of several devices; returns each sub-batch's loss, nats."""
        ...

    def aggregate(self, weights: Mapping[str, int]) -> None:
        """Make one network of the copies, and drop them all."""

    def gather(self, device: str, segment: Mapping[str, torch.Tensor]) -> None:
        """Keep a device's segment until the round closes."""

    def make_segments_one(self, devices: Collection[str], *, round_: int) -> None:
        """Average the segments that the round gathered."""

    def end_round(self, round_: int) -> None:
        """Forget what was gathered for the round."""

    def hold_out(self, device: str, batch: Batch, *, seq: int) -> None:
        """Keep one held-out batch until the round closes; not in memory, whatever it is worth."""

    def held_out(self, device: str) -> Iterator[Batch]:
        """Read a device's held-out batches of the round, one at a time, in the order of its list."""
        ...

    def n_correct(self, device: str, batch: Batch) -> Mapping[str, int]:
        """Count held-out samples classified right: under "server" by the classifier, under its stage by each exit."""
        ...
