"""``hsee device``: the devices of a fleet, what they are called, and how one is thrown out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from coordinator.watching.status import DeviceStatus
from toolkit.cli.broker_control import (
    DEFAULT_FOLDER,
    DEFAULT_OPERATOR,
    Folder,
    MovedBroker,
    Operator,
    control_from_here,
)
from toolkit.cli.options import Home, Json, home_of
from toolkit.cli.output import confirm, emit_json, table
from toolkit.cli.status_display import ago
from toolkit.errors import UsageError, did_you_mean

app = typer.Typer(no_args_is_help=True, help="Devices: who they are, how they stand, names, removal.")
Device = Annotated[str, typer.Argument(metavar="DEVICE", help="A device id.")]


class DeviceFacts(msgspec.Struct, kw_only=True):
    """One device of a home, over all its runs.

    Attributes:
        run: that it takes part in now, or was last seen in.
        is_live: whether a coordinator told this just now.
        last_seen: Unix time, seconds.
    """

    device: str
    label: str = ""
    groups: list[str] = []
    run: str = ""
    is_live: bool = False
    last_seen: float | None = None
    status: DeviceStatus | None = None


@app.command("list")
def list_devices(
    *,
    group: Annotated[str, typer.Option(help="Only devices of this group.")] = "",
    home: Home = None,
    json: Json = False,
) -> None:
    """List every device that was seen or named: in the runs at work now, and in earlier ones.

    Example: hsee device list --group hall
    """
    found = [facts for facts in _devices(home_of(home)).values() if not group or group in facts.groups]
    if json:
        emit_json({"devices": [msgspec.to_builtins(facts) for facts in found]})
        return
    if not found:
        typer.echo("No device was seen yet. The line to start one: hsee agent start -h")
        return
    columns = ["device", "label", "groups", "state", "last seen", "run", "cut", "exit", "version"]
    table(columns, [_row(facts) for facts in found])


@app.command()
def show(device: Device, *, home: Home = None, json: Json = False) -> None:
    """Show all that is known of one device.

    Example: hsee device show hall-camera
    """
    facts = _find(device, home_of(home))
    if json:
        emit_json(msgspec.to_builtins(facts))
        return
    rows = [
        ["device", facts.device],
        ["label", facts.label],
        ["groups", ", ".join(facts.groups)],
        ["run", facts.run],
        ["last seen", _ago(facts)],
    ]
    if facts.status is not None:
        told = msgspec.to_builtins(facts.status)
        told.pop("device")
        told.pop("last_seen_s")
        if not facts.is_live:
            told["state"] = "no coordinator is there to say"
        rows += [[name.replace("_", " "), _text(value)] for name, value in told.items()]
    table(["what", "value"], [row for row in rows if row[1]])


@app.command()
def rename(
    device: Device,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="What to call it; '' for its id alone.")],
    *,
    home: Home = None,
    json: Json = False,
) -> None:
    """Give a device a label for people. Its id stays: account, topics and training on the board hang on it.

    Example: hsee device rename hall-camera "hall, above the door"
    """
    from coordinator.watching.device_book import MAX_LABEL_CHARACTERS, Named, changed_book

    if len(label) > MAX_LABEL_CHARACTERS or not label.isprintable():
        raise UsageError(
            f"A label is at most {MAX_LABEL_CHARACTERS} printable characters.", hint="Choose a shorter one."
        )
    place = home_of(home)
    _find(device, place)
    with changed_book(place) as book:
        book.devices.setdefault(device, Named()).label = label
    if json:
        emit_json({"device": device, "label": label})
        return
    typer.echo(f"{device} is called {label!r} now." if label else f"{device} has no label now.")


@app.command()
def group(
    device: Device,
    groups: Annotated[
        list[str] | None, typer.Argument(metavar="[GROUP]...", help="Its groups; none takes it out of all.")
    ] = None,
    *,
    home: Home = None,
    json: Json = False,
) -> None:
    """Put a device into groups, in place of those that it was in. status and device list can show one group.

    Example: hsee device group hall-camera hall ground-floor
    """
    from coordinator.watching.device_book import Named, changed_book
    from toolkit.wire.topics import check_name

    wanted = sorted({check_name(name, what="The group") for name in groups or []})
    place = home_of(home)
    _find(device, place)
    with changed_book(place) as book:
        book.devices.setdefault(device, Named()).groups = wanted
    if json:
        emit_json({"device": device, "groups": wanted})
        return
    typer.echo(f"{device} is in {', '.join(wanted)} now." if wanted else f"{device} is in no group now.")


@app.command()
def remove(
    device: Device,
    *,
    folder: Folder = DEFAULT_FOLDER,
    broker: MovedBroker = None,
    operator: Operator = DEFAULT_OPERATOR,
    keep_account: Annotated[
        bool, typer.Option("--keep-account", help="Only forget it here; it can still log in.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Throw a device out: its accounts at the broker are revoked, its connections cut at once, its names forgotten.

    A run that it takes part in goes on without it. What was trained on its data stays trained. It works from the folder
    of the broker, or on any machine in the folder of an operator's account.

    Example: hsee device remove hall-camera --folder broker
    """
    place = home_of(home)
    if keep_account:
        _find(device, place)
        accounts: list[str] = []
        if not dry_run:
            if not yes:
                confirm(f"Forget {device}? It can still log in.")
            _forget(device, place)
    else:
        accounts = _revoke(device, place, folder, broker, operator, yes=yes, dry_run=dry_run)
    if json:
        emit_json(
            {
                "device": device,
                "revoked": [] if dry_run else accounts,
                "would_revoke": accounts if dry_run else [],
            }
        )
        return
    what = f"accounts {', '.join(accounts)}" if accounts else "no account"
    typer.echo(
        f"{'Would remove' if dry_run else 'Removed'} {device}: {what} revoked at the broker, names forgotten here."
    )


