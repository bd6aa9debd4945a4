"""A broker and its links in virtual time: delay, loss, duplicates, cuts, restarts, sessions kept and wiped.

Order holds for one subscriber and one topic, as with MQTT; across topics nothing is promised.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from toolkit.errors import BrokerLostError, BrokerUnreachableError
from toolkit.link.base import (
    Connected,
    Disconnected,
    LinkEvent,
    Received,
    check_filter,
    check_publish,
    identity_conflict,
    matches,
)
from toolkit.wire.limits import MAX_MESSAGE_BYTES

KEEPALIVE_S = 10.0
ATTEMPT = -1
"""Of which connection a failed attempt is: of none."""
SHORT_LIVED_S = 5.0
EVICTIONS_TO_CONFLICT = 4
MAX_QUEUED = 200
"""Messages that a kept session holds for an absent client."""


@dataclass(frozen=True)
class Weather:
    """How messages travel.

    Attributes:
        delay_s: of one way, at least.
        jitter_s: on top of it, at most.
        p_loss: of a message, on each of its two ways. A word that is retained reaches the broker if its connection
            holds: that much a PUBACK is worth.
        p_double: likewise.
        keeps_sessions: subscriptions and messages wait for an absent client.
        lies: now and then says that a session is present that is not.
        keeps_retained: through a restart.
    """

    delay_s: float = 0.01
    jitter_s: float = 0.0
    p_loss: float = 0.0
    p_double: float = 0.0
    keeps_sessions: bool = False
    lies: bool = False
    keeps_retained: bool = True


CALM = Weather()


@dataclass(eq=False)
class Session:
    """A client's session at the broker; ``link`` where it is connected."""

    filters: dict[str, None] = field(default_factory=dict)
    queue: list[tuple[str, bytes]] = field(default_factory=list)
    link: SimLink | None = None


class SimBroker:
    """The hub.

    Args:
        weather: how messages travel.
        rng: all chance.
        at: calls a function at a time.
        now: the time.
        heard: is told every delivery, for the history.
    """

    def __init__(
        self,
        weather: Weather,
        rng: Random,
        *,
        at: Callable[[float, Callable[[], None]], None],
        now: Callable[[], float],
        heard: Callable[[str, str, bytes], None],
    ) -> None:
        self.weather = weather
        self.rng = rng
        self.at = at
        self.now = now
        self._heard = heard
        self.is_up = True
        self.is_calm = False
        self._sessions: dict[str, Session] = {}
        self._retained: dict[str, bytes] = {}

    def stop(self) -> None:
        """Be killed."""
        self.is_up = False
        for session in self._sessions.values():
            if session.link is not None:
                session.link.lose_soon(0.0)
                session.link = None
        if not self.weather.keeps_retained:
            self._retained.clear()
        if not self.weather.keeps_sessions or self.rng.random() < 0.5:
            self._sessions.clear()

    def start(self) -> None:
        """Be there again."""
        self.is_up = True

    def travel_s(self) -> float | None:
        """How long one way takes now; None for a message that is lost."""
        weather = self.weather
        if not self.is_calm and self.rng.random() < weather.p_loss:
            return None
        return weather.delay_s + self.rng.random() * weather.jitter_s

    def copies(self) -> int:
        return 2 if not self.is_calm and self.rng.random() < self.weather.p_double else 1

    def connect(self, link: SimLink) -> bool:
        """Let a link in; returns whether a session is present."""
        session = self._sessions.get(link.client_id)
        was_there = session is not None
        if session is not None and session.link is not None:
            session.link.n_evictions += 1
            self.drop(session.link, will=True)
        if session is None or not self.weather.keeps_sessions:
            session = self._sessions[link.client_id] = Session()
            was_there = self.weather.lies
        session.link = link
        for topic, payload in session.queue:
            self._send(link, topic, payload)
        session.queue.clear()
        return was_there

    def drop(self, link: SimLink, *, will: bool) -> None:
        """A connection is over, as the broker sees it."""
        session = self._sessions.get(link.client_id)
        if session is None or session.link is not link:
            return
        session.link = None
        link.lose_soon(0.0)
        if will and link.will is not None:
            self.publish(*link.will, retain=True)

    def leave(self, link: SimLink) -> None:
        session = self._sessions.get(link.client_id)
        if session is not None and session.link is link:
            del self._sessions[link.client_id]

    def subscribe(self, link: SimLink, topic_filter: str) -> None:
        session = self._sessions.get(link.client_id)
        if session is None or session.link is not link:
            return
        session.filters[topic_filter] = None
        for topic, payload in list(self._retained.items()):
            if matches(topic_filter, topic):
                self._send(link, topic, payload)

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> None:
        if retain:
            self._retained[topic] = payload
        for session in list(self._sessions.values()):
            if any(matches(topic_filter, topic) for topic_filter in session.filters):
                if session.link is not None:
                    self._send(session.link, topic, payload)
                elif self.weather.keeps_sessions and len(session.queue) < MAX_QUEUED:
                    session.queue.append((topic, payload))

    def _send(self, link: SimLink, topic: str, payload: bytes) -> None:
        for _ in range(self.copies()):
            travel_s = self.travel_s()
            if travel_s is not None:
                link.coming(self.now() + travel_s, topic, payload)

    def heard(self, link: SimLink, topic: str, payload: bytes) -> None:
        self._heard(link.client_id, topic, payload)


