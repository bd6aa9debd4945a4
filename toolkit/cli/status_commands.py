"""``hsee status`` and ``hsee logs``: what a coordinator on this machine tells on its local socket, or its folder holds."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from toolkit.cli.options import Home, Json, home_of
from toolkit.cli.output import emit_json, is_terminal
from toolkit.errors import PartialError, UsageError, did_you_mean
from toolkit.journal import printable

if TYPE_CHECKING:
    from coordinator.watching.history import Event
    from coordinator.watching.log_ring import LogEntry
    from coordinator.watching.status import DeviceStatus, RunStatus

RunName = Annotated[
    str, typer.Argument(metavar="[RUN]", help="A run; default: the one at work, else the newest.")
]
STATES = ("online", "silent", "offline", "left", "unknown")
LEVELS = ("error", "warning", "info", "debug")
COORDINATOR_NAME = "coordinator"
MAX_NAMED = 8


def status(
    run: RunName = "",
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.2, max=3600, metavar="SECONDS", help="With --watch.")] = 1.0,
    sort: Annotated[
        str,
        typer.Option(metavar="KEY", help="state, device, seen, cut, exit, server, temperature or version."),
    ] = "state",
    state: Annotated[
        str, typer.Option(metavar="STATE", help="Only devices that are online, silent, offline or left.")
    ] = "",
    group: Annotated[str, typer.Option(help="Only devices of this group.")] = "",
    match: Annotated[str, typer.Option(metavar="TEXT", help="Only devices with this in id or label.")] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Exit with status 5 unless everything shown is good.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Show on one screen how a run and its devices stand; whatever needs a look comes first.

    It asks the coordinator on this machine, over a socket in the run folder and never through the broker. Where none
    runs, it shows what the run folder holds.

    Example: hsee status --watch
    """
    from coordinator.watching.status import GOOD
    from toolkit.cli.status_display import SORTS, print_status

    _known("--sort", sort, SORTS)
    if state:
        _known("--state", state, STATES)
    shown = _Shown(run, home, sort=sort, state=state, group=group, match=match)
    if watch:
        shown.watch(every, as_json=json)
        return
    told = shown.look()
    if json:
        emit_json({**msgspec.to_builtins(told), "is_good": told.is_good})
    else:
        print_status(told, told.devices, shown.labels)
    if check and not told.is_good:
        if json:
            raise typer.Exit(PartialError.exit_status)
        bad = [device.device for device in told.devices if device.state not in GOOD]
        named = ", ".join(bad[:MAX_NAMED]) + (
            f" and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
        )
        raise PartialError(
            f"The run {told.run} needs a look{': ' if bad else ''}{named}.",
            hint=f"hsee logs {bad[0]}" if bad else "",
        )


