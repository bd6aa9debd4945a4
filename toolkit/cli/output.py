"""What commands print: JSON for programs, Rich on a terminal, plain text everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from toolkit.errors import UsageError
from toolkit.journal import printable

if TYPE_CHECKING:
    from rich.console import Console


def emit_json(obj: Mapping[str, Any]) -> None:
    """Print one JSON object to stdout, ``success: true`` first.

    Args:
        obj: what the command found out; structs, paths and dates are welcome in it.
    """
    line = msgspec.json.encode({"success": True, **obj}, enc_hook=str)
    sys.stdout.write(msgspec.json.format(line, indent=2).decode() + "\n")


def is_terminal() -> bool:
    """Tell whether a person watches stdout."""
    return sys.stdout.isatty()


def confirm(question: str) -> None:
    """Ask before something is destroyed.

    Raises: UsageError: nobody is there to be asked. typer.Abort: the answer is no.
    """
    import typer

    if not sys.stdin.isatty():
        raise UsageError("Nobody is there to be asked.", hint="Add --yes if you mean it.")
    typer.confirm(question, abort=True)


def console() -> Console:
    """Make a console on stdout; Rich itself obeys NO_COLOR. Off a terminal it neither colours nor wraps."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not is_terminal())


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
    """Print a table; columns that hold only numbers stand to the right.

    Args:
        columns: their names.
        rows: cells in the order of the columns; format floats before.
        title: printed above.
    """
    texts = [["" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    right = [bool(texts) and all(_is_number(row[i]) for row in texts) for i in range(len(columns))]
    if is_terminal():
        _print_rich(columns, texts, right, title)
        return
    widths = [max(len(line[i]) for line in [columns, *texts]) for i in range(len(columns))]
    lines = [title] if title else []
    for line in [list(columns), *texts]:
        cells = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)]
        lines.append("  ".join(cells).rstrip())
    sys.stdout.write("\n".join(lines) + "\n")


def _print_rich(columns: Sequence[str], texts: list[list[str]], right: list[bool], title: str) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, is_right in zip(columns, right, strict=True):
        made.add_column(Text(name), justify="right" if is_right else "left", overflow="fold")
    for row in texts:
        # Text, not str: a cell such as "[run]" must not be taken for markup.
        made.add_row(*map(Text, row))
    console().print(made)


def _is_number(text: str) -> bool:
    bare = text.strip("%-+ ").replace(".", "", 1).replace(",", "")
    return not bare or bare.isdecimal()
