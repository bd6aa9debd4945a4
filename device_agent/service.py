"""What a service manager hears of this process: that it is ready, that it is alive, how it stands, that it stops.

This is systemd's notification protocol, spoken over its socket; outside of a service every word goes nowhere.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Self

FEEDS_PER_INTERVAL = 3
"""How often within its interval the watchdog is fed, so that one late poll bites nobody."""
PATIENCE_S = 5.0
"""So long the words are tried without which a manager would take the process for one that failed."""
LONG_WORK_S = 3600.0
"""So long the watchdog waits for work that can't be interrupted: a board that measures itself."""


class ServiceManager:
    """This process's word to its service manager.

    Args:
        address: path of a datagram socket, beginning with ``@`` for an abstract one; empty for none.
        watchdog_s: silence after which the manager kills this process; 0 where it does not watch.
        clock: monotonic seconds.
    """

    def __init__(self, address: str, *, watchdog_s: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._watchdog_s = watchdog_s
        self._feed_at_s = clock()
        self._status = ""
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._address = "\0" + address[1:] if address.startswith("@") else address

    @classmethod
    def of_environment(cls, env: MutableMapping[str, str], *, clock: Callable[[], float]) -> Self:
        """Read who watches this process, and keep it from the processes that this one starts."""
        address = env.pop("NOTIFY_SOCKET", "")
        watchdog_us, pid = env.pop("WATCHDOG_USEC", "0"), env.pop("WATCHDOG_PID", "")
        is_ours = watchdog_us.isdigit() and pid in ("", str(os.getpid()))
        return cls(address, watchdog_s=int(watchdog_us) / 1e6 if is_ours else 0.0, clock=clock)

    def ready(self) -> None:
        """Say that the process has everything it needs; what waits for it may start."""
        self._say("READY=1", patience_s=PATIENCE_S)

    def stopping(self) -> None:
        """Say that the process ends on purpose."""
        self._say("STOPPING=1", patience_s=PATIENCE_S)

    def alive(self) -> None:
        """Feed the watchdog, when it is time; to be called from the loop that must not hang."""
        if self._watchdog_s and self._clock() >= self._feed_at_s:
            self._say("WATCHDOG=1")
            self._feed_at_s = self._clock() + self._watchdog_s / FEEDS_PER_INTERVAL

    def status(self, text: str) -> None:
        """Say in one line how the process stands; said again only when it changes."""
        if text != self._status:
            self._status = text
            self._say(f"STATUS={' '.join(text.split())}")

    @contextmanager
    def long_work(self) -> Iterator[None]:
        """Within the block nobody feeds the watchdog, and it waits ``LONG_WORK_S``."""
        if self._watchdog_s:
            self._say(f"WATCHDOG=1\nWATCHDOG_USEC={int(LONG_WORK_S * 1e6)}")
        try:
            yield
        finally:
            if self._watchdog_s:
                self._say(f"WATCHDOG=1\nWATCHDOG_USEC={int(self._watchdog_s * 1e6)}")

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, words: str, *, patience_s: float = 0.0) -> None:
        if self._socket is None:
            return
        try:
            # A manager that does not read must not hold up training.
            self._socket.settimeout(patience_s)
            self._socket.sendto(words.encode(), self._address)
        except OSError:
            # The manager restarts, or is busy; it asks again by its own means, and training goes on.
            return
