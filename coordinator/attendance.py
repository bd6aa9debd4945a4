"""Who a round waits for, and whether enough are there to close it."""

from __future__ import annotations

from collections.abc import Iterator

from coordinator.fleet.roll import Roll
from coordinator.rounds.loop import RoundLoop
from toolkit.errors import PartialError

OFFLINE_GRACE_S = 30.0
"""A device known to be offline holds a round up no longer than this."""


def excuse_the_lost(
    loop: RoundLoop, roll: Roll, now: float, *, heard_since: float
) -> Iterator[tuple[str, str]]:
    """Excuse every device that left, or has been offline for long; yields each with the reason.

    Args:
        loop: of the open round.
        roll: who is here.
        now: monotonic seconds.
        heard_since: nobody is silent for what they said before.
    """
    for device, held in loop.devices.items():
        seat = roll[device]
        silent_s = now - max(seat.last_heard, loop.opened_at, heard_since)
        if not held.complete and (seat.left or (not seat.connected and silent_s >= OFFLINE_GRACE_S)):
            loop.excuse(device, "left" if seat.left else "offline")
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
