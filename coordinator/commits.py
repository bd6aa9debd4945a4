"""The commits of a run: what each keeps, and what of it is told as durable."""

from __future__ import annotations

from collections import deque

import msgspec

from coordinator.rounds.underway import Underway
from coordinator.store.checkpoints import KEPT_GENERATIONS, Checkpoints, CommittedState
from coordinator.store.ledger import Ledger
from toolkit.failpoints import failpoint


class Commits:
    """What was committed, newest last.

    Args:
        checkpoints: of the run.
        ledger: of the run.
        now: monotonic seconds; the time since the last commit counts from here.

    Attributes:
        at: when the last commit was made.
    """

    def __init__(self, checkpoints: Checkpoints, ledger: Ledger, *, now: float) -> None:
        self._checkpoints = checkpoints
        self._ledger = ledger
        self._kept: deque[CommittedState] = deque(maxlen=KEPT_GENERATIONS)
        self.at = now

    def take_up(self) -> CommittedState:
        """Read what the processes before left; returns the newest of it.

        Raises: CheckpointError: damaged.
        """
        self._kept.extend(generation.state() for generation in self._checkpoints.kept())
        return self._kept[-1]

    def commit(self, underway: Underway, now: float) -> None:
        """Commit what is trained: ledger rows first, then the checkpoint's rename.

        Nothing is committed within a round whose training begins only when it is whole.

        Raises: MachineError: the disk refuses it; what was committed before is whole.
        """
        loop = underway.loop
        opened = loop.as_committed(now) if loop.is_open else None
        if loop.is_open and opened is None:
            return
        self._ledger.sync()
        failpoint("coordinator.ledger_synced")
        n_owed = {device: held.n_owed for device, held in loop.devices.items()}
        underway.state = msgspec.structs.replace(
            underway.state,
            round=loop.round - 1 if opened else loop.round,
            n_owed=underway.state.n_owed if opened else n_owed,
            open=opened,
            n_applied=dict(loop.n_applied),
            ledger_length=self._ledger.length,
            ledger_head=self._ledger.head.hex(),
        )
        self._checkpoints.commit(underway.state, underway.model.files())
        self._kept.append(underway.state)
        self.at = now
        failpoint("coordinator.committed")

    def watermark(self, device: str) -> tuple[int, int]:
        """Rule 6: the watermark is that of the oldest kept generation."""
        return self._kept[0].watermark(device)