class SimLink:
    """``toolkit.link.base.Link`` to a :class:`SimBroker`, of one process.

    Args:
        hub: the broker.
        client_id: of the account.
        clock: of its process.
        wake: is called with the time at which something will be here.
        will: topic and payload.
        published: is told what its process hands over.
    """

    outstanding_bytes = 0
    n_dropped = 0
    max_packet_bytes = MAX_MESSAGE_BYTES

    def __init__(
        self,
        hub: SimBroker,
        client_id: str,
        *,
        clock: Callable[[], float],
        wake: Callable[[float], None],
        will: tuple[str, bytes],
        published: Callable[[str, bytes], None] = lambda _topic, _payload: None,
    ) -> None:
        self.client_id = client_id
        self.will = will
        self._hub = hub
        self._clock = clock
        self._wake = wake
        self._published = published
        self._incoming: list[tuple[float, int, LinkEvent, int]] = []
        self._last_at: dict[str, float] = {}
        self._n = 0
        self._wants = False
        self._is_connected = False
        self._is_trying = False
        self._connection = 0
        self._try_at = 0.0
        self.path_is_up = True
        self.is_dead = False
        self.n_heard = 0
        self.n_evictions = 0
        self._connected_at = 0.0

    # The contract

    def start(self) -> None:
        self._wants = True
        self._try_at = self._clock()

    def subscribe(self, *filters: str) -> None:
        for topic_filter in filters:
            check_filter(topic_filter)
            self._to_broker(lambda wanted=topic_filter: self._hub.subscribe(self, wanted), sure=True)

    def publish(self, topic: str, payload: bytes | bytearray, *, qos: int = 1, retain: bool = False) -> None:
        check_publish(topic, len(payload), qos=qos, max_packet_bytes=MAX_MESSAGE_BYTES)
        content = bytes(payload)
        if self._is_connected:
            self._published(topic, content)
            for _ in range(self._hub.copies()):
                self._to_broker(lambda: self._hub.publish(topic, content, retain=retain), sure=retain)

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        del timeout_s
        now = self._clock()
        events: list[LinkEvent] = []
        while self._incoming and self._incoming[0][0] <= now:
            _, _, event, connection = heapq.heappop(self._incoming)
            if isinstance(event, Connected):
                self._is_connected = True
                self._connected_at = now
            elif connection != self._connection or not self._is_connected:
                if connection != ATTEMPT:
                    continue
            elif isinstance(event, Received):
                self._hub.heard(self, event.topic, event.payload)
            else:
                event = self._judged(event, now)
                self._is_connected = self._is_trying = False
                self._try_at = now + 1.0 + self._hub.rng.random() * 2.0
            events.append(event)
        self.n_heard += len(events)
        if self._wants and not self._is_connected and not self._is_trying and now >= self._try_at:
            self._is_trying = True  # its own thread connects, whatever its process computes meanwhile
            self._hub.at(now, self._connect)
        return events

    def _judged(self, event: LinkEvent, now: float) -> LinkEvent:
        """As ``toolkit.link.mqtt`` names it when short connections were cut off one after the other."""
        if now - self._connected_at >= SHORT_LIVED_S:
            self.n_evictions = 0
        if self.n_evictions < EVICTIONS_TO_CONFLICT:
            return event
        return Disconnected(identity_conflict(self.client_id, self.n_evictions))

    def close(self, timeout_s: float = 2.0) -> None:
        del timeout_s
        if self._is_connected:
            self._to_broker(lambda: self._hub.leave(self), sure=True)
        self._wants = self._is_connected = False

    # What befalls it

    @property
    def next_s(self) -> float:
        """When something will be here, or may be tried."""
        due = self._incoming[0][0] if self._incoming else float("inf")
        waits = self._wants and not self._is_connected and not self._is_trying
        return min(due, self._try_at) if waits else due

    def coming(self, at_s: float, topic: str, payload: bytes) -> None:
        """A message is on its way to this process."""
        if self.path_is_up:
            at_s = self._last_at[topic] = max(at_s, self._last_at.get(topic, 0.0) + 1e-6)
            self._push(at_s, Received(topic, payload))

    def lose_soon(self, within_s: float) -> None:
        """The connection is over; its process notices within a time."""
        self._push(self._hub.now() + within_s, Disconnected(BrokerLostError("The connection was lost.")))

    def cut(self, seconds: float) -> None:
        """Nothing comes through for a while, in either direction."""
        self.path_is_up = False
        rng = self._hub.rng
        if self._is_connected or self._is_trying:
            self.lose_soon(rng.random() * 2 * KEEPALIVE_S)
            self._hub.at(
                self._hub.now() + rng.random() * 1.5 * KEEPALIVE_S, lambda: self._hub.drop(self, will=True)
            )
        self._hub.at(self._hub.now() + seconds, self._mend)

    def die(self, *, at_once: bool) -> None:
        """Its process is gone: the broker notices at once, or when nothing comes any more."""
        self.is_dead = True
        self._wants = self._is_connected = False
        after_s = 0.0 if at_once else self._hub.rng.random() * 1.5 * KEEPALIVE_S
        self._hub.at(self._hub.now() + after_s, lambda: self._hub.drop(self, will=True))

    def _mend(self) -> None:
        self.path_is_up = True

    def _connect(self) -> None:
        if not self._wants:
            return
        if not (self._hub.is_up and self.path_is_up):
            self._try_at = self._hub.now() + 1.0 + self._hub.rng.random() * 4.0
            self._is_trying = False
            self._push(self._hub.now(), Disconnected(BrokerUnreachableError("Nobody answers.")), ATTEMPT)
            return
        self._connection += 1
        self._last_at.clear()
        self._push(self._hub.now(), Connected(self._hub.connect(self)), self._connection)

    def _to_broker(self, act: Callable[[], None], *, sure: bool = False) -> None:
        travel_s = self._hub.weather.delay_s if sure else self._hub.travel_s()
        connection = self._connection

        def arrive() -> None:
            if self._hub.is_up and self.path_is_up and connection == self._connection and not self.is_dead:
                act()

        if travel_s is not None:
            self._hub.at(self._clock() + travel_s, arrive)

    def _push(self, at_s: float, event: LinkEvent, connection: int | None = None) -> None:
        self._n += 1
        of = self._connection if connection is None else connection
        heapq.heappush(self._incoming, (at_s, self._n, event, of))
        self._wake(at_s)
