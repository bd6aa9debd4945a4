"""A cable between devices and a broker that can be pulled: what is sent then goes nowhere, and nobody is told."""

from __future__ import annotations

import selectors
import socket
import threading
from types import TracebackType
from typing import Self

_READ_BYTES = 256 * 1024
_ACCEPTED = b"\x20\x02\x00"
"""A CONNACK that lets a client in, less its flags."""


class Cable:
    """Carries every connection of one port to a broker's, in a thread of its own.

    Args:
        broker_port: on this machine.
        claims_sessions: the broker's answer to every connection says that it kept a session.
    """

    def __init__(self, broker_port: int, *, claims_sessions: bool = False) -> None:
        self._broker_port = broker_port
        self._claims_sessions = claims_sessions
        self._unheard: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._peers: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._is_in = threading.Event()
        self._is_in.set()
        self._is_torn = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)

    def pull(self) -> None:
        """Carry nothing from now on; connections stay open, as far as both ends can tell."""
        self._is_in.clear()

    def tear(self) -> None:
        """Break every connection at once; both ends are told."""
        self._is_torn.set()
        self._is_in.set()

    def plug_in(self) -> None:
        """Carry again. What was sent meanwhile is lost, and with it the connections."""
        self.tear()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._ended.set()
        self._is_in.set()
        self._thread.join(5.0)
        for end in (self._listener, *self._peers):
            end.close()

    def _carry(self) -> None:
        while not self._ended.is_set():
            self._is_in.wait()
            if self._is_torn.is_set():  # here, because only one thread may touch what the selector holds
                self._is_torn.clear()
                for end in list(self._peers):
                    self._drop(end)
            for key, _ in self._selector.select(0.05):
                if not self._is_in.is_set():
                    break
                end = key.fileobj
                assert isinstance(end, socket.socket)
                if end is self._listener:
                    self._accept()
                else:
                    self._forward(end)

    def _accept(self) -> None:
        device, _ = self._listener.accept()
        try:
            broker = socket.create_connection(("127.0.0.1", self._broker_port), timeout=5.0)
        except OSError:
            device.close()
            return
        for end, other in ((device, broker), (broker, device)):
            self._peers[end] = other
            self._selector.register(end, selectors.EVENT_READ)
        if self._claims_sessions:
            self._unheard.add(broker)

    def _claimed(self, end: socket.socket, data: bytes) -> bytes:
        """Set the flag "session present" in a CONNACK that lets a client in."""
        if end in self._unheard:
            self._unheard.remove(end)
            if data[:2] + data[3:4] == _ACCEPTED:
                return data[:2] + b"\x01" + data[3:]
        return data

    def _forward(self, end: socket.socket) -> None:
        other = self._peers.get(end)
        if other is None:
            return  # its other end went a moment ago
        try:
            data = end.recv(_READ_BYTES)
            if data:
                data = self._claimed(end, data)
                other.sendall(data)
                return
        except OSError:
            pass  # one end is gone: so is the other
        for one in (end, other):
            self._drop(one)

    def _drop(self, end: socket.socket) -> None:
        if self._peers.pop(end, None) is not None:
            self._selector.unregister(end)
            end.close()
