"""One login, held for as long as it takes to find something out: it sends, it waits, it says what was delivered."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from toolkit.errors import BrokerError, BrokerUnreachableError, require
from toolkit.link.base import BrokerAddress, Connected, Disconnected, Received
from toolkit.wire.limits import MAX_MESSAGE_BYTES

ANSWER_S = 5.0
_SLICE_S = 0.05


class Probe:
    """A connection that raises what a ``Link`` only reports; a context manager that closes it.

    Args:
        address: with the login.
        client_id: by default the account, else one of chance.
        max_packet_bytes: the largest packet it sends.
        answer_s: how long anything may take.

    Raises:
        BrokerError: it was not let in; the subclass says why.
        MissingPartError: paho is not installed.
    """

    def __init__(
        self,
        address: BrokerAddress,
        *,
        client_id: str = "",
        max_packet_bytes: int = MAX_MESSAGE_BYTES,
        answer_s: float = ANSWER_S,
    ) -> None:
        require("paho", part="agent", purpose="Talking to a broker")
        from toolkit.link.mqtt import MqttLink

        self.address = address
        self.answer_s = answer_s
        self.n_connections = 0
        self.session_present = False
        self.received: list[Received] = []
        self._link = MqttLink(
            address,
            client_id or address.username or f"hsee-check-{secrets.token_hex(6)}",
            max_packet_bytes=max_packet_bytes,
            max_backoff_s=0.2,
        )
        self._lost: BrokerError | None = None
        self._link.start()
        try:
            is_in = self.wait_until(lambda: self.is_connected, self.answer_s * 2)
        except BaseException:
            self.close()
            raise
        if not is_in:
            self.close()
            raise BrokerUnreachableError(
                f"{address} did not answer the login within {self.answer_s * 2:g} s.",
                hint="Check that an MQTT broker listens there, and how busy it is.",
                broker=str(address),
            )

    @property
    def is_connected(self) -> bool:
        """Whether it has been let in and was not cut off since."""
        return self.n_connections > 0 and self._lost is None

    @property
    def lost(self) -> BrokerError | None:
        """Why the connection ended, if it did."""
        return self._lost

    def subscribe(self, *filters: str) -> None:
        """Subscribe; the broker may refuse without a word."""
        self._link.subscribe(*filters)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish at QoS 1; the broker may drop it without a word."""
        self._link.publish(topic, payload, retain=retain)

    def wait_until(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Take what comes until something holds or time is up; returns whether it holds.

        Raises: BrokerError: the broker refused the first connection.
        """
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return False
            self._take(min(left_s, _SLICE_S))
        return True

    def echo(self, topic: str, payload: bytes, *, timeout_s: float = 0.0) -> float | None:
        """Send something to oneself; returns the seconds until it is back, None if it never came or the link broke."""
        n_before = len(self.received)
        start_s = time.perf_counter()
        self.publish(topic, payload)

        def is_back() -> bool:
            return any(m.topic == topic and m.payload == payload for m in self.received[n_before:])

        self.wait_until(lambda: is_back() or not self.is_connected, timeout_s or self.answer_s)
        return time.perf_counter() - start_s if is_back() else None

    def fence(self, topic: str) -> bool:
        """Wait until all that was sent here before has been dealt with, and all that was due here has come.

        Args:
            topic: which this account may send to and hears.
        """
        return self.echo(topic, secrets.token_bytes(16)) is not None

    def close(self) -> None:
        """Leave. May be called twice."""
        self._link.close(0.5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, timeout_s: float) -> None:
        for event in self._link.poll(timeout_s):
            match event:
                case Connected():
                    self.n_connections += 1
                    self.session_present = event.session_present
                    self._lost = None
                case Disconnected():
                    if not self.n_connections:
                        raise event.error
                    self._lost = event.error
                case Received():
                    self.received.append(event)
