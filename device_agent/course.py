"""How a device moves along its lists: each batch trained on once, made again as often as asked, saved as it goes.

What a step computes is a subclass's; where training stands, and when it is saved, is decided here, without torch.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from device_agent.state import DeviceFolder
from toolkit.failpoints import failpoint
from toolkit.wire.payloads import Batch

CHECKPOINT_EVERY_S = 60.0
"""Training is saved so often within a round; at a round's end it always is."""


class Cursor(NamedTuple):
    """How far training has come.

    Attributes:
        round: the latest that was trained in.
        seq: of it, the last batch trained on.
        n_steps: steps made on batches of rounds, in all.
        n_extra: steps made while no coordinator was heard.
    """

    round: int = 0
    seq: int = 0
    n_steps: int = 0
    n_extra: int = 0


class Course(ABC):
    """One device's way through a run.

    Training moves along a round's list once; any batch of it can be made again without changing anything.

    Args:
        folder: training goes on from what it holds.
        clock: monotonic seconds.
        checkpoint_every_s: longest training that a power cut may cost.
    """

    n_train: int

    def __init__(
        self,
        folder: DeviceFolder,
        *,
        clock: Callable[[], float] = time.monotonic,
        checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._checkpoint_every_s = checkpoint_every_s
        self._saved_at = clock()
        self._furthest = (0, 0)
        self._finished_round = 0
        self.round = 0
        self.seq = 0
        self.n_steps = 0
        self.n_extra = 0

    @abstractmethod
    def _step(self, seq: int) -> Batch:
        """Train on a batch of the round."""

    @abstractmethod
    def _extra_step(self, index: int) -> None:
        """Train on a batch that belongs to no round; ``index`` counts them from 1."""

    @abstractmethod
    def _evaluate(self) -> float | None:
        """Evaluate at a round's end, and keep the segment if it is the best so far; None where nothing is evaluated."""

    @abstractmethod
    def _content(self, cursor: Cursor) -> bytes:
        """Lay out all that training goes on from."""

    @abstractmethod
    def _load(self, content: bytes, where: Path) -> Cursor:
        """Put back what :meth:`_content` gave.

        Raises: CheckpointError: damaged, or of another network; nothing was changed.
        """

    def take_up(self) -> None:
        """Go on from what the folder holds; called once, when all else is made.

        Raises: CheckpointError: what it holds is damaged, and what it held before too.
        """
        cursor = self._folder.load_training(self._load)
        if cursor is not None:
            self.round, self.seq, self.n_steps, self.n_extra = cursor
            self._finished_round = self.round if self.seq >= self.n_train else self.round - 1

    def enter_round(self, round_: int, seq: int) -> None:
        """Go to a round; what an earlier one still owed is not trained on any more.

        A batch is trained on once: in a round that is over, batches are made again and nothing is trained. And none
        is left out because somebody says that it came already, except by a device that has lost what it learned.

        Args:
            round_: the open one.
            seq: of it, the last that a device without any training starts after: 0 at the beginning.
        """
        if round_ == self.round:
            return
        if self.round:
            self.finish_round()
        self._furthest = reached, reached_seq = self._reached()
        self.round = round_
        if round_ < reached:
            self.seq = self.n_train
        elif round_ == reached:
            self.seq = reached_seq
        else:
            self.seq = 0 if reached else min(seq, self.n_train)

    def train_next(self) -> Batch:
        """Train on the next batch of the round.

        Raises: TrainingError: the loss is not finite. MachineError: the disk refuses what it came to.
        """
        batch = self._step(self.seq + 1)
        self.seq += 1
        self.n_steps += 1
        failpoint("device.stepped")
        self._save_if_due()
        return batch

    def train_extra(self) -> None:
        """Train while no coordinator is heard: such steps have keys of their own and are never owed.

        Raises: as :meth:`train_next`.
        """
        self._extra_step(self.n_extra + 1)
        self.n_extra += 1
        self._save_if_due()

    def finish_round(self) -> float | None:
        """Evaluate and save, once a round.

        Returns: accuracy of the exit at the cut, or None where this round was finished already or is not evaluated.
        """
        if self._finished_round >= self.round:
            return None
        self._finished_round = self.round
        accuracy = self._evaluate()
        self.save()
        return accuracy

    def save(self) -> None:
        """Write what training goes on from.

        Raises: MachineError: the disk refuses it; what was saved before is whole.
        """
        self._folder.save_training(self._content(Cursor(*self._reached(), self.n_steps, self.n_extra)))
        self._saved_at = self._clock()

    def _save_if_due(self) -> None:
        if self._clock() - self._saved_at >= self._checkpoint_every_s:
            self.save()

    def _reached(self) -> tuple[int, int]:
        """How far training has come, as (round, seq)."""
        return max(self._furthest, (self.round, self.seq))
