"""``hsee export``: from what a device holds to a bundle that answers without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from toolkit.cli.options import Home, Json, home_of
from toolkit.cli.output import emit_json, table
from toolkit.errors import UsageError, did_you_mean, require

if TYPE_CHECKING:
    from toolkit.export.final_route import ServerWeights
    from toolkit.export.report import ExportReport

RECORD_FILE = "segment.json"
MIN_CLASSES = 2


def export(  # noqa: PLR0913 - a command's options
    run: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run's name, or a path of its folder or of one device's in it."),
    ] = "",
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
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help="Add the coordinator's layers and the exits that it trained, so that the whole network answers offline.",
        ),
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Quantise too, and run the faster that keeps the accuracy on this machine."
        ),
    ] = False,
    target_drop: Annotated[
        float, typer.Option(min=0.01, max=100, help="Points of accuracy that int8 may cost, at 95 %.")
    ] = 1.0,
    archive: Annotated[
        bool, typer.Option("--archive", help="Write each bundle as one .hsee file too.")
    ] = False,
    random: Annotated[
        bool, typer.Option("--random", help="No run: exits of an untrained --model, for hsee profile --onnx.")
    ] = False,
    model: Annotated[str, typer.Option(help="With --random: resnet_small, resnet18, mlp, ...")] = "",
    input_shape: Annotated[
        str, typer.Option("--input", metavar="CxHxW", help="With --random: shape of a sample.")
    ] = "",
    classes: Annotated[int, typer.Option(help="With --random: number of classes.")] = 0,
    exit_head: Annotated[str, typer.Option(help="With --random: auto, conv or pooled.")] = "auto",
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="With --random: option of the model.")
    ] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Write the bundle of each device: its segment and exit as ONNX, checked against the trained model.

    Run it where the segment is: on the board, or on a copy of the board's run folder. Where the coordinator kept the
    run, its layers' answers to the held-out samples go into the bundle, for hsee calibrate.

    Example: hsee export run-20260101-120000 --device hall-camera
    """
    require("torch", part="export", purpose="Export")
    require("onnx", part="export", purpose="Export")
    if random:
        if run:
            raise UsageError("--random exports no run: give the run, or --random with --model.")
        _export_random(output, model, input_shape, classes, option or [], exit_head=exit_head, json=json)
        return
    if not run:
        raise UsageError("Which run?", hint="hsee export RUN, or --random --model for a run that never was.")
    from coordinator.watching.runs import find_folder
    from toolkit.export.onnx import export_held
    from toolkit.export.pieces import ExportOptions
    from toolkit.nn.segment_record import read_record
    from toolkit.runtime.samples import read_samples

    folder = find_folder(run, home_of(home))
    folders = _held(folder, device)
    whole = folder if (folder / "devices").is_dir() else folder.parent.parent
    target = output or whole / "export"
    server = _server_weights(whole)
    options = ExportOptions(replace=replace, int8=int8, target_drop=target_drop, archive=archive)
    reports = []
    for folder in folders:
        job = read_record(folder).job
        samples = (
            read_samples(data, input_shape=job.model.input_shape, class_names=job.classes) if data else None
        )
        reports.append(
            export_held(folder, target / folder.name, data=samples, server=server, full=full, options=options)
        )
    if json:
        emit_json({"bundles": [msgspec.to_builtins(report, enc_hook=str) for report in reports]})
        return
    _show(reports)


def _export_random(
    output: Path | None,
    model: str,
    input_shape: str,
    classes: int,
    options: list[str],
    *,
    exit_head: str,
    json: bool,
) -> None:
    if not (model and input_shape and classes >= MIN_CLASSES):
        raise UsageError(
            "--random needs --model, --input and --classes from 2.",
            hint="hsee export --random --model resnet_small --input 1x8x8 --classes 10 -o exits",
        )
    from toolkit.cli.model_spec import model_spec
    from toolkit.export.random_exits import export_random_exits

    folder = output or Path("exits")
    paths = export_random_exits(folder, model_spec(model, input_shape, classes, options), exit_head=exit_head)
    if json:
        emit_json({"files": [str(path) for path in paths]})
        return
    for path in paths:
        typer.echo(f"{path}  {path.stat().st_size / 1e3:.0f} KB")
    typer.echo(f"Random weights, for timing only. On the board: hsee profile ... --onnx {folder}")


def _server_weights(home: Path) -> ServerWeights | None:
    """The coordinator's layers, where this folder is its run folder too."""
    from coordinator.store.checkpoints import newest_generation
    from toolkit.export.final_route import ServerWeights

    generation = newest_generation(home / "checkpoints")
    if generation is None:
        return None
    trained = generation.state().server
    return ServerWeights(
        generation.tensors(),
        f"the coordinator's layers of round {generation.round}",
        exits=trained.exits,
        exit_head=trained.exit_head,
    )


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
                s.exit,
                r.round,
                f"{s.n_bytes / 1e3:.0f}",
                s.opset,
                r.n_samples,
                _percent(s.accuracy),
                _percent(s.torch_accuracy),
                f"{s.parity.max_difference:.1e}",
                f"{s.ms:.3f}",
                f"{s.torch_ms:.3f}",
                f"{s.threshold:.3f}",
            ]
            for r in reports
            for s in r.segments
        ],
    )
    for report in reports:
        for segment in report.segments:
            typer.echo(
                f"{report.folder / segment.file}  sha256 {segment.sha256[:16]}  threshold: {segment.threshold_origin}"
            )
            if segment.int8 is not None:
                int8 = segment.int8
                typer.echo(
                    f"{report.folder / int8.file}  {int8.n_bytes / 1e3:.0f} KB of {segment.n_bytes / 1e3:.0f}, "
                    f"{_percent(int8.accuracy)} right (drop {int8.drop_points:.2f} points, at most "
                    f"{int8.drop_upper_points:.2f}), {int8.ms:.3f} ms of {int8.float32_ms:.3f}  "
                    f"default {segment.default}: {segment.default_reason}"
                )
        if report.reference:
            typer.echo(f"{report.folder}  keeps {report.reference} ({_percent(report.reference_accuracy)})")
        if report.archive is not None:
            typer.echo(f"{report.archive}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
