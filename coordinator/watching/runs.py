"""The runs of a home: which there are, and how each stands, asked of its coordinator or read from its folder."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from coordinator.store.run_record import RECORD_FILE, committed_round, read_metrics, read_record
from coordinator.watching.ask import ask_status, is_answering
from coordinator.watching.history import HISTORY_FILE, History
from coordinator.watching.status import DeviceStatus, RunStatus
from toolkit.errors import MachineError, RunError, UsageError, did_you_mean

RUNNING = ("waiting", "training")


def run_folders(home: Path) -> list[Path]:
    """Find the run folders of a home, the newest first."""
    return sorted((path.parent for path in home.glob(f"*/{RECORD_FILE}")), key=_begun, reverse=True)


def find_run(name: str, home: Path) -> Path:
    """Find a run folder.

    Args:
        name: of a run in ``home``, or a path of a run folder; empty for the run whose coordinator is at work, else the
            newest.
        home: folder of the run folders.
    Raises: UsageError: there is none, or several are at work.
    """
    folders = run_folders(home)
    if not name:
        live = [folder for folder in folders if is_answering(folder)]
        if len(live) > 1:
            raise UsageError(
                f"{len(live)} coordinators are at work in {home}.",
                hint=f"Name the run: {', '.join(folder.name for folder in live)}",
            )
        if not folders:
            raise UsageError(
                f"There is no run in {home}.",
                hint="Start one: hsee coordinator start. Or name the folder of the runs: --home",
            )
        return (live or folders)[0]
    for folder in (home / name, Path(name)):
        if (folder / RECORD_FILE).is_file():
            return folder
    raise _no_run(name, home)


def find_folder(name: str, home: Path) -> Path:
    """Find a run folder, or whatever folder a path names: a board's copy of a run has no record, a simulation neither.

    Raises: UsageError: there is no such folder.
    """
    for folder in (home / name, Path(name)):
        if folder.is_dir():
            return folder
    raise _no_run(name, home)


def _no_run(name: str, home: Path) -> UsageError:
    return UsageError(
        f"There is no run {name!r} in {home}.",
        hint=did_you_mean(name, (folder.name for folder in run_folders(home)))
        or "hsee run list shows those there are; --home names another folder of runs.",
    )


def status_of(folder: Path) -> RunStatus:
    """Say how a run stands: as its coordinator tells, or as its folder has it.

    Raises: CheckpointError: the folder is damaged. RunError: its coordinator does not answer, or it can't be read.
    """
    return ask_status(folder) or _read_status(folder)


def settings_of(folder: Path) -> Mapping[str, Mapping[str, object]]:
    """Read the settings that a run ran with; empty where they are not there.

    Raises: RunError: the file is damaged.
    """
    path = folder / "config.toml"
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        raise RunError(f"{path} can't be read: {exc}.") from exc


def history_of(folder: Path) -> History:
    """Open the history of a run: the home's where it is complete for this run, else one read from the folder.

    Raises: CheckpointError: the folder is damaged.
    """
    path = folder.parent / HISTORY_FILE
    if path.is_file():
        try:
            kept = History(path)
        except MachineError:  # it is a copy
            return History.of_folder(folder)
        if kept.is_complete(folder):
            return kept
        kept.close()
    return History.of_folder(folder)


def _begun(folder: Path) -> tuple[str, str]:
    try:
        return read_record(folder).started, folder.name
    except (RunError, OSError):
        return "", folder.name


def _read_status(folder: Path) -> RunStatus:
    record = read_record(folder)
    settings = settings_of(folder)
    committed = committed_round(folder)
    rounds = settings.get("run", {}).get("rounds", 0)
    devices: dict[str, DeviceStatus] = {}
    for row in read_metrics(folder):
        if int(row["round"]) <= committed:
            device = devices.setdefault(row["device"], DeviceStatus(device=row["device"]))
            device.cut = row["cut"]
            device.exit_accuracy = _share(row["exit_accuracy"], device.exit_accuracy)
            device.server_accuracy = _share(row["server_accuracy"], device.server_accuracy)
    return RunStatus(
        run=record.run,
        folder=str(folder),
        is_live=False,
        status=record.status,
        detail=record.detail,
        fleet=str(settings.get("fleet", {}).get("name", "")),
        broker=str(settings.get("broker", {}).get("address", "")),
        term=record.term,
        started=record.started,
        round=committed,
        rounds=rounds if isinstance(rounds, int) else 0,
        devices=[devices[name] for name in sorted(devices)],
    )


def _share(text: str, before: float | None) -> float | None:
    return float(text) if text else before
