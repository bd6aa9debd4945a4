"""``hsee coordinator serve``: answer offloaded samples with the layers of a run that is over."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from toolkit.cli.broker_flags import broker_flags
from toolkit.cli.options import (
    Broker,
    CaFile,
    Home,
    Insecure,
    Json,
    PasswordFile,
    Quiet,
    RunName,
    Username,
    Verbose,
    home_of,
)
from toolkit.cli.talking import Say, talking
from toolkit.errors import UsageError, require
from toolkit.journal import write_line

if TYPE_CHECKING:
    from coordinator.beside.offload import OffloadService
    from toolkit.config import Settings

POLL_S = 0.02
TELL_EVERY_S = 30.0
COUNTED = ("n_answered", "n_passes", "n_declined", "n_expired", "n_dropped")


def serve(
    run: RunName,
    *,
    broker: Broker = None,
    username: Username = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    insecure: Insecure = None,
    home: Home = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    json: Json = False,
) -> None:
    """Answer what boards offload (hsee infer --broker) with the layers of a run that is over, until it is stopped.

    A coordinator that trains does the same beside its training.

    Example: hsee coordinator serve run-20260101-120000
    """
    from coordinator.watching.runs import find_run
    from toolkit.config import load_config

    folder = find_run(run, home_of(home))
    require("torch", part="coordinator", purpose="Serving a run")
    flags = broker_flags(
        broker, username=username, password_file=password_file, ca_file=ca_file, insecure=insecure
    )
    settings = load_config(flags, cwd_file=folder / "config.toml")
    with talking(json=json, quiet=quiet, verbose=verbose) as say:
        _serve(folder, settings, say, json=json, quiet=quiet)


def _serve(folder: Path, settings: Settings, say: Say, *, json: bool, quiet: bool) -> None:
    import torch

    from coordinator.beside.offload import OffloadService
    from coordinator.beside.routes import Routes
    from coordinator.beside.serving import Server
    from coordinator.store.run_folder import RunFolder
    from toolkit.link.base import chunk_bytes_of
    from toolkit.link.connect import broker_of, make_link
    from toolkit.nn.compute import choose_compute
    from toolkit.wire.topics import Topics, check_name

    torch.set_num_threads(settings.run.threads)
    held = RunFolder(folder, folder.resolve().name)  # one coordinator a run
    try:
        routes = Routes(folder / "checkpoints", device=choose_compute(settings.run.compute))
        served = routes.served()
        if not served.rounds:
            raise UsageError(f"No round of {folder} is closed yet: it has no layers that could answer.")
        run = held.record.run
        address = broker_of(settings, default_username=f"coord-{run}")
        topics = Topics(check_name(settings.fleet.name, what="The fleet's name"))
        link = make_link(address, client_id=address.username or f"coord-{run}")
        service = OffloadService(
            run, topics=topics, routes=routes, clock=time.monotonic, chunk_bytes=chunk_bytes_of(link)
        )

        server = Server(link, [service], clock=time.monotonic, say=say)
        rounds = ", ".join(map(str, served.rounds))
        say(f"serving run {run} at {address}: layers of round {rounds}, behind {', '.join(served.shapes)}")
        try:
            server.start()
            told_at = time.monotonic()
            while True:
                server.poll(POLL_S)
                if time.monotonic() - told_at >= TELL_EVERY_S:
                    told_at = time.monotonic()
                    if not quiet:
                        _tell(service, json=json)
        finally:
            server.close()
            _tell(service, json=json)
    finally:
        held.close()


def _tell(service: OffloadService, *, json: bool) -> None:
    counts = {name: getattr(service, name) for name in COUNTED}
    if json:
        write_line(msgspec.json.encode({"event": "offload", **counts}).decode())
        return
    write_line(
        f"{counts['n_answered']} questions answered in {counts['n_passes']} passes, {counts['n_declined']} declined, "
        f"{counts['n_expired']} too late, {counts['n_dropped']} messages beyond the budget"
    )
