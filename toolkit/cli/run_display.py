"""What ``hsee coordinator start`` shows: a live table on a terminal, a plain line a round without one, or JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from coordinator.fleet.events import Ended, PlanMade, RoundClosed, RunEvent
from coordinator.store.round_report import DeviceReport
from coordinator.watching.event_lines import BYTES_PER_MB, lines_of, percent
from toolkit.cli.output import console, is_terminal
from toolkit.journal import printable, write_line

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table


class RunDisplay(Protocol):
    """Takes the events of one run."""

    def begin(self, *, run: str, folder: Path, broker: str, fleet: str) -> None:
        """Say what is about to happen, and where."""

    def show(self, event: RunEvent) -> None:
        """Show one event."""


@contextmanager
def make_display(*, as_json: bool, strategy: str, quiet: bool = False) -> Iterator[RunDisplay]:
    """Make the display that fits: nothing but the end, JSON lines, a live table, or plain lines."""
    if quiet:
        yield QuietDisplay(JsonDisplay() if as_json else PlainDisplay())
    elif as_json:
        yield JsonDisplay()
    elif is_terminal():
        with LiveDisplay.opened(strategy) as display:
            yield display
    else:
        yield PlainDisplay()


class QuietDisplay:
    """How a run ended, and no more.

    Args:
        display: shows it.
    """

    def __init__(self, display: RunDisplay) -> None:
        self._display = display

    def begin(self, *, run: str, folder: Path, broker: str, fleet: str) -> None:
        """See :class:`RunDisplay`."""

    def show(self, event: RunEvent) -> None:
        """See :class:`RunDisplay`."""
        if isinstance(event, Ended):
            self._display.show(event)


class PlainDisplay:
    """A line an event: what a log or a pipe can hold.

    Args:
        line: takes each line.
    """

    def __init__(self, line: Callable[[str], None] = write_line) -> None:
        self._line = line

    def begin(self, *, run: str, folder: Path, broker: str, fleet: str) -> None:
        """See :class:`RunDisplay`."""
        self._line(f"run {run}: fleet {fleet}, broker {broker}, folder {folder}")

    def show(self, event: RunEvent) -> None:
        """See :class:`RunDisplay`."""
        for line in lines_of(event):
            self._line(line)


class JsonDisplay:
    """One JSON object a line."""

    def begin(self, *, run: str, folder: Path, broker: str, fleet: str) -> None:
        """See :class:`RunDisplay`."""
        self._line("begin", {"run": run, "folder": str(folder), "broker": broker, "fleet": fleet})

    def show(self, event: RunEvent) -> None:
        """See :class:`RunDisplay`."""
        match event:
            case PlanMade(plan=plan):
                facts = {"classes": plan.classes, "cuts": plan.cuts, "reasons": plan.reasons}
                self._line("plan", {**facts, "server_influences_devices": bool(plan.influence)})
            case RoundClosed(report=report, cuts=cuts, rounds=rounds):
                self._line("round", {**msgspec.to_builtins(report), "rounds": rounds, "cuts": dict(cuts)})
            case _:
                self._line(type(event).__name__.lower(), msgspec.to_builtins(event))

    @staticmethod
    def _line(event: str, facts: Mapping[str, Any]) -> None:
        write_line(msgspec.json.encode({"event": event, **facts}).decode())


class LiveDisplay(PlainDisplay):
    """A table of the devices that follows the rounds; notices scroll by above it."""

    def __init__(self, live: Live, strategy: str) -> None:
        super().__init__(lambda text: live.console.print(printable(text), highlight=False, markup=False))
        self._live = live
        self._strategy = strategy
        self._bytes: dict[str, int] = {}
        self._seconds = 0.0

    @classmethod
    @contextmanager
    def opened(cls, strategy: str) -> Iterator[LiveDisplay]:
        """Open the table on the terminal until the block ends."""
        from rich.live import Live

        with Live(console=console(), auto_refresh=False, transient=False) as live:
            yield cls(live, strategy)

    def show(self, event: RunEvent) -> None:
        """See :class:`RunDisplay`."""
        if isinstance(event, RoundClosed):
            self._seconds += event.report.seconds
            for device in event.report.devices:
                self._bytes[device.device] = self._bytes.get(device.device, 0) + device.n_bytes
            self._live.update(self._table(event), refresh=True)
        else:
            super().show(event)

    def _table(self, event: RoundClosed) -> Table:
        from rich import box
        from rich.table import Table

        report = event.report
        made = Table(
            title=f"round {report.round} of {event.rounds}, {self._strategy}, {self._seconds:.0f} s",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for name in ("device", "cut after"):
            made.add_column(name)
        for name in ("exit accuracy", "server route", "exit loss", "server loss", "MB up", "s a round"):
            made.add_column(name, justify="right")
        for device in report.devices:
            made.add_row(*self._cells(device, event.cuts[device.device], report.seconds))
        return made

    def _cells(self, device: DeviceReport, cut: str, seconds: float) -> list[str]:
        losses = ["-" if loss is None else f"{loss:.3f}" for loss in (device.exit_loss, device.server_loss)]
        return [
            device.device + (f" ({device.n_void} void)" if device.n_void else ""),
            cut,
            percent(device.exit_accuracy),
            percent(device.server_accuracy),
            *losses,
            f"{self._bytes[device.device] / BYTES_PER_MB:.1f}",
            f"{seconds:.1f}",
        ]
