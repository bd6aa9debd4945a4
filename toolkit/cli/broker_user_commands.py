"""``hsee broker user``: the accounts of a running broker."""

from __future__ import annotations

from typing import Annotated

import typer

from toolkit.cli.account_display import print_accounts, told_accounts
from toolkit.cli.broker_control import (
    DEFAULT_FOLDER,
    DEFAULT_OPERATOR,
    UNTIL_RESTART,
    Folder,
    MovedBroker,
    Operator,
    control_from_here,
    control_of,
)
from toolkit.cli.options import Json
from toolkit.cli.output import confirm, emit_json, table
from toolkit.errors import BrokerError, UsageError

app = typer.Typer(no_args_is_help=True, help="Accounts, one a process, while the broker runs.")

Accounts = Annotated[
    list[str], typer.Argument(metavar="ACCOUNT...", help="DEVICE, DEVICE.infer, coord-RUN or op-NAME.")
]


@app.command("add")
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
        told = told_accounts(opened, accounts)
        if show_password:
            told = [entry | {"password": passwords[str(entry["account"])]} for entry in told]
        emit_json({"accounts": told})
        return
    print_accounts(opened, accounts)
    if show_password:
        table(["account", "password"], list(passwords.items()))


@app.command("remove")
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


@app.command("list")
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


@app.command("refresh")
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
