"""Accounts that were written: where each lies, and what to type where it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from toolkit.access.broker_folder import BrokerFolder


def told_accounts(folder: BrokerFolder, accounts: Sequence[str]) -> list[dict[str, object]]:
    """Say for ``--json`` where each account lies, and the line that starts its process."""
    from toolkit.access.account_folder import start_line

    return [
        {"account": name, "folder": folder.account_folder(name), "start": start_line(name)}
        for name in accounts
    ]


def print_accounts(folder: BrokerFolder, accounts: Sequence[str]) -> None:
    """Print where each account has to go, and what to paste there."""
    from toolkit.access.account_folder import start_line

    typer.echo("Each account is one process. Copy its folder to its machine; then paste the line there:")
    for name in accounts:
        typer.echo(f"\n  {name}\n    scp -rp {folder.account_folder(name)} MACHINE:{name}")
        typer.echo(f"    cd {name} && {start_line(name)}")
