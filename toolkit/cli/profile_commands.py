"""``hsee profile`` and ``hsee plan``: measure boards, then choose their cut layers and say why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from toolkit.cli.output import emit_json, table
from toolkit.errors import MachineError, UsageError, did_you_mean
from toolkit.wire.job import ModelSpec, Scalar

if TYPE_CHECKING:
    from toolkit.plan.cost import DeviceInput, ServerInput
    from toolkit.plan.schema import Plan
    from toolkit.profile.schema import CutRow, Profile

Json = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
ASSUMED_SERVER_GFLOP_PER_S = 20.0
DEFAULT_BATCHES = 100


def profile(  # noqa: PLR0913 - a command's options
    *,
    model: Annotated[str, typer.Option(help="Model: resnet_small, resnet18, mlp, ...")],
    input_shape: Annotated[str, typer.Option("--input", metavar="CxHxW", help="Shape of a sample: 1x8x8.")],
    classes: Annotated[int, typer.Option(min=2, help="Number of classes.")],
    batch: Annotated[int, typer.Option(min=2, max=65_536, help="Samples a step.")] = 32,
    exit_head: Annotated[str, typer.Option(help="Exit head: auto, conv or pooled.")] = "auto",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Option of the model, as width=32; may be given again."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that torch computes with.")] = 1,
    emulate: Annotated[
        str, typer.Option(metavar="CPU%,MB", help="Stay within limits: percent of one core, MB of memory.")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Short measurements in one process.")] = False,
    link: Annotated[
        str, typer.Option(help="Link to note down, as assumed: ethernet, wifi, lte-m, or a file.")
    ] = "",
    name: Annotated[str, typer.Option(help="Name of the profile.")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; default: NAME.toml.")] = None,
    json: Json = False,
) -> None:
    """Measure what training takes on this board at every possible cut: time, memory, FLOP.

    Each cut is trained for a moment in a process of its own, so that a crash or a lack of memory costs one row.

    Example: hsee profile --model resnet_small --input 1x8x8 --classes 10 --emulate 20%,512 --quick
    """
    from toolkit.profile.limits import parse_limits
    from toolkit.profile.locate import find_link
    from toolkit.profile.measure import MeasureInterruptedError, default_name, measure
    from toolkit.profile.schema import read_link, write_profile

    spec = _model_spec(model, input_shape, classes, option or [])
    limits = parse_limits(emulate) if emulate else None
    name = name or default_name(spec, limits)
    path = output or Path(f"{name}.toml")
    if not path.parent.is_dir():
        raise UsageError(
            f"There is no folder {path.parent}.", hint="Make it first, or choose another with -o."
        )
    numbers = count(1)

    def tell(row: CutRow, n_rows: int) -> None:
        what = f"failed: {row.failed}" if row.failed else f"{row.step_ms_mean:.3g} ms a step"
        typer.echo(f"cut {next(numbers)} of {n_rows}, {row.cut}: {what}", err=True)

    try:
        made = measure(
            spec,
            batch_size=batch,
            exit_head=exit_head,
            limits=limits,
            quick=quick,
            threads=threads,
            name=name,
            link=read_link(find_link(link)) if link else None,
            on_row=None if json else tell,
        )
    except MeasureInterruptedError as exc:
        write_profile(path, exc.profile)
        typer.echo(f"Stopped. What was measured is in {path}, marked partial.", err=True)
        raise
    write_profile(path, made)
    if json:
        emit_json({"file": path, "profile": msgspec.to_builtins(made)})
    else:
        _print_profile(made, path)
    if all(row.failed for row in made.cuts):
        raise MachineError(
            f"No cut could be trained on this board: {made.cuts[0].failed}.",
            hint="Training needs about 512 MB. Such a board can still answer with an exported exit: hsee infer",
        )


def plan(
    profiles: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]PROFILE...", help="Profiles by file or name, one a device."),
    ],
    *,
    batches: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[DEVICE=]N", help=f"Batches a device trains a round; default {DEFAULT_BATCHES}."
        ),
    ] = None,
    codec: Annotated[str, typer.Option(help="Codec of activations: float32, float16, int8.")] = "float32",
    pin: Annotated[
        list[str] | None, typer.Option(metavar="DEVICE=CUT", help="Give a device's cut; may be given again.")
    ] = None,
    memory_share: Annotated[float, typer.Option(help="Share of a board's memory for training.")] = 0.8,
    slack: Annotated[float, typer.Option(help="How much longer a round may be for deeper exits.")] = 0.05,
    server_gflop_per_s: Annotated[
        float | None, typer.Option(help="Coordinator's training speed in GFLOP/s, 2 x MAC.")
    ] = None,
    measure_server: Annotated[
        bool, typer.Option("--measure-server", help="This machine is the coordinator: measure it.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the plan goes.")] = Path("plan.toml"),
    json: Json = False,
) -> None:
    """Choose every device's cut layer for the shortest round, and say why.

    Example: hsee plan kitchen=small.toml garage=strong.toml --batches garage=200 --pin kitchen=stem
    """
    from toolkit.plan.choose import choose_cuts
    from toolkit.plan.schema import write_plan

    devices = _devices(profiles, batches or [], codec)
    made = choose_cuts(
        devices,
        server=_server(devices, server_gflop_per_s, measure=measure_server),
        memory_share=memory_share,
        slack=slack,
        pins=dict(_pair(text, "--pin", "DEVICE=CUT") for text in pin or []),
    )
    write_plan(output, made)
    if json:
        emit_json({"file": output, "plan": msgspec.to_builtins(made)})
    else:
        _print_plan(made, output)


def _model_spec(model: str, input_shape: str, classes: int, options: Sequence[str]) -> ModelSpec:
    given = {
        "name": model,
        "input_shape": [int(side) if side.isdecimal() else side for side in input_shape.split("x")],
        "n_classes": classes,
        "options": {
            key: _scalar(value) for key, value in (_pair(o, "--option", "NAME=VALUE") for o in options)
        },
    }
    try:
        return msgspec.convert(given, ModelSpec)
    except msgspec.ValidationError as exc:
        raise UsageError(
            f"That is no model: {exc}.", hint="An input shape is written 1x8x8 (channels, height, width)."
        ) from exc


def _scalar(text: str) -> Scalar:
    try:
        value: Scalar = msgspec.json.decode(text, type=int | float | bool)
    except msgspec.DecodeError:
        return text
    return value


def _pair(text: str, flag: str, form: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise UsageError(f"{flag} is written {form}, not {text!r}.")
    return key, value


def _devices(profiles: Sequence[str], batches: Sequence[str], codec: str) -> list[DeviceInput]:
    from toolkit.plan.cost import DeviceInput
    from toolkit.profile.locate import find_profile
    from toolkit.profile.schema import read_profile

    found = {}
    for text in profiles:
        name, equals, place = text.partition("=")
        known = read_profile(find_profile(place if equals else text))
        name = name if equals else known.name
        if name in found:
            raise UsageError(
                f"Two devices are called {name!r}.", hint=f"Name them: {name}-1={text} {name}-2={text}"
            )
        found[name] = known
    default, own = _batches(batches, found)
    return [
        DeviceInput(name=name, profile=known, n_batches=own.get(name, default), codec=codec)
        for name, known in found.items()
    ]


def _batches(texts: Sequence[str], names: dict[str, Profile]) -> tuple[int, dict[str, int]]:
    default, own = DEFAULT_BATCHES, {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not number.isdecimal() or int(number) < 1:
            raise UsageError(f"--batches is written N or DEVICE=N with N from 1, not {text!r}.")
        if not equals:
            default = int(number)
        elif name in names:
            own[name] = int(number)
        else:
            raise UsageError(f"--batches names an unknown device {name!r}.", hint=did_you_mean(name, names))
    return default, own


def _server(devices: Sequence[DeviceInput], gflop_per_s: float | None, *, measure: bool) -> ServerInput:
    from toolkit.plan.cost import ServerInput
    from toolkit.profile.measure import measure_server

    if measure:
        first = devices[0].profile
        if gflop_per_s is not None:
            raise UsageError("--measure-server and --server-gflop-per-s exclude each other.")
        if first.model is not None and first.training is not None:
            return ServerInput(step_ms=measure_server(first.model, batch_size=first.training.batch_size))
    if gflop_per_s is None:
        return ServerInput(flop_per_s=ASSUMED_SERVER_GFLOP_PER_S * 1e9, assumed=True)
    if not (math.isfinite(gflop_per_s) and gflop_per_s > 0):
        raise UsageError("--server-gflop-per-s is above 0.")
    return ServerInput(flop_per_s=gflop_per_s * 1e9)


def _print_profile(made: Profile, path: Path) -> None:
    from toolkit.profile.schema import BYTES_PER_MB

    board, limits = made.board, made.provenance.limits
    cores = f"{board.n_cores} core{'s' if board.n_cores > 1 else ''}"
    typer.echo(
        f"{board.hardware or board.cpu}, {board.architecture}, {cores}, {board.memory_bytes / BYTES_PER_MB:.0f} MB"
    )
    if limits is not None:
        typer.echo(
            f"emulated: {limits.cpu_percent:g} % of one core, {limits.memory_mb} MB, by {limits.mechanism}"
        )
    columns = ["cut", "step ms", "p50", "p95", "peak MB", "MFLOP", "parameters", "KB a sample"]
    rows: list[list[object]] = [
        [row.cut, *[""] * (len(columns) - 1)]
        if row.failed
        else [
            row.cut,
            *(f"{ms:.2f}" for ms in (row.step_ms_mean, row.step_ms_p50, row.step_ms_p95)),
            f"{row.peak_memory_mb:.0f}",
            f"{row.flop / 1e6:.2f}",
            row.n_parameters,
            f"{row.activation_bytes / 1024:.1f}",
        ]
        for row in made.cuts
    ]
    table(columns, rows)
    for row in made.cuts:
        if row.failed:
            typer.echo(f"{row.cut} was not measured: {row.failed}")
    typer.echo(
        "A step is one batch forward, backward and optimizer. MFLOP: 2 x MAC, forward, one sample.\n"
        f"Written to {path}"
    )


def _print_plan(made: Plan, path: Path) -> None:
    from toolkit.plan.reason import duration

    columns = ["device", "cut", "compute ms", "upload ms", "server ms", "round s", "shallower", "deeper"]

    rows = [
        [
            d.device,
            d.cut,
            *(f"{ms:.2f}" for ms in (d.step_ms, d.upload_ms, d.server_ms)),
            f"{d.device_ms / 1e3:.2f}",
            *(f"{n.cut}: {duration(n.round_ms)}" if n else "" for n in (d.shallower, d.deeper)),
        ]
        for d in made.devices
    ]
    table(columns, rows)
    for d in made.devices:
        typer.echo(f"{d.device}: {d.cut}, {d.reason}")
        for wrong in d.infeasible:
            typer.echo(f"  not {wrong.cut}: {wrong.detail}; what would help: {wrong.fix}")
    typer.echo(f"Round: {duration(made.round_ms)}, set by {_set_by(made)}. Server: {made.server_basis}.")
    if made.links_assumed:
        typer.echo(f"Links assumed, not measured: {', '.join(made.links_assumed)}")
    typer.echo(f"Written to {path}")


def _set_by(made: Plan) -> str:
    return "the server" if made.bottleneck == "server" else f"device {made.bottleneck}"