def _revoke(
    device: str, home: Path, folder: Path, broker: str | None, operator: str, *, yes: bool, dry_run: bool
) -> list[str]:
    """Revoke the accounts of a device, and forget it; returns them."""
    from toolkit.access.accounts import INFER_SUFFIX, kind_of

    if kind_of(device) != "device":
        raise UsageError(
            f"{device!r} is not a device's account.", hint=f"For others: hsee broker user remove {device}"
        )
    with control_from_here(folder, broker, operator) as (opened, control):
        known = control.accounts()
        accounts = [name for name in (device, device + INFER_SUFFIX) if name in known]
        if not accounts:
            devices = {name for name in known if kind_of(name) == "device"}
            raise UsageError(
                f"The broker has no account of {device!r}.",
                hint=f"{did_you_mean(device, devices)} To forget it here only: --keep-account".strip(),
            )
        if not dry_run:
            if not yes:
                confirm(f"Revoke {', '.join(accounts)}, cut them off and forget {device}?")
            control.remove_device(device)
            for account in accounts:
                if opened is not None:
                    opened.remove_account(account)
            _forget(device, home)
    return accounts


def _forget(device: str, home: Path) -> None:
    """Forget a device's names and when it was seen; runs at work here wait for it no longer."""
    from coordinator.watching.ask import dismiss
    from coordinator.watching.device_book import changed_book
    from coordinator.watching.history import HISTORY_FILE, History
    from coordinator.watching.runs import run_folders

    for folder in run_folders(home):
        dismiss(folder, device)
    if not home.is_dir():
        return
    with changed_book(home) as book:
        book.devices.pop(device, None)
    if (home / HISTORY_FILE).is_file():
        with History(home / HISTORY_FILE) as history:
            history.forget(device)


def _devices(home: Path) -> dict[str, DeviceFacts]:
    """All devices of a home: named, seen in earlier runs, and in the runs at work now."""
    from coordinator.watching.ask import ask_status
    from coordinator.watching.device_book import read_book
    from coordinator.watching.history import HISTORY_FILE, History
    from coordinator.watching.runs import run_folders

    book = read_book(home)
    found = {name: DeviceFacts(device=name) for name in book.devices}
    if (home / HISTORY_FILE).is_file():
        with History(home / HISTORY_FILE) as history:
            for name, seen in history.seen().items():
                found[name] = DeviceFacts(device=name, run=seen.run, last_seen=seen.at, status=seen.status)
                seen.status.state = "unknown"
    for folder in run_folders(home):
        told = ask_status(folder)
        for device in told.devices if told is not None else []:
            before = found.get(device.device)
            age_s = device.last_seen_s
            found[device.device] = DeviceFacts(
                device=device.device,
                run=folder.name,
                is_live=True,
                last_seen=time.time() - age_s if age_s is not None else before.last_seen if before else None,
                status=device,
            )
    for name, facts in found.items():
        facts.label, facts.groups = book.label(name), book.groups(name)
    return dict(sorted(found.items()))


def _find(device: str, home: Path) -> DeviceFacts:
    found = _devices(home)
    if device not in found:
        raise UsageError(
            f"No device {device!r} was ever seen in {home}.",
            hint=did_you_mean(device, found) or "Devices are known from their first run on.",
            device=device,
        )
    return found[device]


def _row(facts: DeviceFacts) -> Sequence[object]:
    status = facts.status
    return [
        facts.device,
        facts.label,
        ", ".join(facts.groups),
        status.state if status is not None and facts.is_live else "",
        _ago(facts),
        facts.run,
        status.cut if status is not None else "",
        f"{status.exit_accuracy:.1%}" if status is not None and status.exit_accuracy is not None else "",
        status.software.removeprefix("hsee ") if status is not None else "",
    ]


def _ago(facts: DeviceFacts) -> str:
    return "" if facts.last_seen is None else ago(max(0.0, time.time() - facts.last_seen))


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
