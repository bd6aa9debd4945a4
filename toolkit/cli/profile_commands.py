"""``hsee profile`` and ``hsee plan``: measure boards, then choose their cut layers and say why."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from toolkit.cli.broker_flags import broker_flags
from toolkit.cli.model_spec import model_spec, pair
from toolkit.cli.options import CaFile, Insecure, Json, PasswordFile, Quiet
from toolkit.cli.output import emit_json
from toolkit.cli.profile_display import measuring_display, print_plan, print_profile
from toolkit.errors import MachineError, UsageError, did_you_mean

if TYPE_CHECKING:
    from toolkit.plan.cost import DeviceInput, ServerInput
    from toolkit.profile.schema import Profile
    from toolkit.wire.job import SyncSpec

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
    cuts: Annotated[
        str,
        typer.Option(
            metavar="CUT,CUT",
            help="Measure these only; a plan estimates cuts between them. Default: up to 8.",
        ),
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Short measurements in one process.")] = False,
    onnx: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Exported exit to time, or a folder such as a bundle; again for more."
        ),
    ] = None,
    link: Annotated[
        str, typer.Option(help="Link to note down, as assumed: ethernet, wifi, lte-m, or a file.")
    ] = "",
    broker: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Measure the link through this broker, or mqtts://HOST.")
    ] = "",
    username: Annotated[
        str | None, typer.Option(help="This board's account there; its agent must not run meanwhile.")
    ] = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    insecure: Insecure = None,
    fleet: Annotated[str | None, typer.Option(help="Fleet whose topics the account may use.")] = None,
    codec: Annotated[str, typer.Option(help="Codec of what is sent to the broker.")] = "float32",
    name: Annotated[str, typer.Option(help="Name of the profile.")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; default: NAME.toml.")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure what training takes on this board at every possible cut: time, memory, FLOP; and the way to the broker.

    Each cut is trained for a moment in a process of its own, so that a crash or a lack of memory costs one row. It
    takes at most three minutes.

    Example: hsee profile --model resnet_small --input 1x8x8 --classes 10 --emulate 20%,512 --quick
    """
    from toolkit.cli.profile_link import BrokerLink
    from toolkit.profile.inference import find_onnx
    from toolkit.profile.limits import parse_limits
    from toolkit.profile.link import read_link
    from toolkit.profile.locate import find_link
    from toolkit.profile.measure import MeasureInterruptedError, default_name, measure

    spec = model_spec(model, input_shape, classes, option or [])
    limits = parse_limits(emulate) if emulate else None
    name = name or default_name(spec, limits)
    path = _writable(output or Path(f"{name}.toml"))
    if link and broker:
        raise UsageError("--link notes an assumed link down and --broker measures it: give one of them.")
    flags = broker_flags(
        broker or None,
        username=username,
        password_file=password_file,
        ca_file=ca_file,
        insecure=insecure,
        fleet=fleet,
    )
    way = (
        BrokerLink.from_flags(flags, device=name, codec=codec, quick=quick, limits=limits) if broker else None
    )
    assumed = read_link(find_link(link)) if link else None
    files = find_onnx(onnx or [])
    if way is not None:
        way.check()
    with measuring_display(quiet=json or quiet) as tell:
        try:
            made = measure(
                spec,
                batch_size=batch,
                exit_head=exit_head,
                limits=limits,
                quick=quick,
                threads=threads,
                name=name,
                link=assumed,
                onnx=files,
                broker=way.for_child() if way is not None else None,
                cuts=[cut for cut in cuts.split(",") if cut],
                on_row=tell,
            )
        except MeasureInterruptedError as exc:
            _write(path, exc.profile)
            typer.echo(f"Stopped. What was measured is in {path}, marked partial.", err=True)
            raise
    made, lost = way.measure(made) if way is not None else (made, None)
    _write(path, made)
    if json and lost is None:
        emit_json({"file": path, "profile": msgspec.to_builtins(made)})
    elif not json:
        print_profile(made)
        typer.echo(f"Written to {path}")
    if lost is not None:
        raise lost
    _refuse_useless(made)


