"""The desk of a coordinator's process: whoever wants to know about the run asks here, and training never waits for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from coordinator.beside.service import Publish, Service
from coordinator.fleet.events import RoundClosed, RunEvent, Waiting
from coordinator.store.run_record import Status, read_record
from coordinator.watching.event_lines import lines_of
from coordinator.watching.fleet_view import FleetView
from coordinator.watching.history import HISTORY_FILE, History, Seen
from coordinator.watching.local_socket import LocalSocket
from coordinator.watching.log_ring import KEPT_LINES, LogRing
from coordinator.watching.recorder import Recorder
from coordinator.watching.status import RunStatus
from toolkit.errors import MachineError
from toolkit.journal import Level
from toolkit.wire.seats import Seat
from toolkit.wire.topics import Topics

REMEMBER_EVERY_S = 30.0
"""How often it is written down when each device was last seen."""


class Running(Protocol):
    """What is read of the coordinator."""

    run: str
    term: int
    status: Status
    detail: str
    n_refused_messages: int

    @property
    def is_connected(self) -> bool:
        """Whether its link is up."""
        ...

    def dismiss(self, device: str) -> bool:
        """Wait no longer for a device; whether it was heard of."""
        ...

    @property
    def sessions(self) -> Mapping[str, Seat]:
        """What is known of each device's session."""
        ...


class Desk(Service):
    """Keeps what is told of one run, and answers on its local socket.

    Args:
        folder: of the run, locked by this process; its parent is the fleet's home, where the history stands.
        topics: of the fleet.
        broker: its address, for people.
        warn: takes a sentence where something here does not work; the run goes on.
        clock: monotonic seconds.
        wall_clock: Unix time, seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        topics: Topics,
        broker: str,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._fleet = topics.fleet
        self._broker = broker
        self._warn = warn
        self._clock = clock
        self._wall_clock = wall_clock
        self.log = LogRing(wall_clock)
        self._view = FleetView(topics, self.log, clock=clock)
        self._coordinator: Running | None = None
        self._recorder: Recorder | None = None
        self._socket: LocalSocket | None = None
        self._waiting: Waiting | None = None
        self._waiting_at = 0.0
        self._lines: deque[tuple[str, Level]] = deque(maxlen=KEPT_LINES)
        self._remember_at = float("-inf")
        try:
            self._history = History(folder.parent / HISTORY_FILE)
        except MachineError as exc:
            self._keep_in_memory(exc)

    @property
    def services(self) -> Sequence[Service]:
        """What rides beside training."""
        return (self._view, self)

    def open(self, coordinator: Running) -> None:
        """Take up the run of a coordinator, whose record is written.

        Raises: CheckpointError: the folder is damaged.
        """
        self._coordinator = coordinator
        try:
            self._history.bring_up(self._folder)
        except MachineError as exc:
            self._keep_in_memory(exc)
            self._history.bring_up(self._folder)
        run = coordinator.run
        self._recorder = Recorder(self._history, run, wall_clock=self._wall_clock, warn=self._warn)
        self._recorder.note("term", f"term {coordinator.term}")
        try:
            self._socket = LocalSocket(
                self._folder, status=self.status, dismiss=coordinator.dismiss, log=self.log, clock=self._clock
            )
        except OSError as exc:
            self._warn(
                f"Commands can't ask this coordinator: no socket can be made in {self._folder}: {exc}."
            )

    def hear(self, event: RunEvent) -> None:
        """Take one event of the run."""
        for line in lines_of(event):
            self.log.add(line)
        if isinstance(event, Waiting):
            self._waiting, self._waiting_at = event, self._clock()
        if isinstance(event, RoundClosed):
            self._view.round_closed(event.report)
        if self._recorder is not None:
            self._recorder.take(event)

    def line(self, text: str, level: Level = "info") -> None:
        """Take a line that is no event, from any thread; it is shown in the desk's next turn."""
        self._lines.append((text, level))

    def status(self) -> RunStatus:
        """Say how the run stands; it is open."""
        coordinator = self._coordinator
        assert coordinator is not None  # noqa: S101 - nobody asks before the socket is there
        told = RunStatus(
            run=coordinator.run,
            folder=str(self._folder),
            is_live=True,
            status=coordinator.status,
            detail=coordinator.detail,
            fleet=self._fleet,
            broker=self._broker,
            is_connected=coordinator.is_connected,
            term=coordinator.term,
            started=read_record(self._folder).started,
            n_refused=coordinator.n_refused_messages,
            devices=self._view.devices(coordinator.sessions),
        )
        if self._view.round is not None:
            told.round, told.rounds, round_s = self._view.round
            told.round_s = round(round_s, 1)
        elif self._waiting is not None:
            told.n_expected, told.n_ready = self._waiting.expected, len(self._waiting.ready)
            told.left_s = round(max(0.0, self._waiting.left_s - (self._clock() - self._waiting_at)), 1)
        return told

    def tick(self, publish: Publish) -> bool:
        """See :class:`Service`."""
        while self._lines:
            text, level = self._lines.popleft()
            self.log.add(text, level)
            self._warn(text)
        if self._socket is not None:
            self._socket.tick(publish)
        if self._clock() >= self._remember_at:
            self._remember_at = self._clock() + REMEMBER_EVERY_S
            self._remember()
        return False

    def close(self) -> None:
        """Let everything go. May be called twice."""
        self._remember()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._coordinator = None
        self._history.close()

    def _remember(self) -> None:
        """Write down when each device was last seen, and how it stood."""
        if self._recorder is None or self._coordinator is None:
            return
        now = self._wall_clock()
        self._recorder.remember(
            Seen(now - device.last_seen_s, self._coordinator.run, device)
            for device in self._view.devices(self._coordinator.sessions)
            if device.last_seen_s is not None
        )

    def _keep_in_memory(self, exc: MachineError) -> None:
        self._warn(f"{exc.message} It is kept in memory only.")
        self._history = History()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
