"""How this device stands and what it logs, told beside training: bounded, rated, and never waited for."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import psutil

from toolkit import __version__
from toolkit.journal import Level
from toolkit.link.base import Link
from toolkit.profile.conditions import ConditionReader
from toolkit.wire.limits import MAX_LOG_LINES
from toolkit.wire.session import DevicePhase
from toolkit.wire.telemetry import MAX_LINE_CHARACTERS, LogLine, LogLines, Telemetry, encode_report
from toolkit.wire.topics import Topics

EVERY_S = 15.0
"""Between two reports when nothing changes."""
AT_MOST_EVERY_S = 1.0
KEPT_LINES = 256
"""Lines that wait while the link is down; the oldest are dropped first."""
LINES_PER_S = 10.0
LINES_AT_ONCE = 100.0
MAX_REASONS = 8


class Standing(Protocol):
    """What is read of the agent."""

    n_refused_messages: int

    @property
    def is_connected(self) -> bool:
        """Whether the link is up."""
        ...

    @property
    def phase(self) -> DevicePhase:
        """Where the session stands."""
        ...

    @property
    def cut(self) -> str:
        """The cut layer of its job; empty where there is none."""
        ...

    @property
    def trained(self) -> tuple[int, int]:
        """How far training has come, as (round, seq)."""
        ...

    @property
    def exit_accuracy(self) -> float | None:
        """Of the last finished round."""
        ...


@dataclass(frozen=True, slots=True)
class BoardReading:
    """What the board says of itself; None where it does not."""

    temperature_c: float | None
    throttled: tuple[str, ...]
    memory_bytes: int
    free_memory_bytes: int
    load: float


class BoardReader:
    """Reads the board; what held its clock back is what did so since the last reading."""

    def __init__(self) -> None:
        self._conditions = ConditionReader()
        self._process = psutil.Process()

    def __call__(self) -> BoardReading:
        """Read it now; some milliseconds."""
        seen = self._conditions.conditions(copy_bytes_per_s=None)
        self._conditions = ConditionReader()
        return BoardReading(
            temperature_c=seen.temperature_c_after,
            throttled=seen.throttle,
            memory_bytes=self._process.memory_info().rss,
            free_memory_bytes=psutil.virtual_memory().available,
            load=round(os.getloadavg()[0], 2),
        )


class Reporter:
    """Tells of one device. Lines come from any thread; :meth:`tick` is called from one at a time (``Heartbeat``).

    Args:
        link: the agent's own.
        topics: of the fleet.
        device: its id.
        boot_nonce: of this process.
        is_on: whether anything is told.
        read_board: reads the board.
        clock: monotonic seconds.
        wall_clock: Unix time, seconds; as wrong as the board's clock is.
    """

    def __init__(
        self,
        link: Link,
        *,
        topics: Topics,
        device: str,
        boot_nonce: bytes,
        is_on: bool = True,
        read_board: Callable[[], BoardReading] | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._link = link
        self._telemetry_topic = topics.device_telemetry(device)
        self._log_topic = topics.device_log(device)
        self._boot_nonce = boot_nonce.hex()
        self.is_on = is_on
        self._read_board = read_board or BoardReader()
        self._clock = clock
        self._wall_clock = wall_clock
        self._began_at = clock()
        self._lines: deque[LogLine] = deque(maxlen=KEPT_LINES)
        self._n_lines = 0
        self._counting = threading.Lock()
        self._n_sent = 0
        self._allowed = LINES_AT_ONCE
        self._allowed_at = self._began_at
        self._told: tuple[object, ...] | None = None
        self._told_at = float("-inf")
        self.last_error = ""

    def line(self, text: str, level: Level = "info") -> None:
        """Take a line for the log; the last error is told with the telemetry too."""
        text = text if len(text) <= MAX_LINE_CHARACTERS else text[: MAX_LINE_CHARACTERS - 3] + "..."
        if level == "error":
            self.last_error = text
        taken = LogLine(at=max(0.0, round(self._wall_clock(), 3)), level=level, text=text)
        with self._counting:
            self._n_lines += 1
            self._lines.append(taken)

    def tick(self, agent: Standing) -> None:
        """Tell what is due: lines as the rate allows, telemetry on change and now and then."""
        if not self.is_on:
            return
        if not agent.is_connected:
            self._told = None  # whoever listens may be another by then
            return
        now = self._clock()
        self._send_lines(now)
        steady = (agent.phase, agent.cut, agent.exit_accuracy, self.last_error)
        since_s = now - self._told_at
        if since_s >= EVERY_S or (steady != self._told and since_s >= AT_MOST_EVERY_S):
            self._told, self._told_at = steady, now
            self._link.publish(self._telemetry_topic, encode_report(self._report(agent, now)), qos=0)

    def _report(self, agent: Standing, now: float) -> Telemetry:
        board = self._read_board()
        round_, seq = agent.trained
        return Telemetry(
            boot_nonce=self._boot_nonce,
            software=f"hsee {__version__}",
            uptime_s=round(now - self._began_at, 1),
            phase=agent.phase,
            round=round_,
            seq=seq,
            cut=agent.cut,
            exit_accuracy=agent.exit_accuracy,
            temperature_c=board.temperature_c,
            throttled=[reason[:64] for reason in board.throttled[:MAX_REASONS]],
            memory_bytes=board.memory_bytes,
            free_memory_bytes=board.free_memory_bytes,
            load=board.load,
            n_refused=agent.n_refused_messages,
            last_error=self.last_error,
        )

    def _send_lines(self, now: float) -> None:
        self._allowed = min(LINES_AT_ONCE, self._allowed + (now - self._allowed_at) * LINES_PER_S)
        self._allowed_at = now
        while self._lines and self._allowed >= 1:
            with self._counting:
                n = min(len(self._lines), MAX_LOG_LINES, int(self._allowed))
                lines = [self._lines.popleft() for _ in range(n)]
                self._allowed -= n
                self._n_sent += n
                n_dropped = max(0, self._n_lines - self._n_sent - len(self._lines))
            told = LogLines(boot_nonce=self._boot_nonce, lines=lines, n_dropped=n_dropped)
            self._link.publish(self._log_topic, encode_report(told))
