"""``hsee broker``: set a broker up, keep its accounts, and judge any broker by what it delivers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.broker_flags import broker_flags
from toolkit.cli.finding_display import report_findings
from toolkit.cli.options import Broker, CaFile, Insecure, Json, PasswordFile
from toolkit.cli.output import confirm, emit_json, table
from toolkit.cli.talking import hush_link
from toolkit.errors import BrokerError, UsageError

if TYPE_CHECKING:
    from toolkit.access.broker_folder import BrokerFolder
    from toolkit.access.dynamic_security import DynamicSecurity

app = typer.Typer(no_args_is_help=True, help="The MQTT broker: set it up, keep its accounts, judge it.")
user_app = typer.Typer(no_args_is_help=True, help="Accounts, one a process, while the broker runs.")
app.add_typer(user_app, name="user")

Accounts = Annotated[
    list[str], typer.Argument(metavar="ACCOUNT...", help="DEVICE, DEVICE.infer, coord-RUN or op-NAME.")
]
Folder = Annotated[
    Path, typer.Option("--folder", help="The folder that hsee broker init wrote, or a copy of it.")
]
MovedBroker = Annotated[
    str | None,
    typer.Option(metavar="mqtts://HOST", help="Where the broker is, if not where boards find it."),
]
Operator = Annotated[str, typer.Option("--as", metavar="op-NAME", help="The operator's account to act as.")]
DEFAULT_FOLDER = Path("broker")
DEFAULT_OPERATOR = "op-admin"
UNTIL_RESTART = (
    "Restart the broker when it suits: until then a certificate of it is let in, and may do nothing."
)


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
                "accounts": _told(made, accounts),
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
    _print_accounts(made, accounts)


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


@user_app.command("add")
def user_add(
    accounts: Accounts,
    *,
    folder: Folder = DEFAULT_FOLDER,
    broker: MovedBroker = None,
    operator: Operator = DEFAULT_OPERATOR,
    show_password: Annotated[
        bool, typer.Option("--show-password", help="Print the passwords too; they stay in their files.")
    ] = False,
    json: Json = False,
) -> None:
    """Add accounts to the running broker, each with a generated password, or a certificate, in a folder of its own.

    Example: hsee broker user add hall-camera gate-camera
    """
    from toolkit.access.accounts import check_new
    from toolkit.link.broker import generate_password

    for account in accounts:
        check_new(account)
    with control_of(folder, broker, operator) as (opened, control):
        if show_password and opened.record.by_certificate:
            raise UsageError("Accounts of this broker have certificates and no passwords.")
        passwords = {}
        for account in accounts:
            opened.require_fresh(account, control)
            password = "" if opened.record.by_certificate else generate_password()
            control.add(account, password)
            opened.write_account(account, password)
            passwords[account] = password
    if json:
        told = _told(opened, accounts)
        if show_password:
            told = [entry | {"password": passwords[str(entry["account"])]} for entry in told]
        emit_json({"accounts": told})
        return
    _print_accounts(opened, accounts)
    if show_password:
        table(["account", "password"], list(passwords.items()))


@user_app.command("remove")
def user_remove(
    accounts: Accounts,
    *,
    folder: Folder = DEFAULT_FOLDER,
    broker: MovedBroker = None,
    operator: Operator = DEFAULT_OPERATOR,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    json: Json = False,
) -> None:
    """Remove accounts from the running broker, which cuts their connections off at once.

    Example: hsee broker user remove hall-camera --yes
    """
    with control_from_here(folder, broker, operator) as (opened, control):
        if control.account in accounts:
            raise UsageError(
                f"{control.account!r} is the account that would remove itself.",
                hint="Act as another operator: --as op-NAME",
            )
        known = control.accounts()
        if missing := [name for name in accounts if name not in known]:
            raise UsageError(
                f"There is no account {missing[0]!r}; nothing was removed.",
                hint=f"There are: {', '.join(known)}.",
            )
        if not dry_run:
            if not yes:
                confirm(f"Remove {', '.join(accounts)} and cut them off?")
            for account in accounts:
                control.remove(account)
                if opened is not None:
                    opened.remove_account(account)
    if json:
        emit_json({"removed": [] if dry_run else accounts, "would_remove": accounts if dry_run else []})
        return
    typer.echo(f"{'Would remove' if dry_run else 'Removed and cut off'}: {', '.join(accounts)}")
    if opened is not None and opened.record.by_certificate and not dry_run:
        typer.echo(UNTIL_RESTART)


@user_app.command("list")
def user_list(
    *,
    folder: Folder = DEFAULT_FOLDER,
    broker: MovedBroker = None,
    operator: Operator = DEFAULT_OPERATOR,
    json: Json = False,
) -> None:
    """List the accounts of the running broker, and whether each still has the grants that it should.

    Example: hsee broker user list
    """
    from toolkit.access.accounts import kind_of

    with control_from_here(folder, broker, operator) as (opened, control):
        rows = []
        for account in control.accounts():
            try:
                kind = str(kind_of(account))
                control.check(account)
                state = "as it should be"
            except (UsageError, BrokerError) as exc:
                kind, state = "unknown", exc.message
            here = opened is not None and opened.account_folder(account).is_dir()
            rows.append([account, kind, state, here])
    names = ["account", "kind", "grants", "password_here"]
    if json:
        emit_json({"accounts": [dict(zip(names, row, strict=True)) for row in rows]})
        return
    table([*names[:3], "password here"], [[*row[:3], "yes" if row[3] else "no"] for row in rows])


@user_app.command("refresh")
def user_refresh(
    *,
    folder: Folder = DEFAULT_FOLDER,
    broker: MovedBroker = None,
    operator: Operator = DEFAULT_OPERATOR,
    json: Json = False,
) -> None:
    """Give every account the grants of this version of hsee, and read them back; for use after an update.

    Example: hsee broker user refresh
    """
    with control_from_here(folder, broker, operator) as (_, control):
        accounts = control.accounts()
        for account in accounts:
            control.grant(account)
    if json:
        emit_json({"accounts": accounts})
        return
    typer.echo(f"Granted and read back: {', '.join(accounts)}")


@contextmanager
def control_of(
    folder: Path, broker: str | None, operator: str
) -> Iterator[tuple[BrokerFolder, DynamicSecurity]]:
    """Log in at a broker of ours as an operator, to change its accounts.

    Raises: BrokerError: it can't be reached, or refuses. UsageError: the folder is none of ours.
    """
    from toolkit.access.broker_folder import BrokerFolder
    from toolkit.access.dynamic_security import DynamicSecurity
    from toolkit.access.probe import Probe
    from toolkit.link.base import parse_broker

    opened = BrokerFolder.open(folder)
    address = parse_broker(broker, ca_file=opened.path / "ca.pem") if broker else None
    with Probe(opened.login(operator, address)) as probe:
        yield opened, DynamicSecurity(probe, opened.topics)


@contextmanager
def control_from_here(
    folder: Path, broker: str | None, operator: str
) -> Iterator[tuple[BrokerFolder | None, DynamicSecurity]]:
    """Log in as an operator: by the broker's folder, or where there is none by the settings of an operator's own account.

    Yields: the folder, None where there is none; the broker's accounts.
    Raises: BrokerError: it can't be reached, or refuses. UsageError: there is neither.
    """
    from toolkit.access.accounts import OPERATOR_PREFIX
    from toolkit.access.broker_folder import RECORD
    from toolkit.access.dynamic_security import DynamicSecurity
    from toolkit.access.probe import Probe
    from toolkit.config import load_config
    from toolkit.link.connect import broker_of
    from toolkit.wire.topics import Topics

    settings = load_config({"broker.address": broker})
    if (folder / RECORD).exists() or not settings.broker.username.startswith(OPERATOR_PREFIX):
        with control_of(folder, broker, operator) as found:
            yield found
        return
    with Probe(broker_of(settings)) as probe:
        yield None, DynamicSecurity(probe, Topics(settings.fleet.name))


def _start_commands(folder: BrokerFolder, program: str | None) -> tuple[str, str]:
    return (
        f"{program or 'mosquitto'} -c {folder.path / 'mosquitto.conf'}",
        f"sudo systemctl enable --now {folder.path / 'hsee-broker.service'}",
    )


def _told(folder: BrokerFolder, accounts: Sequence[str]) -> list[dict[str, object]]:
    from toolkit.access.account_folder import start_line

    return [
        {"account": name, "folder": folder.account_folder(name), "start": start_line(name)}
        for name in accounts
    ]


def _print_accounts(folder: BrokerFolder, accounts: Sequence[str]) -> None:
    from toolkit.access.account_folder import start_line

    typer.echo("Each account is one process. Copy its folder to its machine; then paste the line there:")
    for name in accounts:
        typer.echo(f"\n  {name}\n    scp -rp {folder.account_folder(name)} MACHINE:{name}")
        typer.echo(f"    cd {name} && {start_line(name)}")
