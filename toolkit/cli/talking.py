"""What a command says while it works: lines for people, objects for programs, nothing with -q, everything with -v."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from toolkit.journal import log_all, write_line

Say = Callable[[str], None]
"""Takes a line."""


@contextmanager
def talking(*, json: bool, quiet: bool, verbose: bool) -> Iterator[Say]:
    """Give what takes a command's lines, within the block.

    Args:
        json: each is an object of its own on standard output.
        quiet: none is printed; errors and the result are.
        verbose: what the parts log is written to standard error too.
    """

    def say(text: str) -> None:
        if not quiet:
            write_line(msgspec.json.encode({"event": "notice", "text": text}).decode() if json else text)

    with log_all(on=verbose):
        yield say


def hush_link() -> None:
    """Log no warning of the link for the rest of this command, which expects refusals and tells them; not with -v."""
    if not logging.getLogger("toolkit").isEnabledFor(logging.DEBUG):
        logging.getLogger("toolkit.link").setLevel(logging.ERROR)
