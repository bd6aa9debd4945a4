"""``hsee agent``: a board's part: into a fleet, at work, as a service of its system."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import Json
from toolkit.cli.output import emit_json
from toolkit.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="The part that runs on a board.")
# What follows this name is parsed by a lighter program, which loads neither typer nor rich.
FORWARD = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=FORWARD)
def start(context: typer.Context) -> None:
    """Train this board's part of the network and send activations to the coordinator."""
    from device_agent.__main__ import main

    raise typer.Exit(main(context.args))


@app.command()
def join(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="This board's name, as it was invited.")],
    *,
    broker: Annotated[str, typer.Option(metavar="mqtts://HOST", help="The fleet's broker.")],
    token: Annotated[str, typer.Option(metavar="ID", help="The token's id; it is no secret.")],
    authority: Annotated[
        str, typer.Option(metavar="SHA256", help="Of the certificate of the broker's authority.")
    ],
    fleet: Annotated[str | None, typer.Option(help="Fleet to join.")] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="New folder for the account; default: ./DEVICE.")
    ] = None,
    json: Json = False,
) -> None:
    """Join a fleet with the line that hsee broker invite printed; write this board's account into a folder.

    The token's secret is asked for, or read from standard input. The broker is known by its authority before anything
    is sent.

    Example: hsee agent join hall-camera --broker mqtts://broker.local --token 6925f3a01a2b3c4d --authority 9f86d081...
    """
    from toolkit.access.account_folder import start_line
    from toolkit.access.joining import join_fleet
    from toolkit.config import load_config
    from toolkit.link.base import parse_broker
    from toolkit.wire.topics import Topics

    address = parse_broker(broker)
    if not address.tls:
        raise UsageError(
            f"A board joins over TLS, and {broker!r} is without.", hint=f"Write mqtts://{address.host}."
        )
    place = folder or Path(device)
    is_used_up = join_fleet(
        address,
        Topics(load_config({"fleet.name": fleet}).fleet.name),
        device=device,
        token=token,
        secret=_read_secret(),
        authority=authority,
        folder=place,
    )
    if json:
        told = {
            "device": device,
            "folder": place.resolve(),
            "start": start_line(device),
            "token_used_up": is_used_up,
        }
        emit_json(told)
        return
    typer.echo(f"{device} is in. Its account is in {place}, readable by you only.")
    if not is_used_up:
        typer.echo("The token was not seen to be deleted; it lapses by itself.")
    typer.echo(f"Next: cd {place} && {start_line(device)}")


def _read_secret() -> str:
    """Ask for the token's secret, or read it where nobody can be asked; it is never an argument."""
    if sys.stdin.isatty():
        return getpass.getpass("The token's secret: ")
    return sys.stdin.readline()
