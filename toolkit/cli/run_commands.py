"""``hsee run list|compare|export``: runs beside each other, and their numbers for other programs."""

from __future__ import annotations

import csv
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from toolkit.cli.options import Home, Json, RunName, home_of
from toolkit.cli.output import emit_json, table
from toolkit.errors import CheckpointError, RunError, UsageError, did_you_mean

if TYPE_CHECKING:
    from coordinator.watching.history import History, Metric

FORMATS = ("csv", "json", "tensorboard")
COLUMNS = ("run", "round", "device", "name", "value")
BYTES_PER_MB = 1e6


class RunFacts(msgspec.Struct, kw_only=True):
    """One run beside others; accuracies are means over devices, of each one's last evaluated round.

    Attributes:
        is_live: whether its coordinator runs.
        down_bytes: of what was handed down to devices.
        seconds: its rounds together.
        error: why it can't be read; all else is empty then.
    """

    run: str
    folder: str
    is_live: bool = False
    status: str = ""
    started: str = ""
    round: int = 0
    rounds: int = 0
    n_devices: int = 0
    model: str = ""
    strategy: str = ""
    exit_accuracy: float | None = None
    server_accuracy: float | None = None
    up_bytes: float = 0
    down_bytes: float = 0
    seconds: float = 0
    error: str = ""


def list_runs(*, home: Home = None, json: Json = False) -> None:
    """List the runs of this home, the newest first.

    Example: hsee run list
    """
    from coordinator.watching.runs import run_folders

    place = home_of(home)
    facts = [_facts(folder) for folder in run_folders(place)]
    if json:
        emit_json({"home": place, "runs": [msgspec.to_builtins(each) for each in facts]})
        return
    if not facts:
        typer.echo(f"There is no run in {place}. Start one: hsee coordinator start")
        return
    columns = ["run", "status", "round", "devices", "model", "strategy", "exit", "server", "MB up", "started"]
    rows = [
        [
            each.run,
            each.error
            or (each.status if each.is_live or each.status not in ("waiting", "training") else "killed"),
            f"{each.round}/{each.rounds}",
            each.n_devices,
            each.model,
            each.strategy,
            _percent(each.exit_accuracy),
            _percent(each.server_accuracy),
            f"{each.up_bytes / BYTES_PER_MB:.1f}",
            each.started[:16].replace("T", " "),
        ]
        for each in facts
    ]
    table(columns, rows)


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Names or paths of two runs or more.")
    ],
    *,
    home: Home = None,
    json: Json = False,
) -> None:
    """Compare runs: what they came to, and the settings in which they differ.

    Accuracies are means over the devices, each on its own held-out samples, of its last evaluated round.

    Example: hsee run compare averaging-1 sequential-1
    """
    from coordinator.watching.runs import find_run

    place = home_of(home)
    folders = [find_run(name, place) for name in runs]
    if len({folder.resolve() for folder in folders}) < 2:  # noqa: PLR2004 - it takes two
        raise UsageError("It takes two runs to compare.", hint="hsee run list shows those there are.")
    facts = [_facts(folder) for folder in folders]
    for each in facts:
        if each.error:
            raise RunError(f"Run {each.run} can't be compared: {each.error}")
    settings = _differences(folders)
    if json:
        told = [msgspec.to_builtins(each) for each in facts]
        emit_json({"runs": told, "differences": {key: list(values) for key, values in settings.items()}})
        return
    rows: list[Sequence[object]] = [
        ["status", *(each.status for each in facts)],
        ["rounds", *(f"{each.round}/{each.rounds}" for each in facts)],
        ["devices", *(each.n_devices for each in facts)],
        ["exit accuracy", *(_percent(each.exit_accuracy) for each in facts)],
        ["server accuracy", *(_percent(each.server_accuracy) for each in facts)],
        ["MB up", *(f"{each.up_bytes / BYTES_PER_MB:.1f}" for each in facts)],
        ["MB down", *(f"{each.down_bytes / BYTES_PER_MB:.1f}" for each in facts)],
        ["seconds", *(f"{each.seconds:.1f}" for each in facts)],
        *([key, *(value or "-" for value in values)] for key, values in settings.items()),
    ]
    table(["what", *(each.run for each in facts)], rows)


