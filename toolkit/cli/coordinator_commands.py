"""``hsee coordinator start``, ``hsee run resume``: run a coordinator and show the run happening."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.broker_flags import broker_flags
from toolkit.cli.options import (
    Broker,
    CaFile,
    Home,
    Insecure,
    PasswordFile,
    Quiet,
    RunName,
    Username,
    Verbose,
    home_of,
)
from toolkit.errors import RunError, UsageError, require
from toolkit.journal import log_all
from toolkit.signals import StopSignals, TerminatedError
from toolkit.wire.topics import Topics, check_name

if TYPE_CHECKING:
    from coordinator.fleet.events import RunEvent
    from coordinator.store.run_folder import RunFolder
    from toolkit.cli.run_display import RunDisplay
    from toolkit.config import Settings
    from toolkit.link.base import BrokerAddress

POLL_S = 0.02
MIN_CLASSES = 2
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")]
app = typer.Typer(no_args_is_help=True, help="The part that trains the rest of the network.")
run_app = typer.Typer(no_args_is_help=True, help="Runs and their folders.")


@app.command()
def start(  # noqa: PLR0913 - a command's options
    *,
    broker: Broker = None,
    fleet: Annotated[str | None, typer.Option(help="Fleet to serve.")] = None,
    run: Annotated[str, typer.Option(help="Name of the run; default: the time of day.")] = "",
    devices: Annotated[int | None, typer.Option(min=1, help="Devices to wait for.")] = None,
    wait: Annotated[float | None, typer.Option(metavar="SECONDS", help="How long to wait for them.")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="How the server learns: sequential, averaging, consolidated.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds to train.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Network to train: resnet_small, resnet18, resnet34, mlp, cnn1d, python:MODULE:MAKE."
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Ordered class list; default: the union of the devices'."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="All randomness comes from it.")] = None,
    codec: Annotated[
        str | None, typer.Option(help="How activations travel: float32, float16, int8, each +zstd.")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(metavar="FILE", help="Keep the cuts of this plan.toml, from hsee plan.")
    ] = None,
    compute: Annotated[str | None, typer.Option(help="Where to compute: auto, cpu or cuda.")] = None,
    home: Annotated[str | None, typer.Option(help="Folder of the run folders.")] = None,
    username: Username = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    insecure: Insecure = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting: run.lr=0.01.")
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    json: Json = False,
) -> None:
    """Gather devices, choose their cuts, train the rest of the network on what they send.

    The password of the account comes from HSEE_BROKER_PASSWORD or --password-file.

    Example: hsee coordinator start --run first --devices 3 --rounds 20
    """
    from coordinator.fleet.wishes import wishes_of
    from toolkit.cli.run_display import make_display
    from toolkit.config import load_config

    flags = {
        **broker_flags(
            broker,
            username=username,
            password_file=password_file,
            ca_file=ca_file,
            insecure=insecure,
            fleet=fleet,
        ),
        "fleet.home": home,
        "run.devices": devices,
        "run.wait_s": wait,
        "run.strategy": strategy,
        "run.rounds": rounds,
        "run.model": model,
        "run.classes": [name.strip() for name in classes.split(",")] if classes else None,
        "run.seed": seed,
        "run.codec": codec,
        "run.plan": plan,
        "run.compute": compute,
    }
    config = load_config(flags, overrides=settings or [])
    wishes_of(config.run, ())  # a plan or a model's profile that can't be read is told before anybody joins
    name = check_name(run or datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S"), what="The run's name")
    _check_account(config.broker.username, name)
    folder = Path(config.fleet.home) / name
    if any((folder / "checkpoints").glob("[0-9]*")):
        raise RunError(
            f"There is a run in {folder} already.",
            hint=f"Go on with it: hsee run resume {folder}  Or choose another --run.",
        )
    with log_all(on=verbose):
        _run(config, folder, name, make_display(as_json=json, quiet=quiet, strategy=config.run.strategy))


@run_app.command()
def resume(
    run: RunName,
    *,
    broker: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="The MQTT broker, if it moved.")
    ] = None,
    home: Home = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    json: Json = False,
) -> None:
    """Go on with a run after its last committed round. Devices come back by themselves.

    Example: hsee run resume run-20260101-120000
    """
    from coordinator.watching.runs import find_run
    from toolkit.cli.run_display import make_display
    from toolkit.config import load_config

    folder = find_run(run, home_of(home))
    config = load_config({"broker.address": broker}, cwd_file=folder / "config.toml")
    with log_all(on=verbose):
        display = make_display(as_json=json, quiet=quiet, strategy=config.run.strategy)
        _run(config, folder, folder.resolve().name, display)


def _check_account(account: str, run: str) -> None:
    """Refuse an account of another run: the broker would deny its topics without a word."""
    own = account.removeprefix("coord-")
    if own not in (account, run):
        raise UsageError(
            f"The account {account!r} is of the run {own!r}, and this one is {run!r}.",
            hint=f"Name the run: --run {own}. Or make an account for it: hsee broker user add coord-{run}",
        )


def _run(settings: Settings, path: Path, run: str, opening: AbstractContextManager[RunDisplay]) -> None:
    require("torch", part="coordinator", purpose="Training at the coordinator")
    from coordinator.store.run_folder import RunFolder
    from coordinator.strategy.catalogue import make_strategy
    from toolkit.link.connect import broker_of
    from toolkit.nn.exit_head import check_exit_head
    from toolkit.nn.server_exits import check_server_exits
    from toolkit.nn.zoo import stage_names

    # Before anything is written: unknown names are the user's.
    make_strategy(settings.run.strategy, settings.run.strategy_options)
    if stages := stage_names(settings.run.model, settings.run.model_options):
        check_server_exits(settings.run.server_exits, stages)
    check_exit_head(settings.run.exit_head)
    _check_classes(settings.run.classes)
    address = broker_of(settings, default_username=f"coord-{run}")
    address.require_secure()
    folder = RunFolder(path, run)
    try:
        with opening as display:
            _serve(settings, address, folder, display)
    finally:
        folder.close()


def _check_classes(names: Sequence[str]) -> None:
    if names and (len(names) < MIN_CLASSES or len(set(names)) < len(names) or not all(names)):
        raise UsageError(
            f"{', '.join(map(repr, names))} is not a list of classes.",
            hint=f"Name at least {MIN_CLASSES}, each once: --classes ant,bee,cat",
        )


def _serve(settings: Settings, address: BrokerAddress, folder: RunFolder, display: RunDisplay) -> None:
    import time

    import torch

    from coordinator.beside.offload import OffloadService
    from coordinator.beside.own_thread import Beside
    from coordinator.beside.routes import Routes
    from coordinator.fleet.bridge import last_will
    from coordinator.fleet.events import Notice
    from coordinator.server import Coordinator
    from coordinator.watching.desk import Desk
    from toolkit.config import settings_text
    from toolkit.journal import LogTo
    from toolkit.link.base import chunk_bytes_of
    from toolkit.link.connect import make_link
    from toolkit.nn.compute import choose_compute

    torch.set_num_threads(settings.run.threads)
    topics = Topics(check_name(settings.fleet.name, what="The fleet's name"))
    run = folder.record.run
    link = make_link(address, client_id=address.username or f"coord-{run}", will=last_will(topics, folder))
    compute = choose_compute(settings.run.compute)
    folder.write_config(settings_text(settings))
    folder.write_environment()
    desk = Desk(
        folder.path,
        topics=topics,
        broker=str(address),
        warn=lambda text: display.show(Notice(text)),
    )

    def observe(event: RunEvent) -> None:
        display.show(event)
        desk.hear(event)

    answers = Beside(
        OffloadService(
            run,
            topics=topics,
            routes=Routes(folder.path / "checkpoints", device=compute),
            clock=time.monotonic,
            chunk_bytes=chunk_bytes_of(link),
        ),
        clock=time.monotonic,
        say=desk.line,
    )
    link.divert(answers.filters, answers.take)
    coordinator = Coordinator(
        link,
        topics=topics,
        folder=folder,
        settings=settings.run,
        clock=time.monotonic,
        observe=observe,
        device=compute,
        services=[answers, *desk.services],
    )
    desk.open(coordinator)
    display.begin(run=run, folder=folder.path, broker=str(address), fleet=topics.fleet)
    with ExitStack() as at_end:
        at_end.callback(coordinator.close)
        signals = at_end.enter_context(StopSignals())
        at_end.enter_context(LogTo(desk.line))
        try:
            coordinator.start()
            while not coordinator.over:
                signals.obey()
                coordinator.poll(POLL_S)
        except (KeyboardInterrupt, TerminatedError) as exc:
            resume_hint = f"hsee run resume {folder.path}"
            coordinator.end("stopped", f"Stopped by hand; go on with: {resume_hint}")
            if isinstance(exc, KeyboardInterrupt):
                raise
