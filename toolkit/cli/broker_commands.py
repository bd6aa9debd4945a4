"""``hsee broker``: set a broker up, keep its accounts, and judge any broker by what it delivers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli import broker_user_commands
from toolkit.cli.account_display import print_accounts, told_accounts
from toolkit.cli.broker_control import DEFAULT_FOLDER
from toolkit.cli.broker_flags import broker_flags
from toolkit.cli.finding_display import report_findings
from toolkit.cli.options import Broker, CaFile, Insecure, Json, PasswordFile
from toolkit.cli.output import emit_json
from toolkit.cli.talking import hush_link
from toolkit.errors import BrokerError, UsageError

if TYPE_CHECKING:
    from toolkit.access.broker_folder import BrokerFolder

app = typer.Typer(no_args_is_help=True, help="The MQTT broker: set it up, keep its accounts, judge it.")
app.add_typer(broker_user_commands.app, name="user")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="New folder for its files.")] = DEFAULT_FOLDER,
    *,
    host: Annotated[
        list[str],
        typer.Option(
            help="Name or address that boards reach it by; may be given again, the usual one first."
        ),
    ],
    device: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="A board to make an account for; again for more.")
    ] = None,
    coordinator: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="A run to make a coordinator's account for.")
    ] = None,
    fleet: Annotated[str | None, typer.Option(help="Fleet that it serves.")] = None,
    port: Annotated[
        int, typer.Option(min=1, max=65_535, help="Of its one listener, which speaks TLS.")
    ] = 8883,
    certificates: Annotated[
        bool,
        typer.Option(
            "--certificates",
            help="Accounts log in by certificates of the fleet's authority, not by passwords.",
        ),
    ] = False,
    join_port: Annotated[
        int, typer.Option(min=1, max=65_535, help="With --certificates: where join tokens are let in.")
    ] = 8884,
    bind: Annotated[str, typer.Option(help="Address to listen at; default: all of this machine's.")] = "",
    plugin: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="mosquitto_dynamic_security.so on the broker's machine."),
    ] = None,
    json: Json = False,
) -> None:
    """Write a Mosquitto set-up that is safe and fast: TLS of its own authority, an account a process, limits.

    With --certificates an account is whoever its certificate says, and boards that join make their keys themselves.
    It starts the broker on loopback for a moment and reads everything back, where Mosquitto is installed.

    Example: hsee broker init --host broker.local --device hall-camera --coordinator run1
    """
    from toolkit.access.broker_folder import BrokerFolder
    from toolkit.access.mosquitto_setup import find_mosquitto
    from toolkit.access.tokens import digest_of
    from toolkit.config import load_config

    made = BrokerFolder.create(
        folder,
        fleet=load_config({"fleet.name": fleet}).fleet.name,
        hosts=host,
        accounts=[*(device or []), *(f"coord-{run}" for run in coordinator or [])],
        port=port,
        join_port=join_port if certificates else None,
        bind=bind,
        plugin=plugin,
    )
    program = find_mosquitto()
    verified = made.verify(program) if program else None
    accounts = sorted(path.name for path in (made.path / "accounts").iterdir())
    authority = digest_of((made.path / "ca.pem").read_bytes())
    if json:
        emit_json(
            {
                "folder": made.path,
                "address": made.record.address,
                "authority_sha256": authority,
                "accounts": told_accounts(made, accounts),
                "verified": verified is not None,
                "start": _start_commands(made, program),
            }
        )
        return
    typer.echo(f"Wrote {made.path}, readable by you only. Its authority's SHA-256: {authority}")
    typer.echo(
        f"Started it on loopback for a moment and read back: {len(verified)} accounts, all else is denied."
        if verified is not None
        else "Nothing was read back: Mosquitto is not on this machine. On the broker's: hsee broker check"
    )
    now, always = _start_commands(made, program)
    typer.echo(f"\nStart it now:            {now}\nAt every boot, instead:  {always}\n")
    print_accounts(made, accounts)


@app.command()
def renew(
    folder: Annotated[Path, typer.Argument(help="The folder that hsee broker init wrote.")] = DEFAULT_FOLDER,
    *,
    json: Json = False,
) -> None:
    """Sign a new certificate for the broker. Boards keep trusting it; it takes it at its next start.

    Example: hsee broker renew broker
    """
    from toolkit.access.broker_folder import BrokerFolder

    opened = BrokerFolder.open(folder)
    opened.issue_certificate()
    if json:
        emit_json({"folder": opened.path, "hosts": opened.record.hosts})
        return
    typer.echo(
        f"A new certificate for {', '.join(opened.record.hosts)} is in {opened.path}. Restart the broker."
    )


@app.command()
def check(
    *,
    broker: Broker = None,
    fleet: Annotated[str | None, typer.Option(help="Fleet whose topics are tried.")] = None,
    username: Annotated[str | None, typer.Option(help="Account to try it with.")] = None,
    password_file: PasswordFile = None,
    ca_file: CaFile = None,
    other: Annotated[
        str, typer.Option(metavar="ACCOUNT", help="Another device's account, to try whether they are apart.")
    ] = "",
    other_password_file: Annotated[
        str, typer.Option(metavar="FILE", help="File with the other account's password.")
    ] = "",
    insecure: Insecure = None,
    json: Json = False,
) -> None:
    """Judge a broker by stage and by what it delivers: name, TCP, TLS, login, topics, sizes, queues, speed.

    Use accounts whose processes don't run now: a login takes over an account's connection. Exit status 4 if a check
    failed.

    Example: hsee broker check --broker mqtts://broker.local --username op-admin --password-file password --ca-file ca.pem
    """
    from toolkit.access.broker_check import check_broker
    from toolkit.config import load_config
    from toolkit.config.secrets import read_password_file
    from toolkit.link.connect import broker_of
    from toolkit.wire.topics import Topics, check_name

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
    # Refusals are what is looked for; a warning for each would bury the findings.
    hush_link()
    address = broker_of(settings, default_username=settings.device.id)
    if bool(other) != bool(other_password_file):
        raise UsageError("--other and --other-password-file belong together.", hint="Give both, or neither.")
    second = None
    if other:
        second = address.with_login(
            other, read_password_file(Path(other_password_file), "--other-password-file")
        )
    topics = Topics(check_name(settings.fleet.name, what="The fleet's name"))
    findings = check_broker(address, topics, other=second)
    report_findings(
        findings,
        facts={"broker": str(address), "account": address.username},
        error=BrokerError(f"{address} did not pass.", hint="Each failed line names its fix."),
        as_json=json,
    )


def _start_commands(folder: BrokerFolder, program: str | None) -> tuple[str, str]:
    return (
        f"{program or 'mosquitto'} -c {folder.path / 'mosquitto.conf'}",
        f"sudo systemctl enable --now {folder.path / 'hsee-broker.service'}",
    )
