"""``hsee init``: a first hsee.toml, with every setting explained in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import Json
from toolkit.cli.output import emit_json
from toolkit.errors import UsageError, writing


def init(
    *,
    template: Annotated[
        str, typer.Option(help="What to begin with: demo, images (a folder) or csv (sensor readings).")
    ] = "demo",
    data: Annotated[str, typer.Option(metavar="PATH", help="Where the pictures or the table are.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Write over a hsee.toml that is here.")] = False,
    json: Json = False,
) -> None:
    """Write a commented hsee.toml that runs as it is into this folder.

    Example: hsee init --template images --data pictures
    """
    from toolkit.config.load import CWD_FILE
    from toolkit.config.template import find_template, template_text

    chosen = find_template(template)
    text = template_text(template, data=data)
    if CWD_FILE.exists() and not force:
        raise UsageError(
            f"There is a {CWD_FILE} here already; it was left as it is.",
            hint="Type hsee init --force to write over it, or begin in another folder.",
        )
    draft = CWD_FILE.with_name(f".{CWD_FILE.name}.{os.getpid()}")
    with writing(Path.cwd()):
        draft.write_text(text)
        draft.replace(CWD_FILE)
    if json:
        emit_json({"file": CWD_FILE.resolve(), "template": template, "next": chosen.next_words})
        return
    typer.echo(f"Wrote {CWD_FILE}: {chosen.about}.")
    typer.echo(f"Next: {chosen.next_words}.")
