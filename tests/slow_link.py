"""A slow way to a broker: a relay on loopback that passes no more than so many bytes a second, after so long."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Self

from toolkit.link.base import BrokerAddress

PIECE_BYTES = 2048
LATE_S = 0.2
"""So much later a thread may run, on a machine that does much else, and still make up for it."""
WAITING_S = 0.001
BUFFER_BYTES = 16 * 1024
"""Of each socket: what waits in the kernel has not passed the slow link."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Bytes a second each way, and seconds that every byte takes on top."""

    up_bytes_per_s: float
    down_bytes_per_s: float
    delay_s: float = 0.0


class SlowLink:
    """Relays connections to a broker; a context manager.

    Args:
        broker: where to.
        shape: of the link.
    """

    def __init__(self, broker: BrokerAddress, shape: Shape) -> None:
        self._broker = broker
        self._shape = shape
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress(host="127.0.0.1", port=self._server.getsockname()[1])
        self.n_up_bytes = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def cut(self) -> None:
        """Break every connection, and take no further one."""
        self._server.close()
        for end in self._sockets:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        # A thread in accept() wakes for a connection, not for a closed socket.
        socket.create_connection((self.address.host, self.address.port)).close() if self._is_open else None
        self.cut()
        for thread in self._threads:
            thread.join(5.0)
        for end in self._sockets:
            end.close()

    @property
    def _is_open(self) -> bool:
        return self._server.fileno() >= 0

    def _start(self, run, *args: object) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while self._is_open:
            try:
                near, _ = self._server.accept()
                far = socket.socket()
                for end in (near, far):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                far.connect((self._broker.host, self._broker.port))
            except OSError:
                return
            self._sockets += [near, far]
            self._relay(near, far, self._shape.up_bytes_per_s, counts=True)
            self._relay(far, near, self._shape.down_bytes_per_s, counts=False)

    def _relay(
        self, source: socket.socket, target: socket.socket, bytes_per_s: float, *, counts: bool
    ) -> None:
        """One direction: a thread takes pieces at the link's rate, another one delivers them after the delay."""
        under_way: deque[tuple[float, bytes]] = deque()
        arrived = threading.Semaphore(0)
        self._start(self._take, source, under_way, arrived, bytes_per_s, counts)
        self._start(self._deliver, target, under_way, arrived)

    def _take(self, source, under_way, arrived, bytes_per_s: float, counts) -> None:
        free_at_s = time.monotonic()
        while True:
            asked_s = time.monotonic()
            try:
                piece = source.recv(PIECE_BYTES)
            except OSError:
                piece = b""
            now = time.monotonic()
            # What waited for us while we were late may make up for it; after silence nothing is saved up.
            was_waiting = now - asked_s < WAITING_S
            free_at_s = max(free_at_s, now - (LATE_S if was_waiting else 0.0)) + len(piece) / bytes_per_s
            time.sleep(max(0.0, free_at_s - time.monotonic()))
            self.n_up_bytes += len(piece) if counts else 0
            under_way.append((time.monotonic() + self._shape.delay_s, piece))
            arrived.release()
            if not piece:
                return

    @staticmethod
    def _deliver(target, under_way, arrived) -> None:
        while True:
            arrived.acquire()
            due_s, piece = under_way.popleft()
            time.sleep(max(0.0, due_s - time.monotonic()))
            try:
                if not piece:
                    target.shutdown(socket.SHUT_RDWR)
                    return
                target.sendall(piece)
            except OSError:
                return
