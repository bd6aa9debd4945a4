"""``hsee run show``: where a run stands, what it came to, and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolkit.cli.options import Home, Json, home_of
from toolkit.cli.output import emit_json, table
from toolkit.errors import MissingPartError, UsageError

if TYPE_CHECKING:
    from toolkit.plots.draw import Drawn
    from toolkit.plots.told import RunTold

FORMATS = ("svg", "png")
BYTES_PER_MB = 1e6


def show(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's name, or a path of its folder or a simulation's.")
    ],
    *,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where pictures go; default: RUN/pictures.")
    ] = None,
    picture_format: Annotated[str, typer.Option("--format", help="Of the pictures: svg or png.")] = "svg",
    home: Home = None,
    json: Json = False,
) -> None:
    """Show where a run stands and what its devices came to; draw learning curves, routes, thresholds and the cut map.

    Example: hsee run show run-20260101-120000 --format png
    """
    from coordinator.watching.runs import find_folder
    from toolkit.plots.told import read_runs

    folder = find_folder(run, home_of(home))
    runs = read_runs(folder)
    devices = [row for run in runs for row in _last_rows(run)]
    drawn = draw_pictures(folder, pictures, picture_format)
    if json:
        emit_json(
            {
                "folder": folder,
                "runs": [{"run": run.name, "rounds": _rounds(run), "cuts": run.cuts} for run in runs],
                "devices": devices,
                **pictures_as_json(drawn),
            }
        )
        return
    for told in runs:
        typer.echo(f"{told.name}: {_rounds(told)} rounds, {len(told.cuts)} devices")
    if devices:
        columns = ["run", "device", "cut after", "exit", "server", "further exits", "MB up", "MB down"]
        table(columns, [_cells(row) for row in devices], title="last round, own held-out samples")
    say_pictures(drawn)


def draw_pictures(folder: Path, target: Path | None, picture_format: str) -> Drawn:
    """Draw a run folder; without matplotlib nothing is drawn, which is no error, and it is said.

    Raises: UsageError: another format. HseeError: as :func:`toolkit.plots.draw.draw_run`.
    """
    from toolkit.plots.draw import Drawn, draw_run

    check_format(picture_format)
    try:
        return draw_run(folder, target, file_format="png" if picture_format == "png" else "svg")
    except MissingPartError as exc:
        if target is not None:  # asked for by name
            raise
        return Drawn((), (f"no pictures: {exc} {exc.hint}",))


def check_format(picture_format: str) -> None:
    """Refuse a format that nothing is drawn in.

    Raises: UsageError: it is neither svg nor png.
    """
    if picture_format not in FORMATS:
        raise UsageError(f"Pictures are svg or png, not {picture_format!r}.", hint="--format png")


def pictures_as_json(drawn: Drawn) -> dict[str, Any]:
    """What a command's JSON says of its pictures."""
    return {"pictures": drawn.files, "left_out": drawn.left_out}


def say_pictures(drawn: Drawn) -> None:
    """Say which pictures were written, and what could not be drawn."""
    if drawn.files:
        names = ", ".join(file.name for file in drawn.files)
        typer.echo(f"Pictures in {drawn.files[0].parent}: {names}")
    for reason in drawn.left_out:
        typer.echo(reason)


def _rounds(run: RunTold) -> int:
    return max((row.round for row in run.rounds), default=run.result.rounds if run.result else 0)


def _last_rows(run: RunTold) -> list[dict[str, Any]]:
    """Each device's newest row."""
    from coordinator.store.run_record import further_exits

    newest = {row.device: row for row in run.rounds}
    return [
        {
            "run": run.name,
            "device": row.device,
            "cut": row.cut,
            "exit_accuracy": row.exit_accuracy,
            "server_accuracy": row.server_accuracy,
            "further_exits": {
                stage: float(share) for stage, share in further_exits(row.further_exits).items()
            },
            "up_bytes": row.up_bytes,
            "weights_up_bytes": row.weights_up_bytes,
            "down_bytes": row.down_bytes,
        }
        for row in newest.values()
    ]


def _cells(row: dict[str, Any]) -> Sequence[str]:
    shares = ["-" if row[key] is None else f"{row[key]:.1%}" for key in ("exit_accuracy", "server_accuracy")]
    further = ", ".join(f"{stage} {share:.1%}" for stage, share in row["further_exits"].items()) or "-"
    traffic = [f"{row[key] / BYTES_PER_MB:.2f}" for key in ("up_bytes", "down_bytes")]
    return [row["run"], row["device"], row["cut"], *shares, further, *traffic]
