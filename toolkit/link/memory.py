"""A broker and its links in one thread's memory: no clock, no threads, the same history every time.

Everything happens inside a call: a publish goes into the receivers' queues at once, in order, and comes out when they
poll. ``poll`` never waits, since nothing can happen while the only thread waits. It carries the simulator, and tests of
everything above a link; the contract suite keeps it from drifting away from the real ones.
"""

from __future__ import annotations

from collections import deque

from toolkit.errors import BrokerError, BrokerLostError, BrokerUnreachableError
from toolkit.link.base import (
    MAX_MQTT_PACKET_BYTES,
    Connected,
    Disconnected,
    LinkEvent,
    Received,
    check_client,
    check_filter,
    check_publish,
    identity_conflict,
    matches,
)

EVICTIONS_TO_CONFLICT = 4


class MemoryBroker:
    """The hub. It may be stopped and started; retained messages are lost with it, as with a real one unpersisted."""

    def __init__(self) -> None:
        self._links: dict[str, MemoryLink] = {}
        self._retained: dict[str, bytes] = {}
        self.is_up = True

    def stop(self) -> None:
        """Cut every connection off and forget everything."""
        self.is_up = False
        for link in list(self._links.values()):
            self._remove(link)
            link.cut_off(BrokerUnreachableError("The memory broker was stopped."))
        self._retained.clear()

    def start(self) -> None:
        """Be there again; links come back at their next poll."""
        self.is_up = True

    def drop(self, link: MemoryLink) -> None:
        """Cut one connection off as if its cable were pulled: its will is published."""
        if self._remove(link):
            link.cut_off(BrokerLostError(f"The connection of {link.client_id!r} was cut."))
            self._publish_will(link)

    def connect(self, link: MemoryLink) -> None:
        """Let a link in; a link of the same client id is cut off first."""
        older = self._links.get(link.client_id)
        if older is not None:
            self._remove(older)
            older.evict()
            self._publish_will(older)
        self._links[link.client_id] = link

    def disconnect(self, link: MemoryLink) -> None:
        """Let a link go in peace: no will."""
        self._remove(link)

    def send_retained(self, link: MemoryLink, topic_filter: str) -> None:
        """Deliver what is retained under a filter that a link just subscribed."""
        for topic, payload in self._retained.items():
            if matches(topic_filter, topic):
                link.deliver(topic, payload)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        """Deliver to every subscriber now, in the order they connected; once each, however many filters match."""
        if retain and payload:
            self._retained[topic] = payload
        elif retain:
            self._retained.pop(topic, None)
        for link in list(self._links.values()):
            if any(matches(topic_filter, topic) for topic_filter in link.filters):
                link.deliver(topic, payload)

    def _remove(self, link: MemoryLink) -> bool:
        if self._links.get(link.client_id) is not link:
            return False
        del self._links[link.client_id]
        return True

    def _publish_will(self, link: MemoryLink) -> None:
        if link.will is not None:
            topic, payload = link.will
            self.publish(topic, payload, retain=True)


class MemoryLink:
    """A ``Link`` to a ``MemoryBroker``.

    Args:
        hub: the broker.
        client_id: whoever connects with it last has it.
        will: topic and payload that the hub publishes, retained, when this link is cut off.
        max_packet_bytes: the packet limit.
    """

    def __init__(
        self,
        hub: MemoryBroker,
        client_id: str,
        *,
        will: tuple[str, bytes] | None = None,
        max_packet_bytes: int = MAX_MQTT_PACKET_BYTES,
    ) -> None:
        check_client(client_id, max_packet_bytes)
        self.client_id = client_id
        self.will = will
        self.filters: dict[str, None] = {}
        self._hub = hub
        self._max_packet_bytes = max_packet_bytes
        self._events: deque[LinkEvent] = deque()
        self._wants_connection = False
        self._is_connected = False
        self._n_evictions = 0

    @property
    def outstanding_bytes(self) -> int:
        """Always 0: what is published has been delivered when the call returns."""
        return 0

    @property
    def max_packet_bytes(self) -> int:
        """See ``Link.max_packet_bytes``."""
        return self._max_packet_bytes

    @property
    def n_dropped(self) -> int:
        """Always 0: the queue is as long as the test."""
        return 0

    def start(self) -> None:
        """Connect now, or at a later poll if the hub is down."""
        if self._wants_connection:
            return
        self._wants_connection = True
        if not self._hub.is_up:
            self._events.append(Disconnected(BrokerUnreachableError("The memory broker is not running.")))
        self._connect()

    def subscribe(self, *filters: str) -> None:
        """See ``Link.subscribe``."""
        for topic_filter in filters:
            check_filter(topic_filter)
        if self._is_connected:
            for topic_filter in filters:
                self.filters[topic_filter] = None
                self._hub.send_retained(self, topic_filter)

    def publish(self, topic: str, payload: bytes | bytearray, *, qos: int = 1, retain: bool = False) -> None:
        """See ``Link.publish``."""
        check_publish(topic, len(payload), qos=qos, max_packet_bytes=self._max_packet_bytes)
        if self._is_connected:
            self._hub.publish(topic, bytes(payload), retain=retain)

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        """Return what happened; reconnect if the hub is up. Never waits."""
        del timeout_s
        events = list(self._events)
        self._events.clear()
        if not events:
            # Only once the caller has seen the loss: Disconnected always comes before its Connected.
            self._connect()
            events = list(self._events)
            self._events.clear()
        return events

    def close(self, timeout_s: float = 2.0) -> None:
        """Leave in peace."""
        del timeout_s
        self._wants_connection = False
        if self._is_connected:
            self._is_connected = False
            self.filters.clear()
            self._hub.disconnect(self)

    def cut_off(self, error: BrokerError) -> None:
        """Take the news from the hub that the connection is gone."""
        self._is_connected = False
        self.filters.clear()
        self._events.append(Disconnected(error))

    def evict(self) -> None:
        """Take the news from the hub that another link has this client id now."""
        self._n_evictions += 1
        if self._n_evictions >= EVICTIONS_TO_CONFLICT:
            self.cut_off(identity_conflict(self.client_id, self._n_evictions))
        else:
            self.cut_off(BrokerLostError(f"The connection of {self.client_id!r} was taken over."))

    def deliver(self, topic: str, payload: bytes) -> None:
        """Take a message from the hub."""
        self._events.append(Received(topic, payload))

    def _connect(self) -> None:
        if self._wants_connection and not self._is_connected and self._hub.is_up:
            self._is_connected = True
            self._events.append(Connected(session_present=False))
            self._hub.connect(self)
