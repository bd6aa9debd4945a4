"""Who a round waits for, and whether enough are there to close it."""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.fleet.roll import Roll
from coordinator.rounds.loop import RoundLoop
from toolkit.errors import PartialError

OFFLINE_GRACE_S = 30.0
"""A device is waited for so long after it was found offline, in one round or several."""


class Attendance:
    """Since when each device is away.

    Args:
        roll: who is here.
    """

    def __init__(self, roll: Roll) -> None:
        self._roll = roll
        self._away_since: dict[str, float] = {}
        self._told: set[str] = set()

    def begin_anew(self) -> None:
        """Forget who was away: the broker was, too."""
        self._away_since.clear()
        self._told.clear()

    def excuse_the_lost(self, loop: RoundLoop, now: float) -> Iterator[tuple[str, str]]:
        """Excuse every device of the open round that left, or has been away for long.

        Yields: each with the reason, in the first round that goes on without it.
        """
        for device, held in loop.devices.items():
            seat = self._roll[device]
            if seat.connected:
                self._away_since.pop(device, None)
                self._told.discard(device)
                continue
            away_s = now - self._away_since.setdefault(device, now)
            if not held.complete and (seat.left or away_s >= OFFLINE_GRACE_S):
                loop.excuse(device, "left" if seat.left else "offline")
                if device not in self._told:
                    self._told.add(device)
                    yield device, held.excused


def check_quorum(loop: RoundLoop, *, quorum: int, min_share: float) -> None:
    """Check that enough devices brought enough.

    Args:
        loop: of the round that is to close.
        quorum: devices that a round needs.
        min_share: of its list that a device must have brought to count.
    Raises: PartialError: there are too few.
    """
    shares = {device: (held.next - 1) / held.n_owed for device, held in loop.devices.items()}
    enough = [device for device, share in shares.items() if share >= min_share]
    if len(enough) < quorum:
        raise PartialError(
            f"Round {loop.round} has {len(enough)} of the {quorum} devices that it needs.",
            hint="What was trained before it is kept. Bring devices back and resume the run, or lower run.quorum.",
            round=loop.round,
            enough=enough,
        )
