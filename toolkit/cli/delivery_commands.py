"""``hsee bundle send`` and ``receive``: bundles to boards over the broker."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from toolkit.cli.broker_flags import broker_flags
from toolkit.cli.options import Broker, CaFile, Insecure, Json, PasswordFile, Quiet, Username, Verbose
from toolkit.cli.talking import talking
from toolkit.errors import PartialError, UsageError
from toolkit.journal import write_line
from toolkit.wire.topics import Topics, check_name

if TYPE_CHECKING:
    from toolkit.config import Settings

POLL_S = 0.05
Fleet = Annotated[str | None, typer.Option(help="The fleet.")]


def send(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="A signed .hsee file.")],
    *,
    to: Annotated[list[str], typer.Option(metavar="DEVICE", help="A board; once for each.")],
    wait: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long boards may take; those away come later.")
    ] = 3600.0,
    fleet: Fleet = None,
    broker: Broker = None,
    username: Username = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    insecure: Insecure = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    json: Json = False,
) -> None:
    """Send a bundle to boards that run hsee bundle receive, and wait until each says what became of it.

    Example: hsee bundle send hall-camera.hsee --to hall-camera --broker mqtts://broker.local
    """
    from coordinator.beside.delivery import BundleDelivery
    from coordinator.beside.serving import Server
    from toolkit.bundle.folder import open_bundle
    from toolkit.config import load_config
    from toolkit.link.connect import broker_of, make_link

    settings = load_config(
        broker_flags(
            broker,
            username=username,
            password_file=password_file,
            ca_file=ca_file,
            insecure=insecure,
            fleet=fleet,
        )
    )
    open_bundle(archive)  # what is damaged here need not travel
    address = broker_of(settings)
    link = make_link(address, client_id=address.username or f"hsee-send-{time.time_ns():x}")
    with talking(json=json, quiet=quiet, verbose=verbose) as say:
        delivery = BundleDelivery(
            archive,
            [check_name(device, what="The device id") for device in to],
            topics=_topics(settings),
            clock=time.monotonic,
            say=say,
        )
        server = Server(link, [delivery], clock=time.monotonic, say=say)
        until = time.monotonic() + wait
        try:
            server.start()
            while delivery.waiting and time.monotonic() < until:
                server.poll(POLL_S)
        finally:
            server.close()
    failed = [device for device, receipt in delivery.receipts.items() if receipt.outcome == "refused"]
    if failed or delivery.waiting:
        refused = f"refused by {', '.join(failed)}" if failed else ""
        silent = f"no word from {', '.join(delivery.waiting)}" if delivery.waiting else ""
        raise PartialError(
            f"The bundle did not reach every board: {'; '.join(filter(None, (refused, silent)))}.",
            hint="Boards that were away get it when it is sent again; on each runs: hsee bundle receive",
            refused=failed,
            silent=delivery.waiting,
        )
    if json:
        receipts = {device: receipt.outcome for device, receipt in delivery.receipts.items()}
        write_line(msgspec.json.encode({"success": True, "receipts": receipts}).decode())


def receive(  # noqa: PLR0913 - a command's options
    *,
    into: Annotated[Path, typer.Option(metavar="DIR", help="The board's place; hsee infer DIR runs it.")],
    device: Annotated[
        str, typer.Option("--id", help="This board's device id; default: the host's name.")
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="End after the first bundle.")] = False,
    allow_unsigned: Annotated[
        bool, typer.Option("--allow-unsigned", help="Take bundles from anybody whom the broker lets send.")
    ] = False,
    fleet: Fleet = None,
    broker: Broker = None,
    username: Username = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    insecure: Insecure = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    json: Json = False,
) -> None:
    """Wait for bundles on this board: fetch, check, test and install each; inference goes on meanwhile.

    Example: hsee bundle receive --into /var/lib/hsee/bundle --broker mqtts://broker.local
    """
    from device_agent.identity import device_id, new_boot_nonce
    from device_agent.receiver import Receiver
    from toolkit.bundle.signature import pinned_key
    from toolkit.config import load_config
    from toolkit.link.connect import broker_of, make_link
    from toolkit.runtime.installing import Installed, install

    settings = load_config(
        broker_flags(
            broker,
            username=username,
            password_file=password_file,
            ca_file=ca_file,
            insecure=insecure,
            fleet=fleet,
        )
    )
    key = None if allow_unsigned else pinned_key()
    if key is None and not allow_unsigned:
        raise UsageError(
            "This board trusts no operator, so it would run what anybody sends.",
            hint="Pin the operator's key: hsee bundle trust FILE.pub  Or say: --allow-unsigned",
        )
    own = device_id(device or settings.device.id)
    address = broker_of(settings, default_username=f"{own}.infer")

    def bring(archive: Path) -> Installed:
        return install(archive, into, device=own, key=key)

    link = make_link(address, client_id=address.username or f"{own}.infer-{new_boot_nonce().hex()[:12]}")
    with talking(json=json, quiet=quiet, verbose=verbose) as say:
        receiver = Receiver(
            link,
            topics=_topics(settings),
            device=own,
            folder=into,
            install=bring,
            clock=time.monotonic,
            say=say,
        )
        try:
            receiver.start()
            while not (once and receiver.n_done):
                receiver.poll(POLL_S)
        finally:
            receiver.close()
    if json:
        write_line(msgspec.json.encode({"success": True, "installed": receiver.n_done}).decode())


def _topics(settings: Settings) -> Topics:
    return Topics(check_name(settings.fleet.name, what="The fleet's name"))
