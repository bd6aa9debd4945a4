"""Lines for a log: plain on a terminal or in a file, with systemd's priority in front where the journal reads them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

Level = Literal["error", "warning", "info", "debug"]
PRIORITIES: dict[Level, int] = {"error": 3, "warning": 4, "info": 6, "debug": 7}
"""Levels as syslog and the journal number them."""
log = logging.getLogger(__name__)
Write = Callable[[str, Level], None]
_CONTROLS = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def printable(text: str) -> str:
    """Write out control characters: what a device says of itself must not steer the terminal that it is read on."""
    return text.translate(_CONTROLS)


def is_journal(stream: TextIO) -> bool:
    """Whether what is written to a stream goes to the journal: systemd names the device and inode it reads from."""
    named = os.environ.get("JOURNAL_STREAM", "")
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


def in_journal(text: str, level: Level) -> str:
    """Put the priority in front of every line of a text."""
    return "\n".join(f"<{PRIORITIES[level]}>{line}" for line in text.split("\n"))


def write_line(text: str, level: Level = "info") -> None:
    """Write a line to stdout at once; on a full disk, or to a terminal that is gone, it is lost: work outlives its log.

    Raises: BrokenPipeError: whoever read the lines has gone.
    """
    text = printable(text)
    try:
        sys.stdout.write((in_journal(text, level) if is_journal(sys.stdout) else text) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        log.debug("A line can't be written: %s", exc)


@contextmanager
def log_all(*, on: bool = True) -> Iterator[None]:
    """Within the block write all that the modules below ``toolkit`` log to stderr: connections, subscriptions, pauses."""
    if not on:
        yield
        return
    all_of_us = logging.getLogger("toolkit")
    handler, before = logging.StreamHandler(sys.stderr), all_of_us.level
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    all_of_us.addHandler(handler)
    all_of_us.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        all_of_us.setLevel(before)
        all_of_us.removeHandler(handler)


class LogTo(logging.Handler):
    """Hands what the modules below ``toolkit`` log to whoever takes lines, within a ``with`` block.

    Args:
        write: takes each; it may be called from any thread.
    """

    def __init__(self, write: Write) -> None:
        super().__init__(logging.INFO)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """See :class:`logging.Handler`."""
        level: Level = (
            "error" if record.levelno >= logging.ERROR
            else "warning" if record.levelno >= logging.WARNING
            else "info"
        )  # fmt: skip
        self._write(record.getMessage(), level)

    def __enter__(self) -> None:
        logging.getLogger("toolkit").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("toolkit").removeHandler(self)
