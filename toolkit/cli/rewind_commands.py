"""``hsee run rewind``: take a run back to the checkpoint before its newest."""

from __future__ import annotations

from typing import Annotated

import typer

from toolkit.cli.options import Home, Json, RunName, home_of
from toolkit.cli.output import confirm, emit_json


def rewind(
    run: RunName,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say where it would go back to.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Take a run back to the checkpoint before its newest; what came after is trained again when it is resumed.

    Its coordinator is stopped before. The checkpoint that is left out stays in the folder, set aside. Devices keep what they learned.

    Example: hsee run rewind run-20260101-120000
    """
    from coordinator.store.run_folder import RunFolder
    from coordinator.watching.runs import find_run

    folder = find_run(run, home_of(home))
    opened = RunFolder(folder, folder.resolve().name)
    try:
        before, newest = (generation.round for generation in opened.two_newest())
        if not dry_run:
            if not yes:
                confirm(f"Take {folder} back from round {newest} to the end of round {before}?")
            opened.rewind()
    finally:
        opened.close()
    if json:
        emit_json(
            {"run": folder.resolve().name, "from_round": newest, "to_round": before, "dry_run": dry_run}
        )
        return
    did = "Would go" if dry_run else "Went"
    typer.echo(
        f"{did} back from round {newest} to the end of round {before}. Go on with: hsee run resume {folder}"
    )
