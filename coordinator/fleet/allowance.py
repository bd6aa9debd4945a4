"""How much a device may say that is of no use, so that one that floods costs the others nothing.

What is taken up costs nothing: credit bounds it. All else, garbage, doubles, batches that nobody waits for, is paid from
an allowance that fills with time; a message beyond it is dropped before it is read.
"""

from __future__ import annotations

from dataclasses import dataclass

MESSAGE_COST_BYTES = 4096
"""What reading the shortest message costs, in bytes of a long one."""
FILLS_IN_S = 5.0
"""A device sends its whole window again at most so often."""
WITHOUT_A_JOB_BYTES = 1024 * 1024
"""For hellos; a device that has no job yet has nothing else to say."""
SAID_EVERY_S = 5.0


@dataclass(slots=True)
class Allowance:
    """One device's.

    Attributes:
        capacity_bytes: all that it can hold.
        left_bytes: at ``at_s``.
        at_s: when it was last looked at, monotonic.
        n_dropped: messages beyond it.
    """

    capacity_bytes: int
    left_bytes: float
    at_s: float
    n_dropped: int = 0

    def take(self, n_bytes: int, now: float) -> bool:
        """Pay for a message; false where it must be dropped unread."""
        fresh = self.capacity_bytes * (now - self.at_s) / FILLS_IN_S
        self.left_bytes = min(self.capacity_bytes, self.left_bytes + fresh)
        self.at_s = now
        cost = max(n_bytes, MESSAGE_COST_BYTES)
        if cost > self.left_bytes:
            self.n_dropped += 1
            return False
        self.left_bytes -= cost
        return True

    def grow(self, capacity_bytes: int) -> None:
        """Hold more from now on, if it is more: a window that shrinks and grows again is no source of allowance."""
        more = max(0, capacity_bytes - self.capacity_bytes)
        self.capacity_bytes += more
        self.left_bytes += more

    def give_back(self, n_bytes: int) -> None:
        """Return what was paid for something of use."""
        self.left_bytes = min(self.capacity_bytes, self.left_bytes + n_bytes)


class Seldom:
    """Lets one thing be said about each key now and then, and counts what was not said."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[float, int]] = {}

    def worth_saying(self, key: str, now: float) -> int | None:
        """Tell how many were kept quiet since the last that was said; None where this one is too."""
        at_s, n_quiet = self._said.get(key, (-SAID_EVERY_S, 0))
        if now - at_s < SAID_EVERY_S:
            self._said[key] = (at_s, n_quiet + 1)
            return None
        self._said[key] = (now, 0)
        return n_quiet