def logs(
    device: Annotated[
        str,
        typer.Argument(metavar="[DEVICE]", help="Whose lines, or 'coordinator'; default: everybody's."),
    ] = "",
    *,
    run: Annotated[str, typer.Option(help="The run; default: the one at work, else the newest.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with every new line.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=100_000, help="The newest so many at once.")
    ] = 100,
    level: Annotated[
        str, typer.Option(help="Only lines as bad as this: error, warning, info, debug.")
    ] = "debug",
    home: Home = None,
    json: Json = False,
) -> None:
    """Show what the coordinator and the devices of a run logged.

    Devices' lines reach the coordinator over their link; it keeps the newest 500 of each. Where no coordinator runs,
    the events in the history are shown.

    Example: hsee logs hall-camera --follow
    """
    from coordinator.watching.ask import ask_log, is_answering
    from coordinator.watching.local_socket import AskLog
    from coordinator.watching.log_ring import COORDINATOR
    from coordinator.watching.runs import find_run, status_of

    _known("--level", level, LEVELS)
    folder = find_run(run, home_of(home))
    if device and device != COORDINATOR_NAME:
        _known("The device", device, [d.device for d in status_of(folder).devices] + [COORDINATOR_NAME])
    wanted = None if not device else COORDINATOR if device == COORDINATOR_NAME else device
    if not is_answering(folder):
        if not json:
            sys.stderr.write(f"No coordinator of run {folder.name} runs; these are its events.\n")
        _print_entries(_past(folder, wanted, lines), level, as_json=json)
        return
    found = ask_log(folder, AskLog(device=wanted, n=lines, follow=follow))
    if not follow:
        _print_entries(list(found), level, as_json=json)
        return
    for entry in found:
        if LEVELS.index(entry.level) <= LEVELS.index(level):
            sys.stdout.write((msgspec.json.encode(entry).decode() if json else _line(entry)) + "\n")
            sys.stdout.flush()
    if not json:
        sys.stderr.write(f"The coordinator of run {folder.name} has ended.\n")


class _Shown:
    """A run, and which of its devices are to be seen."""

    def __init__(self, run: str, home: str | None, *, sort: str, state: str, group: str, match: str) -> None:
        from coordinator.watching.device_book import read_book
        from coordinator.watching.runs import find_run

        place = home_of(home)
        self._folder = find_run(run, place)
        self._book = read_book(place)
        self._sort, self._state, self._group, self._match = sort, state, group, match
        if group:
            known = {name for named in self._book.devices.values() for name in named.groups}
            _known("--group", group, known)

    @property
    def labels(self) -> dict[str, str]:
        """Labels by device id."""
        return {device: named.label for device, named in self._book.devices.items()}

    def look(self) -> RunStatus:
        """Say how it stands now, with the devices that are to be seen, in order."""
        from coordinator.watching.runs import status_of
        from toolkit.cli.status_display import SORTS

        told = status_of(self._folder)
        told.devices = sorted(filter(self._is_wanted, told.devices), key=SORTS[self._sort])
        return told

    def watch(self, every_s: float, *, as_json: bool) -> None:
        """Show it again and again: one screen on a terminal, else a line whenever something changed."""
        if is_terminal() and not as_json:
            self._watch_screen(every_s)
            return
        from toolkit.cli.status_display import strip

        before = ""
        while True:
            told = self.look()
            line = msgspec.json.encode(told).decode() if as_json else strip(told)
            if as_json or line != before:
                before = line
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
            time.sleep(every_s)

    def _watch_screen(self, every_s: float) -> None:
        from rich.live import Live

        from toolkit.cli.output import console
        from toolkit.cli.status_display import render, rows_that_fit

        with Live(console=console(), screen=True, auto_refresh=False) as live:
            while True:
                told = self.look()
                live.update(render(told, told.devices, self.labels, n_rows=rows_that_fit(told)), refresh=True)
                time.sleep(every_s)

    def _is_wanted(self, device: DeviceStatus) -> bool:
        text = f"{device.device} {self._book.label(device.device)}"
        return (
            (not self._state or device.state == self._state)
            and (not self._group or self._group in self._book.groups(device.device))
            and self._match.lower() in text.lower()
        )


def _past(folder: Path, device: str | None, n: int) -> list[LogEntry]:
    """A run's events as log lines."""
    from coordinator.watching.log_ring import LogEntry
    from coordinator.watching.runs import history_of

    with history_of(folder) as history:
        events = history.events(folder.resolve().name)
    found = [
        LogEntry(number=number, at=event.at or 0.0, device=event.device, level="info", text=_told(event))
        for number, event in enumerate(events, start=1)
        if device is None or event.device == device
    ]
    return found[-n:] if n else []


def _told(event: Event) -> str:
    match event.kind:
        case "round":
            return f"round {event.round} closed: {event.text}"
        case "lost":
            return f"round {event.round}: {event.text}"
        case _:
            return event.text


def _print_entries(entries: Sequence[LogEntry], level: str, *, as_json: bool) -> None:
    wanted = [entry for entry in entries if LEVELS.index(entry.level) <= LEVELS.index(level)]
    if as_json:
        emit_json({"lines": [msgspec.to_builtins(entry) for entry in wanted]})
        return
    for entry in wanted:
        sys.stdout.write(_line(entry) + "\n")


def _line(entry: LogEntry) -> str:
    at = datetime.fromtimestamp(entry.at).astimezone().strftime("%Y-%m-%d %H:%M:%S") if entry.at else "-"
    level = "" if entry.level == "info" else f"{entry.level}: "
    return f"{at:<19}  {entry.device or COORDINATOR_NAME}: {level}{_of_one_line(entry.text)}"


def _of_one_line(text: str) -> str:
    return printable(text).replace("\n", "\\n")


def _known(what: str, word: str, known: Collection[str]) -> None:
    """Refuse a word that is none of those known.

    Raises: UsageError: it is not.
    """
    if word not in known:
        raise UsageError(f"{what} {word!r} is unknown.", hint=did_you_mean(word, known))
