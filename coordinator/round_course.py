"""A round's course: it opens where somebody is here for it, waits no longer than it should, and closes with a commit."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.attendance import Attendance, check_quorum
from coordinator.commits import Commits
from coordinator.fleet.advice import Advisor
from coordinator.fleet.events import Notice, RoundClosed, RunEvent
from coordinator.fleet.roll import Roll
from coordinator.flow import Flow
from coordinator.rounds.stopping import StopRule
from coordinator.rounds.underway import Underway
from coordinator.store.run_folder import RunFolder
from toolkit.config import Run
from toolkit.errors import PartialError
from toolkit.failpoints import failpoint


class RoundCourse:
    """Takes one round after the other from its opening to its commit.

    Args:
        roll: who is here.
        settings: of the run.
        folder: of the run; metrics and record are written into it.
        commits: of the run.
        flow: tells devices how far they may go.
        advisor: looks at what devices tell of their pace.
        observe: takes each event of the run.
        clock: monotonic seconds, which stand still while the broker is away.
    """

    def __init__(
        self,
        roll: Roll,
        *,
        settings: Run,
        folder: RunFolder,
        commits: Commits,
        flow: Flow,
        advisor: Advisor,
        observe: Callable[[RunEvent], None],
        clock: Callable[[], float],
    ) -> None:
        self._roll = roll
        self._settings = settings
        self._folder = folder
        self._commits = commits
        self._flow = flow
        self._advisor = advisor
        self._observe = observe
        self._clock = clock
        self._alone_since = clock()
        self._attendance = Attendance(roll)

    def take_up(self, underway: Underway) -> None:
        """Go on in the round that was open at the last commit, or open the next one if there is one."""
        underway.stop = StopRule(self._settings.stop_after_s, self._settings.patience)
        underway.stop.read(self._folder.metrics())
        if underway.state.open is not None:
            underway.loop.reopen(self._clock(), underway.state.open)
            self._flow.tell_everybody(underway)
        elif not underway.is_done:
            self._open(underway)

    def put_off(self, seconds: float, underway: Underway | None) -> None:
        """Count the seconds without a broker, which is back, as nobody's lateness."""
        self._alone_since += seconds
        self._attendance.begin_anew()
        if underway is not None:
            underway.loop.put_off(seconds)

    def open_next(self, underway: Underway, now: float) -> bool:
        """Open the next round, if there is one, once a device is here for it; whether it did.

        Raises: PartialError: none came for so long that the run ends.
        """
        if underway.is_done:
            return False
        if self._roll.is_anybody_here:
            self._open(underway)
            return True
        if now - self._alone_since >= self._settings.absent_s:
            raise PartialError(
                f"Every device has been gone for {self._settings.absent_s:g} s after round {underway.loop.round}.",
                hint=f"What was trained is kept. When devices are back: hsee run resume {self._folder.path}",
            )
        return False

    def train(self, underway: Underway, now: float) -> bool:
        """Train on one batch, and commit where that is due; whether there was one."""
        if underway.loop.train_one() is None:
            return False
        if 0 < self._settings.commit_every_s <= now - self._commits.at:
            self._commits.commit(underway, now)
        return True

    def move(self, underway: Underway, now: float) -> bool:
        """Wait no longer for who comes too late, and close the round when it is complete; whether something changed."""
        loop = underway.loop
        late = loop.pass_turn(now)
        if late is not None:
            self._observe(Notice(f"{late} missed its turn in round {loop.round}; it comes last."))
            return True
        for device, why in self._attendance.excuse_the_lost(loop, now):
            self._observe(Notice(f"Round {loop.round} goes on without {device} ({why})."))
        if loop.complete:
            self._close(underway, now, "deadline" if loop.is_overdue else "complete")
            return True
        deadline_s = self._settings.round_deadline_s
        if deadline_s > 0 and now - loop.opened_at >= deadline_s and not loop.is_overdue:
            loop.stop_waiting("deadline")
            return True
        return False

    def _open(self, underway: Underway) -> None:
        loop = underway.loop
        loop.open(self._clock())
        for device in loop.devices:
            if self._roll[device].left:
                loop.excuse(device, "left")
        self._flow.tell_everybody(underway)

    def _close(self, underway: Underway, now: float, reason: str) -> None:
        """Close the round and commit it.

        Raises: PartialError: too few brought enough, or every device has said goodbye.
        """
        loop = underway.loop
        check_quorum(loop, quorum=self._settings.quorum, min_share=self._settings.min_share)
        report = loop.close(now, reason)
        self._folder.write_metrics(report, underway.state.cuts)
        self._commits.commit(underway, now)
        self._folder.record.rounds_closed = report.round
        self._folder.record.rewound_to = self._folder.record.rewound_from = None  # its entry is committed
        self._folder.save_record()
        underway.stop.take(report)
        failpoint("coordinator.closed_untold")
        self._observe(RoundClosed(report, underway.state.cuts, underway.state.common.rounds))
        for text in self._advisor.round_over():
            self._observe(Notice(text))
        if underway.is_done:
            return
        if self._roll.is_anybody_here:
            self._open(underway)
        elif self._roll.is_everybody_gone_for_good:
            raise PartialError(
                f"Every device is gone at the end of round {report.round}.",
                hint=f"What was trained is kept. When devices are back: hsee run resume {self._folder.path}",
            )
        else:
            self._alone_since = now
            self._observe(
                Notice(f"Every device is gone after round {loop.round}; the next one waits for the first.")
            )
