"""``hsee calibrate``: thresholds that keep a promised accuracy, found on held-out samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from toolkit.cli.options import Json
from toolkit.cli.output import emit_json, table

if TYPE_CHECKING:
    from toolkit.export.calibrate import Calibrated

SHOWN_POINTS = 10


def calibrate(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="The folder that hsee export wrote; it is changed.")
    ],
    *,
    data: Annotated[
        str,
        typer.Option(
            metavar="KIND:PATH",
            help="Held-out samples (npz:, csv:, folder: or a path); default: what the export kept of its own.",
        ),
    ] = "",
    target_drop: Annotated[
        float,
        typer.Option(min=0.01, max=100, help="Points of accuracy that early exits may cost, at 95 %."),
    ] = 1.0,
    archive: Annotated[
        bool,
        typer.Option("--archive", help="Write the bundle as one .hsee file too, in place of an older one."),
    ] = False,
    json: Json = False,
) -> None:
    """Set a bundle's temperatures and thresholds so that leaving early costs at most so many points of accuracy.

    The drop is held against the final route where the bundle knows its answers, else against the labels.

    Example: hsee calibrate runs/run-20260101-120000/export/hall-camera --target-drop 1.0
    """
    from toolkit.runtime.memory import prepare_start

    prepare_start()
    from toolkit.bundle.archive import SUFFIX, write_archive
    from toolkit.bundle.folder import open_bundle
    from toolkit.export.calibrate import calibrate as calibrate_bundle
    from toolkit.profile.board import machine_name
    from toolkit.runtime.samples import read_samples

    opened = open_bundle(bundle)
    manifest = opened.manifest
    samples = (
        read_samples(data, input_shape=manifest.input_shape, class_names=manifest.class_names)
        if data
        else None
    )
    done = calibrate_bundle(
        opened,
        samples,
        target_drop=target_drop,
        data_name=f"samples of {Path(data).name}",
        machine=machine_name(),
    )
    if archive:
        write_archive(done.bundle, bundle.with_name(bundle.name + SUFFIX), replace=True)
    if json:
        emit_json(_facts(done))
        return
    _show(done)


def _facts(done: Calibrated) -> dict[str, Any]:
    return {
        "folder": done.bundle.folder,
        "digest": done.bundle.digest,
        "temperatures": done.temperatures,
        "calibration": msgspec.to_builtins(done.record),
    }


def _show(done: Calibrated) -> None:
    record = done.record
    curve = record.curve
    step = max(1, len(curve) // SHOWN_POINTS)
    shown = sorted({*range(0, len(curve), step), record.chosen, len(curve) - 1})
    table(
        ["threshold", "leave early", "accuracy", "drop", "at most", "MMAC", "ms", ""],
        [
            [
                f"{point.threshold:.4f}",
                f"{point.exit_rate:.1%}",
                "-" if point.accuracy is None else f"{point.accuracy:.1%}",
                f"{point.drop:+.2f}",
                f"{point.drop_upper:.2f}",
                f"{point.mean_macs / 1e6:.3f}",
                f"{point.mean_ms:.3f}",
                "chosen" if index == record.chosen else "",
            ]
            for index, point in ((i, curve[i]) for i in shown)
        ],
        title=f"{record.n_samples} {record.data}; drop in points, upper bound at 95 %; times on this machine",
    )
    point = curve[record.chosen]
    reference = "" if record.reference_accuracy is None else f" ({record.reference_accuracy:.1%})"
    typer.echo(f"against {record.reference}{reference}")
    typer.echo(f"temperatures: {', '.join(f'{t:.3f}' for t in done.temperatures)}")
    typer.echo(
        f"{done.bundle.folder}  threshold {point.threshold:.4g}: {point.exit_rate:.1%} leave early, "
        f"drop {point.drop:.2f} points, at most {point.drop_upper:.2f} ({record.target_drop:g} allowed)"
    )
