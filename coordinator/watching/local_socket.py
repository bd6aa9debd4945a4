"""The coordinator's local socket: commands on this machine ask here, and never log in with the coordinator's account.

A Unix socket in the run folder, for its owner only. One JSON line asks, JSON lines answer; then the connection ends,
or, where a log is followed, goes on. It has a turn in every poll of the coordinator and never blocks: buffers are
bounded, and a reader that does not keep up is cut off.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from coordinator.beside.service import Publish, Service
from coordinator.watching.log_ring import LogRing
from coordinator.watching.status import RunStatus

SOCKET_FILE = "coordinator.sock"
MAX_CLIENTS = 32
MAX_QUESTION_BYTES = 4096
MAX_PENDING_BYTES = 1024 * 1024
"""A follower with so much unread is cut off. An answer given at once may be longer."""
STALL_S = 10.0
"""A client that asks nothing, or reads nothing of what waits for it, is cut off after so long."""
SEND_BYTES = 64 * 1024


class AskStatus(msgspec.Struct, frozen=True, tag_field="ask", tag="status"):
    """How does the run stand? Answered with one line, a :class:`RunStatus`."""


class AskLog(msgspec.Struct, frozen=True, tag_field="ask", tag="log"):
    """What was logged? Answered with a line a ``LogEntry``.

    Attributes:
        device: whose lines; empty for the coordinator's own, None for all.
        n: the newest so many at once.
        follow: whether to go on with every new one.
    """

    device: str | None = None
    n: int = 100
    follow: bool = False


class Dismiss(msgspec.Struct, frozen=True, tag_field="ask", tag="dismiss"):
    """Wait no longer for a device that was thrown out. Answered with one line, :class:`Done`."""

    device: str


class Done(msgspec.Struct, frozen=True):
    """Whether there was anything to do."""

    done: bool


class Denied(msgspec.Struct, frozen=True):
    """The question was none."""

    error: str


Question = AskStatus | AskLog | Dismiss
_question: msgspec.json.Decoder[Question] = msgspec.json.Decoder(Question)


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Name a socket so that its path fits the 108 bytes of a socket's address, however deep its folder lies."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


@dataclass(slots=True)
class _Client:
    connection: socket.socket
    moved_at: float
    asked: bytearray = field(default_factory=bytearray)
    pending: bytearray = field(default_factory=bytearray)
    is_answered: bool = False
    follows: AskLog | None = None
    last_entry: int = 0


class LocalSocket(Service):
    """Answers on the socket of one run folder.

    Args:
        folder: of the run, locked by this process.
        status: says how the run stands.
        dismiss: stops waiting for a device; whether it is known.
        log: of the run.
        clock: monotonic seconds.

    Raises: OSError: no socket can be made there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        status: Callable[[], RunStatus],
        dismiss: Callable[[str], bool],
        log: LogRing,
        clock: Callable[[], float],
    ) -> None:
        self._path = folder / SOCKET_FILE
        self._status = status
        self._dismiss = dismiss
        self._log = log
        self._clock = clock
        self._clients: list[_Client] = []
        self.n_cut_off = 0
        self._path.unlink(missing_ok=True)  # of a coordinator that was killed: the folder is locked by us
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._listener.setblocking(False)
            previous = os.umask(0o177)
            try:
                with short_path(self._path) as name:
                    self._listener.bind(name)
            finally:
                os.umask(previous)
            self._listener.listen(MAX_CLIENTS)
        except BaseException:
            self._listener.close()
            raise

    def tick(self, publish: Publish) -> bool:
        """See :class:`Service`."""
        del publish
        self._accept()
        now = self._clock()
        for client in list(self._clients):
            if not self._serve(client, now):
                client.connection.close()
                self._clients.remove(client)
        return False

    def close(self) -> None:
        """See :class:`Service`. What waits for a reader is handed to the system as far as it takes it."""
        for client in self._clients:
            with suppress(OSError):
                self._follow(client)
                self._send(client, self._clock())
            client.connection.close()
        self._clients.clear()
        self._listener.close()
        # On a disk that can't be written any more its name stays; the next coordinator removes it.
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except (
                OSError
            ):  # no descriptors are left, or the client has gone already: the next turn tries again
                return
            if len(self._clients) >= MAX_CLIENTS:
                connection.close()
                continue
            connection.setblocking(False)
            self._clients.append(_Client(connection, self._clock()))

    def _serve(self, client: _Client, now: float) -> bool:
        """Do what a client's turn allows; whether it stays."""
        try:
            if not self._read(client, now):
                return False
            self._follow(client)
            self._send(client, now)
        except OSError:  # it has gone
            return False
        is_slow = len(client.pending) > MAX_PENDING_BYTES and client.follows is not None
        waits = bool(client.pending) or not client.is_answered
        if is_slow or (waits and now - client.moved_at > STALL_S):
            self.n_cut_off += 1
            return False
        return waits or client.follows is not None

    def _read(self, client: _Client, now: float) -> bool:
        """Take what a client sent; whether it is still there."""
        try:
            came = client.connection.recv(MAX_QUESTION_BYTES)
        except BlockingIOError:
            return True
        if not came:
            return client.is_answered and client.follows is None  # it may have closed its half only
        if client.is_answered:
            return True  # one question a connection
        client.asked += came
        line, end, _ = client.asked.partition(b"\n")
        if end or len(client.asked) > MAX_QUESTION_BYTES:
            self._answer(client, bytes(line))
            client.moved_at = now
        return True

    def _answer(self, client: _Client, line: bytes) -> None:
        client.is_answered = True
        try:
            question = _question.decode(line)
        except (msgspec.DecodeError, RecursionError) as exc:
            self._say(client, Denied(f"This is no question: {exc}"))
            return
        match question:
            case AskStatus():
                self._say(client, self._status())
            case Dismiss(device=device):
                self._say(client, Done(self._dismiss(device)))
            case AskLog(device=device, n=n, follow=follow):
                client.last_entry = self._log.last
                for entry in self._log.newest(n, device):
                    self._say(client, entry)
                client.follows = question if follow else None

    def _follow(self, client: _Client) -> None:
        if client.follows is None or client.last_entry == self._log.last:
            return
        for entry in self._log.since(client.last_entry, client.follows.device):
            self._say(client, entry)
        client.last_entry = self._log.last

    @staticmethod
    def _say(client: _Client, words: msgspec.Struct) -> None:
        client.pending += msgspec.json.encode(words) + b"\n"

    @staticmethod
    def _send(client: _Client, now: float) -> None:
        while client.pending:
            try:
                n = client.connection.send(client.pending[:SEND_BYTES])
            except BlockingIOError:
                return
            del client.pending[:n]
            client.moved_at = now
