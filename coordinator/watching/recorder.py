"""Writes a run's events into the history as they happen; an observer like any other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from coordinator.fleet.events import Ended, Notice, PlanMade, RoundClosed, RunEvent, Waiting
from coordinator.store.run_folder import metric_rows
from coordinator.store.run_record import METRICS
from coordinator.watching.history import Event, History, Kind, Seen, lost_text
from toolkit.errors import MachineError


class Recorder:
    """Takes the events of one run.

    Args:
        history: brought up to the run's folder.
        run: its id.
        wall_clock: Unix time, seconds.
        warn: takes a sentence if the history can't be written to. Nothing is recorded from then on, and the run goes
            on: what a history lacks is taken from the run folder.
    """

    def __init__(
        self, history: History, run: str, *, wall_clock: Callable[[], float], warn: Callable[[str], None]
    ) -> None:
        self._history = history
        self._run = run
        self._wall_clock = wall_clock
        self._warn = warn
        self._round = history.last_round(run)
        self._is_writable = True

    def take(self, event: RunEvent) -> None:
        """Record one event."""
        with self._guarded():
            if self._is_writable:
                self._record(event)

    def note(self, kind: Kind, text: str) -> None:
        """Record something that no event tells."""
        with self._guarded():
            if self._is_writable:
                self._add(self._event(kind, text))

    def remember(self, seen: Iterable[Seen]) -> None:
        """Write down when devices were last seen."""
        with self._guarded():
            if self._is_writable:
                self._history.remember(seen)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except MachineError as exc:
            if self._is_writable:
                self._warn(f"{exc.message} The run goes on without it.")
            self._is_writable = False

    def _record(self, event: RunEvent) -> None:
        match event:
            case Waiting():
                pass
            case PlanMade(plan=plan):
                self._add(
                    *(self._event("plan", f"cut after {cut}", device) for device, cut in plan.cuts.items())
                )
            case RoundClosed(report=report, cuts=cuts):
                self._round = report.round
                rows = [dict(zip(METRICS, row, strict=True)) for row in metric_rows(report, cuts)]
                lost = [
                    self._event("lost", lost_text(d.n_void, d.excused or report.reason), d.device)
                    for d in report.devices
                    if d.n_void
                ]
                self._history.add_round(self._run, rows, [*lost, self._event("round", report.reason)])
            case Notice(text=text):
                self._add(self._event("notice", text))
            case Ended(status=status, detail=detail):
                self._add(self._event("ended", f"{status}: {detail}"))

    def _add(self, *events: Event) -> None:
        self._history.add_events(self._run, events)

    def _event(self, kind: Kind, text: str, device: str = "") -> Event:
        return Event(self._round, kind, device, text, self._wall_clock())
