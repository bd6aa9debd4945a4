"""Flow control as the coordinator tells it: when a device hears its credit anew, and in which words."""

from __future__ import annotations

from coordinator.rounds import RoundLoop
from toolkit.wire.limits import MAX_TEXT_CHARACTERS
from toolkit.wire.messages import Phase, State
from toolkit.wire.seats import Seat

STATE_EVERY_S = 5.0
"""A state message goes to every device at least so often while anything is owed."""


class Flow:
    """Remembers what each device was told last.

    Args:
        deadline_s: of a round; 0 for none.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._told: dict[str, tuple[float, int, int]] = {}

    def is_due(self, device: str, loop: RoundLoop, now: float) -> bool:
        """Whether to tell a device its credit: a new round, credit that grew enough to matter, or time."""
        said_at, round_, limit = self._told.get(device, (-STATE_EVERY_S, 0, 0))
        grown = loop.limit(device) - limit
        at_end = grown > 0 and loop.limit(device) > loop.devices[device].n_owed
        enough = grown >= max(1, loop.window // 2)
        return round_ != loop.round or enough or at_end or now - said_at >= STATE_EVERY_S

    def message(
        self,
        seat: Seat,
        loop: RoundLoop,
        *,
        phase: Phase,
        watermark: tuple[int, int],
        plan_version: int,
        lowered_round: int = 0,
        detail: str,
        now: float,
    ) -> State:
        """Make the state message that ``seat`` is due, complete and absolute, and remember it as told.

        Args:
            seat: already counted up: its ``n`` is the message's.
            loop: of the open round.
            phase: of the run.
            watermark: (round, seq) of the oldest kept checkpoint.
            plan_version: in force.
            lowered_round: whose results are handed down; 0 for none.
            detail: for people; cut to what a message may hold.
            now: on the clock that opened the round.
        """
        held = loop.devices[seat.device]
        left_s = max(0.0, loop.opened_at + self._deadline_s - now) if self._deadline_s else 0.0
        state = State(
            term=seat.term,
            incarnation=seat.incarnation,
            n=seat.n,
            phase=phase,
            round=loop.round,
            next=held.next,
            limit=loop.limit(seat.device),
            watermark_round=watermark[0],
            watermark_seq=watermark[1],
            plan_version=plan_version,
            round_left_s=left_s,
            detail=detail[:MAX_TEXT_CHARACTERS],
            lowered_round=lowered_round,
        )
        self._told[seat.device] = (now, state.round, state.limit)
        return state
