"""``hsee agent``: a board's part: into a fleet, at work, as a service of its system."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from toolkit.cli.options import Json
from toolkit.cli.output import confirm, emit_json, table
from toolkit.cli.talking import hush_link
from toolkit.errors import MachineError, UsageError

if TYPE_CHECKING:
    from toolkit.config import Settings

app = typer.Typer(no_args_is_help=True, help="The part that runs on a board.")
System = Annotated[
    bool, typer.Option("--system", help="The system's service, by root, instead of this user's.")
]
Device = Annotated[str, typer.Argument(metavar="DEVICE", help="The device id; default: as configured here.")]
_BARE: dict[str, str] = {"HOME": str(Path.home())}
"""What a service has of this shell's environment, as far as settings go."""
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
    join_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65_535,
            metavar="PORT",
            help="Where tokens are let in, if the broker asks for certificates: this board makes its own key then.",
        ),
    ] = None,
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
    # The broker's refusal of the used token is what this waits for; a warning would only frighten.
    hush_link()
    place = folder or Path(device)
    is_used_up = join_fleet(
        address,
        Topics(load_config({"fleet.name": fleet}).fleet.name),
        device=device,
        token=token,
        secret=_read_secret(),
        authority=authority,
        folder=place,
        join_port=join_port,
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


@app.command(context_settings={"allow_extra_args": True})
def install(
    context: typer.Context,
    *,
    system: System = False,
    folder: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where it runs: the account's folder, with its hsee.toml.")
    ] = Path(),
    nice: Annotated[int, typer.Option(min=0, max=19, help="19 leaves the board to everything else.")] = 5,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="The most it may take: 512M, 2G or a share such as 80%.")
    ] = "80%",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the unit and the commands.")] = False,
    json: Json = False,
) -> None:
    """Make this board's agent a service: started at every boot, started again when it dies, watched for hanging.

    What follows -- goes to hsee agent start. A service sees no variables of this shell: settings stand in the folder's
    hsee.toml or behind --.

    Example: hsee agent install -- --data folder:/data/pictures
    """
    from device_agent.unit import AgentUnit

    words = context.args
    settings = _settings_of_service(folder, words)
    unit = AgentUnit(
        settings.device.id,
        settings.fleet.name,
        scope="system" if system else "user",
        folder=folder.resolve(),
        words=tuple(words),
        nice=nice,
        memory_max=_check_memory(memory),
    )
    if not dry_run:
        if system and os.geteuid() != 0:
            raise MachineError(
                "A service of the system is written by root.",
                hint=f"Type: sudo {sys.executable} -m toolkit.cli.entry agent install --system --folder {unit.folder}"
                f" {shlex.join(['--', *words]) if words else ''}".rstrip(),
            )
        unit.install()
    commands = [shlex.join(command) for command in unit.commands()]
    if json:
        told = {"unit": unit.name, "file": unit.path, "text": unit.text(), "commands": commands}
        emit_json({**told, "installed": not dry_run})
        return
    if dry_run:
        typer.echo(f"# {unit.path}\n{unit.text()}\n# then: {'; '.join(commands)}")
        return
    typer.echo(f"{unit.name} runs, and starts at every boot. Its unit is {unit.path}.")
    typer.echo(
        f"Look at it: hsee agent status {unit.device}   Its lines: {_journal(unit.name, system=system)}"
    )


@app.command()
def uninstall(
    device: Device = "",
    *,
    system: System = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    json: Json = False,
) -> None:
    """Stop the service and take its unit away. What the board has trained stays.

    Example: hsee agent uninstall hall-camera --yes
    """
    from device_agent.unit import Scope, unit_path
    from device_agent.unit import uninstall as take_away

    name = _named(device)
    scope: Scope = "system" if system else "user"
    path = unit_path(name, scope)
    if not dry_run:
        if path.exists() and not yes:
            confirm(f"Stop the agent {name} and take {path} away?")
        take_away(name, scope)
    if json:
        emit_json({"unit": path.name, "file": path, "removed": not dry_run})
        return
    typer.echo(f"{'Would stop it and remove' if dry_run else 'Stopped; removed'} {path}")


@app.command()
def status(device: Device = "", *, system: System = False, json: Json = False) -> None:
    """Say how the service stands, and whether an agent runs here by hand. Exit status 1 if none runs.

    Example: hsee agent status
    """
    from device_agent.identity import is_held
    from device_agent.unit import Scope, read_state
    from toolkit.config import load_config

    name, settings = _named(device), load_config()
    scope: Scope = "system" if system else "user"
    state = read_state(name, scope)
    held = is_held(Path(settings.fleet.home), fleet=settings.fleet.name, device=name)
    runs = state.state == "active" or held
    if json:
        emit_json(
            {"device": name, "runs": runs, "by_hand": held and not state.pid, **msgspec.to_builtins(state)}
        )
    elif not state.installed:
        typer.echo(f"No service of {name} is installed here{'; an agent runs by hand' if held else ''}.")
        typer.echo("Make one: hsee agent install -- --data SOURCE")
    else:
        rows = {
            "state": f"{state.state}{' since ' + state.since if state.since else ''}",
            "says": state.detail,
            "process": state.pid or "none",
            "started again": f"{state.n_restarts} times",
            "memory": f"{state.memory_bytes / 1e6:.0f} MB" if state.memory_bytes else "not counted here",
            "at boot": "yes" if state.boots else "no",
            "log": _journal(state.unit, system=system),
        }
        table([state.unit, ""], list(rows.items()))
    raise typer.Exit(0 if runs else 1)


def _settings_of_service(folder: Path, words: list[str]) -> Settings:
    """Load the settings as the service will see them, and check what would end it at once.

    Raises: UsageError, ConfigError, InsecureBrokerError: the service could not run.
    """
    from device_agent.__main__ import make_parser
    from device_agent.identity import device_id
    from toolkit.config import load_config
    from toolkit.link.connect import broker_of

    args = vars(make_parser().parse_args(words))
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is no folder.", hint="hsee agent join makes one, or give another --folder."
        )
    before = Path.cwd()
    os.chdir(folder)  # paths in its settings are meant from there
    try:
        settings = load_config(
            {key: value for key, value in args.items() if "." in key}, overrides=args["set"], env=_BARE
        )
        device = device_id(settings.device.id)
        if not settings.device.data:
            raise UsageError(
                "The service would not know which data to train on.",
                hint="Type: hsee agent install -- --data folder:/path/of/pictures   Or [device] data in hsee.toml.",
            )
        broker_of(settings, default_username=device, env=_BARE).require_secure()
    finally:
        os.chdir(before)
    return msgspec.structs.replace(settings, device=msgspec.structs.replace(settings.device, id=device))


def _check_memory(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,15}[KMGT]?|[1-9][0-9]?%|100%|infinity", text):
        raise UsageError(
            f"--memory {text} is no size.", hint="Write 512M, 2G, a share such as 80%, or infinity."
        )
    return text


def _named(device: str) -> str:
    from device_agent.identity import device_id
    from toolkit.config import load_config

    return device_id(device or load_config().device.id)


def _journal(unit: str, *, system: bool) -> str:
    return f"journalctl {'-u' if system else '--user-unit'} {unit}"


def _read_secret() -> str:
    """Ask for the token's secret, or read it where nobody can be asked; it is never an argument."""
    if sys.stdin.isatty():
        return getpass.getpass("The token's secret: ")
    return sys.stdin.readline()
