"""Flow control as the coordinator tells it: when a device hears its credit anew, and in which words."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.commits import Commits
from coordinator.fleet.roll import Roll
from coordinator.rounds.loop import RoundLoop
from coordinator.rounds.underway import Underway
from toolkit.wire.limits import MAX_TEXT_CHARACTERS
from toolkit.wire.messages import DownMessage, Phase, State

STATE_EVERY_S = 5.0
"""A state message goes to every device at least so often while anything is owed."""


class Flow:
    """Tells devices how far they may go, and remembers what each was told last.

    Args:
        roll: who speaks for each device.
        commits: say what is durable.
        send: takes each message to a device.
        clock: monotonic seconds.
        deadline_s: of a round; 0 for none.
    """

    def __init__(
        self,
        roll: Roll,
        commits: Commits,
        *,
        send: Callable[[str, DownMessage], None],
        clock: Callable[[], float],
        deadline_s: float,
    ) -> None:
        self._roll = roll
        self._commits = commits
        self._send = send
        self._clock = clock
        self._deadline_s = deadline_s
        self._told: dict[str, tuple[float, int, int]] = {}

    def keep_told(self, underway: Underway) -> None:
        """See what came, grant the credit that there is room for, and tell every device that is due."""
        now = self._clock()
        underway.loop.windows.look(underway.loop.devices, now)
        underway.loop.grant()
        for device in underway.loop.devices:
            if self._is_due(device, underway.loop, now):
                self.tell(device, underway, phase="training")

    def tell_everybody(self, underway: Underway) -> None:
        """Tell every device of the round."""
        for device in underway.loop.devices:
            self.tell(device, underway, phase="training")

    def tell(self, device: str, underway: Underway, *, phase: Phase, detail: str = "") -> None:
        """Send a device the state message that says all: complete and absolute.

        Args:
            device: told nothing where it has no part in the round, or no process speaks for it.
            underway: what it is told of.
            phase: of the run.
            detail: for people; cut to what a message may hold.
        """
        loop = underway.loop
        # A device may have joined and left again before the plan was made.
        if not self._roll[device].incarnation or device not in loop.devices:
            return
        seat, now = self._roll.count_state(device), self._clock()
        watermark_round, watermark_seq = self._commits.watermark(device)
        left_s = max(0.0, loop.opened_at + self._deadline_s - now) if self._deadline_s else 0.0
        state = State(
            term=seat.term,
            incarnation=seat.incarnation,
            n=seat.n,
            phase=phase,
            round=loop.round,
            next=loop.devices[device].wanted,
            limit=loop.limit(device),
            watermark_round=watermark_round,
            watermark_seq=watermark_seq,
            plan_version=underway.state.plan_version,
            round_left_s=left_s,
            detail=detail[:MAX_TEXT_CHARACTERS],
            lowered_round=underway.model.lowered_round,
        )
        self._told[device] = (now, state.round, state.limit)
        loop.windows.pipes[device].told(state.limit, now)
        self._send(device, state)

    def _is_due(self, device: str, loop: RoundLoop, now: float) -> bool:
        """Whether to tell a device its credit: a new round, credit that grew enough to matter, or time."""
        said_at, round_, limit = self._told.get(device, (-STATE_EVERY_S, 0, 0))
        grown = loop.limit(device) - limit
        at_end = grown > 0 and loop.limit(device) > loop.devices[device].n_owed
        enough = grown >= max(1, (loop.limit(device) - loop.devices[device].next) // 2)
        return round_ != loop.round or enough or at_end or now - said_at >= STATE_EVERY_S
