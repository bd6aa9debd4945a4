"""The desk of a coordinator's process: whoever wants to know about the run asks here, and training never waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from coordinator.events import RunEvent
from coordinator.history import HISTORY_FILE, History
from coordinator.recorder import Recorder
from coordinator.run_record import read_record
from toolkit.errors import MachineError


class Desk:
    """Keeps what is told of one run.

    Args:
        home: the fleet's home, where the history stands.
        warn: takes a sentence where something here does not work; the run goes on.
        wall_clock: Unix time, seconds.
    """

    def __init__(
        self, home: Path, *, warn: Callable[[str], None], wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._warn = warn
        self._wall_clock = wall_clock
        try:
            self._history = History(home / HISTORY_FILE)
        except MachineError as exc:
            self._keep_in_memory(exc)
        self._recorder: Recorder | None = None

    def begin(self, folder: Path) -> None:
        """Take up a run, whose record is written.

        Raises: CheckpointError: the folder is damaged.
        """
        record = read_record(folder)
        try:
            self._history.bring_up(folder)
        except MachineError as exc:
            self._keep_in_memory(exc)
            self._history.bring_up(folder)
        self._recorder = Recorder(self._history, record.run, wall_clock=self._wall_clock, warn=self._warn)
        self._recorder.note("term", f"term {record.term}")

    def take(self, event: RunEvent) -> None:
        """Take one event of the run."""
        if self._recorder is not None:
            self._recorder.take(event)

    def close(self) -> None:
        """Let everything go."""
        self._history.close()

    def _keep_in_memory(self, exc: MachineError) -> None:
        self._warn(f"{exc.message} It is kept in memory only.")
        self._history = History()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