def export(
    run: RunName,
    *,
    form: Annotated[
        str, typer.Option("--format", help="csv (a line a number), json or tensorboard (a folder).")
    ] = "csv",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File or folder; default: csv and json to stdout.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Write a run's numbers for other programs: every metric of every round and device, from its history.

    Example: hsee run export first --format tensorboard -o logs
    """
    from coordinator.watching.runs import find_run, history_of
    from toolkit.disk import write_atomically
    from toolkit.errors import writing

    if form not in FORMATS:
        raise UsageError(f"There is no format {form!r}.", hint=did_you_mean(form, FORMATS))
    folder = find_run(run, home_of(home))
    name = folder.resolve().name
    with history_of(folder) as history:
        metrics = history.metrics(name)
        content = _json_text(name, history) if form == "json" else ""
    if form == "tensorboard":
        if output is None:
            raise UsageError(
                "TensorBoard reads a folder.", hint="Name one: -o logs. Then: tensorboard --logdir logs"
            )
        files = _write_tensorboard(output / name, metrics)
    else:
        text = content or _csv_text(name, metrics)
        if output is None:
            if json and form == "csv":
                raise UsageError(
                    "--json and CSV can't both go to stdout.", hint="Add -o FILE, or --format json."
                )
            sys.stdout.write(text)
            return
        with writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, text.encode())
        files = [output]
    if json:
        emit_json({"run": name, "format": form, "files": files, "n_values": len(metrics)})
        return
    if form == "tensorboard":
        typer.echo(
            f"Wrote {len(metrics)} values of {len(files)} devices. Look at them: tensorboard --logdir {output}"
        )
    else:
        typer.echo(f"Wrote {len(metrics)} values to {output}.")


def _facts(folder: Path) -> RunFacts:
    """Read what a run came to; one that can't be read says so in its row."""
    from coordinator.store.run_record import committed_round, read_metrics
    from coordinator.watching.runs import settings_of, status_of

    facts = RunFacts(run=folder.name, folder=str(folder))
    try:
        status = status_of(folder)
        settings = settings_of(folder).get("run", {})
        seconds: dict[str, float] = {}
        accuracies: dict[str, dict[str, float]] = {"exit_accuracy": {}, "server_accuracy": {}}
        committed = committed_round(folder)
        for row in read_metrics(folder):
            if int(row["round"]) > committed:
                continue
            facts.up_bytes += float(row["up_bytes"])
            facts.down_bytes += float(row.get("down_bytes") or 0)  # earlier versions did not write it
            seconds[row["round"]] = float(row["seconds"])
            for column, latest in accuracies.items():
                if row[column]:
                    latest[row["device"]] = float(row[column])
    except (RunError, CheckpointError, OSError, ValueError) as exc:
        facts.error = f"can't be read: {exc}"
        return facts
    facts.is_live, facts.status, facts.started = status.is_live, status.status, status.started
    facts.round, facts.rounds, facts.n_devices = status.round, status.rounds, len(status.devices)
    facts.model, facts.strategy = str(settings.get("model", "")), str(settings.get("strategy", ""))
    facts.exit_accuracy = _mean(accuracies["exit_accuracy"])
    facts.server_accuracy = _mean(accuracies["server_accuracy"])
    facts.seconds = round(sum(seconds.values()), 3)
    return facts


def _differences(folders: Sequence[Path]) -> dict[str, list[str | None]]:
    """Settings of the section ``run`` in which runs differ; None where a run does not have it."""
    from coordinator.watching.runs import settings_of

    found = [
        {key: str(value) for key, value in settings_of(folder).get("run", {}).items()} for folder in folders
    ]
    keys = sorted({key for settings in found for key in settings})
    values = {key: [settings.get(key) for settings in found] for key in keys}
    return {f"run.{key}": each for key, each in values.items() if len(set(each)) > 1}


def _csv_text(run: str, metrics: Sequence[Metric]) -> str:
    text = StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows((run, m.round, m.device, m.name, m.value) for m in metrics)
    return text.getvalue()


def _json_text(run: str, history: History) -> str:
    told = {
        "run": run,
        "metrics": [msgspec.to_builtins(metric) for metric in history.metrics(run)],
        "events": [msgspec.to_builtins(event) for event in history.events(run)],
    }
    return msgspec.json.format(msgspec.json.encode({"success": True, **told})).decode() + "\n"


def _write_tensorboard(folder: Path, metrics: Sequence[Metric]) -> list[Path]:
    """Write an event file a device; one that this command wrote before is replaced."""
    from coordinator.watching.tensorboard import event_file
    from toolkit.disk import write_atomically
    from toolkit.errors import writing

    written = []
    for device, scalars in _of_devices(metrics).items():
        place = folder / device
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
        path = place / "events.out.tfevents.0.hsee"
        write_atomically(path, event_file(scalars, wall_time_s=time.time()))
        written.append(path)
    return written


def _of_devices(metrics: Sequence[Metric]) -> Mapping[str, list[tuple[int, str, float]]]:
    found: dict[str, list[tuple[int, str, float]]] = {}
    for metric in metrics:
        found.setdefault(metric.device, []).append((metric.round, metric.name, metric.value))
    return found


def _mean(values: Mapping[str, float]) -> float | None:
    return statistics.fmean(values.values()) if values else None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
