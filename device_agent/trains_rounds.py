"""What the agent's loop needs of a trainer; it names no torch, so that an agent without a job loads none."""

from __future__ import annotations

from typing import Protocol

from toolkit.wire.messages import Lowered
from toolkit.wire.payloads import Batch
from toolkit.wire.weights import FlatWeights


class TrainsRounds(Protocol):
    """What the loop needs of a trainer."""

    round: int
    seq: int
    n_train: int
    n_steps: int

    @property
    def n_batches(self) -> int:
        """Batches in it, training and held-out; what comes behind them are weights."""
        ...

    @property
    def lowered_round(self) -> int:
        """The last round whose results were taken."""
        ...

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was trained since the round began."""
        ...

    @property
    def max_lowered_bytes(self) -> int:
        """Nothing handed down for this job is longer."""
        ...

    def enter_round(self, round_: int, seq: int) -> None:
        """Go to a round."""
        ...

    def train_next(self) -> Batch:
        """Train on the next batch."""
        ...

    def train_extra(self) -> None:
        """Train on a batch that is never owed."""
        ...

    def make_again(self, seq: int) -> Batch:
        """Make a batch without training."""
        ...

    def weights(self) -> FlatWeights:
        """Lay out segment and exits as they stand."""
        ...

    def take_lowered(self, header: Lowered, body: memoryview) -> None:
        """Take what the coordinator made of a round."""
        ...

    def finish_round(self) -> float | None:
        """Evaluate and save, once a round."""
        ...

    def save(self) -> None:
        """Write what training goes on from."""
        ...