def plan(  # noqa: PLR0913 - a command's options
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
    batch: Annotated[
        int | None,
        typer.Option(min=2, max=65_536, help="Samples a step, where profiles were measured with others."),
    ] = None,
    codec: Annotated[
        str, typer.Option(help="Codec of activations: float32, float16, int8, each +zstd.")
    ] = "float32",
    client_sync: Annotated[
        str,
        typer.Option(help="Segments made one between rounds: none, same_cut or prefix; weights travel then."),
    ] = "none",
    sync_every: Annotated[int, typer.Option(min=1, help="Rounds from one such average to the next.")] = 1,
    sync_codec: Annotated[str, typer.Option(help="Codec of these weights.")] = "float32",
    pin: Annotated[
        list[str] | None, typer.Option(metavar="DEVICE=CUT", help="Give a device's cut; may be given again.")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="What to make small: makespan (the fleet's round), device-time or bytes.")
    ] = "makespan",
    deadline: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Longest round; cuts that miss it are ruled out.")
    ] = None,
    memory_share: Annotated[float, typer.Option(help="Share of a board's memory for training.")] = 0.8,
    min_exit_accuracy: Annotated[
        float, typer.Option(metavar="SHARE", help="Least accuracy of an exit in the model's profile: 0.97.")
    ] = 0.0,
    model_profile: Annotated[
        str, typer.Option(help="Accuracy of the model's exits by cut: resnet_small-digits, or a file.")
    ] = "",
    slack: Annotated[float, typer.Option(help="How much more may be spent on deeper exits.")] = 0.05,
    server_gflop_per_s: Annotated[
        float | None, typer.Option(help="Coordinator's training speed in GFLOP/s, 2 x MAC.")
    ] = None,
    measure_server: Annotated[
        bool, typer.Option("--measure-server", help="This machine is the coordinator: measure it.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the plan goes.")] = Path("plan.toml"),
    json: Json = False,
) -> None:
    """Choose every device's cut layer, and say why; a coordinator takes it with --plan.

    Example: hsee plan kitchen=small.toml garage=strong.toml --batches garage=200 --pin kitchen=stem
    """
    from toolkit.plan.choose import choose_cuts
    from toolkit.plan.cost import OBJECTIVES
    from toolkit.plan.schema import write_plan
    from toolkit.profile.locate import find_model
    from toolkit.profile.model_profile import read_model_profile
    from toolkit.wire.job import Distillation, influence, influence_line

    aim = next((known for known in OBJECTIVES if known == objective), None)
    if aim is None:
        raise UsageError(f"There is no objective {objective!r}.", hint=did_you_mean(objective, OBJECTIVES))
    sync = _sync(client_sync, sync_every, sync_codec)
    devices = _devices(profiles, batches or [], codec, batch_size=batch, sync=sync)
    made = choose_cuts(
        devices,
        server=_server(devices, server_gflop_per_s, measure=measure_server),
        objective=aim,
        memory_share=memory_share,
        slack=slack,
        deadline_ms=None if deadline is None else deadline * 1e3,
        min_exit_accuracy=min_exit_accuracy,
        exits=read_model_profile(find_model(model_profile)) if model_profile else None,
        pins=dict(pair(text, "--pin", "DEVICE=CUT") for text in pin or []),
    )
    write_plan(output, made)
    if json:
        influenced = {"server_influences_devices": sync.mode != "none"}
        emit_json({"file": output, "plan": msgspec.to_builtins(made), **influenced})
    else:
        print_plan(made)
        typer.echo(influence_line(influence(sync, Distillation())))
        typer.echo(f"Written to {output}")


def _writable(path: Path) -> Path:
    """Refuse a file that could not be written, before minutes are spent on it."""
    if not path.parent.is_dir():
        raise UsageError(
            f"There is no folder {path.parent}.", hint="Make it first, or choose another with -o."
        )
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", hint=f"Name a file in it: -o {path / 'board.toml'}")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(
            f"Nothing can be written in {path.parent.resolve()}.", hint="Choose another file with -o."
        )
    return path


def _write(path: Path, made: Profile) -> None:
    """Write a profile; where that fails, print it: what took minutes is not lost to a full disk."""
    from toolkit.profile.schema import profile_text, write_profile

    try:
        write_profile(path, made)
    except MachineError:
        typer.echo(profile_text(made), err=True)
        typer.echo("The profile above could not be written; it can be copied from here.", err=True)
        raise


def _refuse_useless(made: Profile) -> None:
    """Fail where nothing that was asked for could be measured."""
    if made.inference or any(not row.failed for row in made.cuts):
        return
    why = made.cuts[0].failed if made.cuts else f"it has {made.board.memory_bytes / 2**20:.0f} MB of memory"
    raise MachineError(
        f"No cut can be trained on this board: {why}.",
        hint="Training needs about 512 MB. Such a board can still answer with an exported exit: hsee infer",
    )


def _devices(
    profiles: Sequence[str],
    batches: Sequence[str],
    codec: str,
    *,
    batch_size: int | None,
    sync: SyncSpec,
) -> list[DeviceInput]:
    from toolkit.plan.cost import DeviceInput
    from toolkit.plan.estimate import for_batch_size
    from toolkit.profile.locate import find_profile
    from toolkit.profile.schema import read_profile

    found = {}
    for text in profiles:
        name, equals, place = text.partition("=")
        known = read_profile(find_profile(place if equals else text))
        known = known if batch_size is None else for_batch_size(known, batch_size)
        name = name if equals else known.name
        if name in found:
            raise UsageError(
                f"Two devices are called {name!r}.", hint=f"Name them: {name}-1={text} {name}-2={text}"
            )
        found[name] = known
    default, own = _batches(batches, found)
    return [
        DeviceInput(name=name, profile=known, n_batches=own.get(name, default), codec=codec, sync=sync)
        for name, known in found.items()
    ]


def _sync(mode: str, every: int, codec: str) -> SyncSpec:
    from toolkit.wire.job import SyncSpec

    try:
        return msgspec.convert({"mode": mode, "every": every, "codec": codec}, SyncSpec)
    except msgspec.ValidationError as exc:
        raise UsageError(
            f"There is no --client-sync {mode!r}.", hint=did_you_mean(mode, ("none", "same_cut", "prefix"))
        ) from exc


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
