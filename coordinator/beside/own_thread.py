"""A service with a thread of its own: what it is asked does not wait for the training step that is under way."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from coordinator.beside.service import Publish, Service
from coordinator.fleet.allowance import Seldom
from toolkit.errors import RemoteProtocolError

MAX_HELD_BYTES = 64 * 1024 * 1024
"""Of messages that the service has not taken yet; what arrives beyond is dropped and counted."""
IDLE_S = 1.0
"""So often a service has a turn although nothing arrives."""


class Beside(Service):
    """Takes messages from any thread, and gives the service in it its turns in one of its own.

    The service must share nothing with training: it is not told of the run's layers. What goes wrong in its thread, but
    a message that is refused, is raised at the next turn.

    Args:
        service: touched by this thread alone from the first turn on.
        clock: monotonic seconds.
        say: takes lines for whoever watches, from that thread.
    """

    def __init__(self, service: Service, *, clock: Callable[[], float], say: Callable[[str], None]) -> None:
        self._service = service
        self._clock = clock
        self._say = say
        self._arrived = threading.Condition()
        self._messages: deque[tuple[str, bytes]] = deque()
        self._held_bytes = 0
        self._closing = False
        self._failure: BaseException | None = None
        self._refusals = Seldom()
        self._thread: threading.Thread | None = None
        self.n_dropped = 0
        self.n_refused = 0

    @property
    def filters(self) -> Sequence[str]:
        """Those of the service."""
        return self._service.filters

    def take(self, topic: str, payload: bytes) -> None:
        """Hand a message to the thread; returns at once."""
        with self._arrived:
            if self._held_bytes + len(payload) > MAX_HELD_BYTES:
                self.n_dropped += 1
                return
            self._messages.append((topic, payload))
            self._held_bytes += len(payload)
            self._arrived.notify()

    def tick(self, publish: Publish) -> bool:
        """Start the thread, or raise what ended it."""
        if self._failure is not None:
            raise self._failure
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(publish,), name=f"hsee-{type(self._service).__name__}", daemon=True
            )
            self._thread.start()
        return False

    def close(self) -> None:
        """End the thread after the turn that is under way, then the service."""
        with self._arrived:
            self._closing = True
            self._arrived.notify()
        if self._thread is not None:
            self._thread.join()
        self._service.close()

    def _run(self, publish: Publish) -> None:
        busy = False
        try:
            while not self._closing:
                for topic, payload in self._wait(0.0 if busy else IDLE_S):
                    self._give(topic, payload)
                busy = self._service.tick(publish)
        except BaseException as exc:  # noqa: BLE001 - not kept quiet: it is raised where the run's owner sees it
            self._failure = exc

    def _wait(self, timeout_s: float) -> list[tuple[str, bytes]]:
        with self._arrived:
            self._arrived.wait_for(lambda: self._messages or self._closing, timeout_s)
            messages = list(self._messages)
            self._messages.clear()
            self._held_bytes = 0
        return messages

    def _give(self, topic: str, payload: bytes) -> None:
        try:
            self._service.take(topic, payload)
        except RemoteProtocolError as exc:
            self.n_refused += 1
            n_quiet = self._refusals.worth_saying(topic, self._clock())
            if n_quiet is not None:
                more = f" ({n_quiet} more since the last that was told)" if n_quiet else ""
                self._say(f"Refused a message on {topic}: {exc.message}{more}")
