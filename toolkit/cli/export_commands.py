"""``hsee export``: from what a device holds to a bundle that answers without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from toolkit.cli.output import emit_json, table
from toolkit.errors import UsageError, did_you_mean, require

if TYPE_CHECKING:
    from toolkit.export.onnx import ExportReport

RECORD_FILE = "segment.json"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or one device's folder in it.")],
    *,
    device: Annotated[
        str, typer.Option(help="Device whose segment is exported; default: every one here.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the bundles; default: RUN/export.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="Samples to check the bundle on; default: the device's own held-out ones.")
    ] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of bundles that are there.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Write the bundle of each device: its segment and exit as ONNX, checked against the trained model.

    Run it where the segment is: on the board, or on a copy of the board's run folder.

    Example: hsee export runs/run-20260101-120000 --device hall-camera
    """
    require("torch", part="export", purpose="Export")
    require("onnx", part="export", purpose="Export")
    folders = _held(run, device)
    from toolkit.export.onnx import export_held
    from toolkit.nn.segment_record import read_record
    from toolkit.runtime.samples import read_samples

    target = output or (run if (run / "devices").is_dir() else run.parent.parent) / "export"
    reports = []
    for folder in folders:
        job = read_record(folder).job
        samples = (
            read_samples(data, input_shape=job.model.input_shape, class_names=job.classes) if data else None
        )
        reports.append(export_held(folder, target / folder.name, data=samples, replace=replace))
    if json:
        emit_json({"bundles": [msgspec.to_builtins(report, enc_hook=str) for report in reports]})
        return
    _show(reports)


def _held(run: Path, device: str) -> list[Path]:
    """Folders of the held segments asked for."""
    if (run / RECORD_FILE).exists():
        return [run]
    held = sorted(path.parent for path in (run / "devices").glob(f"*/{RECORD_FILE}"))
    if not held:
        raise UsageError(
            f"{run} holds no trained segment.",
            hint="Export runs where a board's agent kept its run folder: on the board, or on a copy of that folder.",
        )
    if not device:
        return held
    chosen = [folder for folder in held if folder.name == device]
    if not chosen:
        raise UsageError(
            f"{run} holds no segment of device {device!r}.",
            hint=did_you_mean(device, [folder.name for folder in held]),
        )
    return chosen


def _show(reports: list[ExportReport]) -> None:
    table(
        [
            "device",
            "exit",
            "round",
            "KB",
            "opset",
            "samples",
            "accuracy",
            "in torch",
            "max diff",
            "ms",
            "ms in torch",
            "threshold",
        ],
        [
            [
                r.device,
                r.exit,
                r.round,
                f"{r.n_bytes / 1e3:.0f}",
                r.opset,
                r.n_samples,
                _percent(r.accuracy),
                _percent(r.torch_accuracy),
                f"{r.parity.max_difference:.1e}",
                f"{r.ms:.3f}",
                f"{r.torch_ms:.3f}",
                f"{r.threshold:.3f}",
            ]
            for r in reports
        ],
    )
    for report in reports:
        typer.echo(f"{report.folder}  sha256 {report.sha256[:16]}  threshold: {report.threshold_origin}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
