"""The last lines of a run's log, the coordinator's own and the devices', bounded a source."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable

import msgspec

from toolkit.journal import Level

KEPT_LINES = 500
"""A source; a device that floods pushes out nobody's lines but its own."""
MAX_SOURCES = 2048
COORDINATOR = ""
"""The source that is the coordinator itself."""


class LogEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One line as it is kept.

    Attributes:
        number: counts the lines of this coordinator process.
        at: Unix time by this machine's clock, when it came.
        device: who logged it; empty for the coordinator.
    """

    number: int
    at: float
    device: str
    level: Level
    text: str


class LogRing:
    """Keeps the newest lines of each source.

    Args:
        wall_clock: Unix time, seconds.
    """

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall_clock = wall_clock
        self._of: dict[str, deque[LogEntry]] = {}
        self.last = 0

    def add(self, text: str, level: Level = "info", *, device: str = COORDINATOR) -> None:
        """Take a line in."""
        lines = self._of.get(device)
        if lines is None:
            if len(self._of) >= MAX_SOURCES:  # the one that has been silent for longest makes room
                del self._of[min(self._of, key=lambda source: self._of[source][-1].number)]
            lines = self._of[device] = deque(maxlen=KEPT_LINES)
        self.last += 1
        at = round(self._wall_clock(), 3)
        lines.append(LogEntry(number=self.last, at=at, device=device, level=level, text=text))

    def since(self, number: int, device: str | None = None) -> list[LogEntry]:
        """Read the lines after ``number``, oldest first; of one source, or of all where it is None."""
        sources = self._of.values() if device is None else [self._of.get(device, deque())]
        return list(heapq.merge(*map(list, (_after(s, number) for s in sources)), key=lambda e: e.number))

    def newest(self, n: int, device: str | None = None) -> list[LogEntry]:
        """Read the newest ``n`` lines, oldest first."""
        return self.since(0, device)[-n:] if n > 0 else []


def _after(lines: deque[LogEntry], number: int) -> list[LogEntry]:
    """The lines of one source after ``number``, looked for from the newest on."""
    found = []
    for entry in reversed(lines):
        if entry.number <= number:
            break
        found.append(entry)
    return found[::-1]
