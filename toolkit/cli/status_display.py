"""One screen of a run: a health strip, then the fleet, whatever needs a person first."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from coordinator.watching.status import DeviceState, DeviceStatus, RunStatus
from toolkit.cli.output import is_terminal, table
from toolkit.journal import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS = (
    *("device", "state", "last seen", "cut", "round", "exit", "server"),
    *("°C", "load", "free MB", "version", "trouble"),
)
BYTES_PER_MB = 1e6
_WORST_FIRST: tuple[DeviceState, ...] = ("offline", "silent", "unknown", "online", "left")
_COLOURS: dict[DeviceState, str] = {
    "online": "green",
    "silent": "yellow",
    "offline": "bold red",
    "left": "dim",
    "unknown": "dim",
}
SORTS: dict[str, Callable[[DeviceStatus], tuple[object, ...]]] = {
    "state": lambda d: (_WORST_FIRST.index(d.state), d.device),
    "device": lambda d: (d.device,),
    "seen": lambda d: (-(d.last_seen_s if d.last_seen_s is not None else float("inf")), d.device),
    "cut": lambda d: (d.cut, d.device),
    "exit": lambda d: (d.exit_accuracy if d.exit_accuracy is not None else -1.0, d.device),
    "server": lambda d: (d.server_accuracy if d.server_accuracy is not None else -1.0, d.device),
    "temperature": lambda d: (-(d.temperature_c if d.temperature_c is not None else -1e9), d.device),
    "version": lambda d: (d.software, d.device),
}
"""What the fleet can be sorted by; what needs a look comes first."""


def ago(seconds: float | None) -> str:
    """Say how long ago something was, as people do."""
    if seconds is None:
        return "never"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def strip(status: RunStatus) -> str:
    """Say in one line how the run stands."""
    counts = {s: sum(d.state == s for d in status.devices) for s in _WORST_FIRST}
    fleet = ", ".join(f"{n} {state}" for state, n in counts.items() if n) or "no devices yet"
    if status.status == "waiting" and status.n_expected:
        where = f"{status.n_ready} of {status.n_expected} devices, {status.left_s or 0:.0f} s left"
    else:
        where = f"round {status.round} of {status.rounds}" + (
            f" ({status.round_s:.0f} s)" if status.round_s is not None else ""
        )
    words = [f"run {status.run}", status.status, where]
    if status.is_live:
        words += [fleet, f"{'broker' if status.is_connected else 'no connection to'} {status.broker}"]
    if status.n_refused:
        words.append(f"{status.n_refused} messages refused")
    return "; ".join(words)


def remark(status: RunStatus) -> str:
    """Say what the screen can't show: why it ended, or that nobody is there to tell; empty where there is nothing."""
    if status.is_live:
        return status.detail
    if status.status in ("waiting", "training"):
        return f"No coordinator runs: it was killed or the machine went down. Go on: hsee run resume {status.folder}"
    return f"No coordinator runs; this is what {status.folder} holds. {status.detail}".rstrip()


def cells(device: DeviceStatus, label: str = "") -> list[str]:
    """Write one device as a row."""
    trouble = [
        *([f"not waited for: {device.excused}"] if device.excused else []),
        *device.throttled,
        *([f"{device.n_refused} messages refused"] if device.n_refused else []),
        *([device.last_error] if device.last_error else []),
    ]
    texts = [
        f"{device.device} ({label})" if label else device.device,
        device.state if device.state != "online" or not device.phase else device.phase,
        ago(device.last_seen_s) if device.state != "unknown" else "",
        device.cut,
        f"{device.n_done}/{device.n_owed}" if device.n_owed else "",
        _percent(device.exit_accuracy),
        _percent(device.server_accuracy),
        _number(device.temperature_c, 0),
        _number(device.load, 1),
        _number(None if device.free_memory_bytes is None else device.free_memory_bytes / BYTES_PER_MB, 0),
        device.software.removeprefix("hsee "),
        "; ".join(trouble),
    ]
    return [printable(text) for text in texts]


def print_status(status: RunStatus, devices: Sequence[DeviceStatus], labels: Mapping[str, str]) -> None:
    """Print the screen once.

    Args:
        status: of the run.
        devices: of it, those to show, in order.
        labels: by device id.
    """
    if is_terminal():
        from toolkit.cli.output import console

        console().print(render(status, devices, labels))
        return
    lines = [("good: " if status.is_good else "look: ") + strip(status), remark(status)]
    print("\n".join(filter(None, lines)))  # noqa: T201 - a command's output
    if devices:
        used, rows = _used([cells(device, labels.get(device.device, "")) for device in devices])
        table(used, rows)


def render(
    status: RunStatus,
    devices: Sequence[DeviceStatus],
    labels: Mapping[str, str],
    *,
    n_rows: int | None = None,
) -> RenderableType:
    """Draw the screen for a terminal.

    Args:
        status: of the run.
        devices: of it, those to show, in order.
        labels: by device id.
        n_rows: rows that there is room for; None for all.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text(
        " good " if status.is_good else " look ", "black on green" if status.is_good else "white on red"
    )
    head.append(" " + strip(status), style="default")
    if status.is_good is False or not status.is_live:
        head.append("\n" + remark(status) if remark(status) else "")
    shown = list(devices)[:n_rows]
    used, rows = _used([cells(device, labels.get(device.device, "")) for device in shown])
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in used:
        right = name in ("round", "exit", "server", "°C", "load", "free MB", "last seen")
        made.add_column(
            Text(name),
            justify="right" if right else "left",
            overflow="fold" if name == "trouble" else "ellipsis",
            no_wrap=name != "trouble",
        )
    for device, row in zip(shown, rows, strict=True):
        texts = [Text(cell) for cell in row]
        texts[1].stylize(_COLOURS[device.state])
        texts[-1].stylize("yellow" if used[-1] == "trouble" else "")
        made.add_row(*texts)
    parts: list[RenderableType] = [head]
    if rows:
        parts.append(made)
    if len(shown) < len(devices):
        hidden = devices[len(shown) :]
        counts = {s: sum(d.state == s for d in hidden) for s in _WORST_FIRST}
        parts.append(Text("and " + ", ".join(f"{n} {s}" for s, n in counts.items() if n), "dim"))
    return Group(*parts)


def rows_that_fit(status: RunStatus) -> int:
    """Count the rows of devices that the terminal has room for beside all else."""
    n_lines = shutil.get_terminal_size().lines
    return max(3, n_lines - 5 - (2 if remark(status) else 0))


def _used(rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Leave out the columns that hold nothing."""
    keep = [i for i, name in enumerate(COLUMNS) if i < 2 or any(row[i] for row in rows)]  # noqa: PLR2004 - who and how
    return [COLUMNS[i] for i in keep], [[row[i] for i in keep] for row in rows]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
