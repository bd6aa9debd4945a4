"""Asking the coordinator of a run folder on this machine."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from coordinator.watching.local_socket import (
    SOCKET_FILE,
    AskLog,
    AskStatus,
    Denied,
    Dismiss,
    Done,
    Question,
    short_path,
)
from coordinator.watching.log_ring import LogEntry
from coordinator.watching.status import RunStatus
from toolkit.errors import RunError

ANSWER_S = 30.0
"""So long an answer may take: a coordinator answers between two training steps."""


def is_answering(folder: Path) -> bool:
    """Whether a coordinator of this run folder is there to be asked."""
    try:
        with _connected(folder):
            return True
    except OSError:
        return False


def ask_status(folder: Path) -> RunStatus | None:
    """Ask how a run stands.

    Returns: the answer, or None where no coordinator runs.
    Raises: RunError: it runs, and does not answer.
    """
    for line in _ask(folder, AskStatus()):
        return msgspec.json.decode(line, type=RunStatus)
    return None


def ask_log(folder: Path, question: AskLog) -> Iterator[LogEntry]:
    """Ask for log lines; nothing comes where no coordinator runs.

    Raises: RunError: it runs, and does not answer.
    """
    for line in _ask(folder, question):
        yield msgspec.json.decode(line, type=LogEntry)


def dismiss(folder: Path, device: str) -> bool:
    """Tell a run not to wait for a device any more.

    Returns: whether a coordinator runs and had heard of it.
    Raises: RunError: it runs, and does not answer.
    """
    return any(msgspec.json.decode(line, type=Done).done for line in _ask(folder, Dismiss(device)))


def _ask(folder: Path, question: Question) -> Iterator[bytes]:
    try:
        with _connected(folder) as connection, connection.makefile("rb") as answers:
            connection.sendall(msgspec.json.encode(question) + b"\n")
            if isinstance(question, AskLog) and question.follow:
                connection.settimeout(None)
            for line in answers:
                if not line.endswith(b"\n"):  # it ended in the middle of a word
                    return
                if line.startswith(b'{"error"'):
                    raise RunError(
                        f"The coordinator of {folder} says: {msgspec.json.decode(line, type=Denied).error}"
                    )
                yield line
    except TimeoutError as exc:
        raise RunError(
            f"The coordinator of {folder} runs, but has not answered for {ANSWER_S:g} s.",
            hint="A training step may take that long; ask again, or look at its own output.",
        ) from exc
    except (FileNotFoundError, ConnectionError):
        return


@contextmanager
def _connected(folder: Path) -> Iterator[socket.socket]:
    """Connect.

    Raises: OSError: nobody is there.
    """
    with (
        short_path(folder / SOCKET_FILE) as name,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
    ):
        connection.settimeout(ANSWER_S)
        connection.connect(name)
        yield connection
