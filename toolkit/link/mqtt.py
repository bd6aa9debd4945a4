"""A link over MQTT 3.1.1 with clean sessions: the only importer of paho.

A supervisor thread makes one paho client a connection and waits for its end. Nothing of an earlier connection can be
sent on a later one, because the client that held it is gone with it. paho's own thread reads and writes the socket;
its callbacks only put events into a bounded queue, so that a slow reader never costs a keep-alive.
"""

from __future__ import annotations

import logging
import queue
import secrets
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from toolkit.errors import BrokerError, BrokerLostError, require
from toolkit.link.base import (
    BrokerAddress,
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
from toolkit.link.refusals import connack_error, connect_error, silent_error
from toolkit.link.tls import tls_context

require("paho", part="agent", purpose="A connection to an MQTT broker")

import paho.mqtt.client as paho  # noqa: E402 (only after the friendly refusal above)
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion  # noqa: E402
from paho.mqtt.properties import Properties  # noqa: E402
from paho.mqtt.reasoncodes import ReasonCode  # noqa: E402

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
MAX_BACKOFF_ACCEPTED_S = 10.0
"""After a connection that the broker took: it is up, and one that was restarted ten times is no worse than one."""
CONNECT_TIMEOUT_S = 10.0
SHORT_LIVED_S = 5.0
EVICTIONS_TO_CONFLICT = 4
"""So many accepted connections in a row, each cut off within ``SHORT_LIVED_S`` for no stated reason: an eviction."""
DEFAULT_QUEUE_BYTES = 64 * 1024 * 1024

_CLOSED_WITHOUT_A_WORD = "Unspecified error"
"""paho's name for a socket that the other side just closed: all that a 3.1.1 broker can do."""


class _Client(paho.Client):
    """paho's client, telling when its network thread has ended, whatever ended it."""

    def __init__(self, client_id: str) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=True,
            protocol=MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        self.ended = threading.Event()

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:  # noqa: FBT001, FBT002 (paho's signature)
        # ``loop_start`` runs this in its thread. on_disconnect alone is not enough: paho leaves without it when
        # select() fails, as it does with more than 1024 open files.
        try:
            return super().loop_forever(timeout, retry_first_connection)
        finally:
            self.ended.set()


class _Connection:
    """One attempt at a connection, and the connection if it came about."""

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        will: tuple[str, bytes] | None,
        tls: ssl.SSLContext | None,
        keep_alive_s: int,
        put: Callable[[LinkEvent], None],
        drop: Callable[[], None],
    ) -> None:
        self._address = address
        self._client_id = client_id
        self._keep_alive_s = keep_alive_s
        self._put = put
        self._drop = drop
        self._accepted_s: float | None = None
        self._refusal: BrokerError | None = None
        self._end_reason = "the network thread ended"
        self._leaving = threading.Event()
        self._outstanding: deque[tuple[paho.MQTTMessageInfo, int]] = deque()
        self._outstanding_bytes = 0
        self._counting = threading.Lock()
        self._client = _Client(client_id)
        self._client.connect_timeout = CONNECT_TIMEOUT_S
        self._client.on_socket_open = _send_at_once
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe
        if address.username:
            self._client.username_pw_set(address.username, address.password or None)
        if tls is not None:
            self._client.tls_set_context(tls)
        if will is not None:
            self._client.will_set(*will, qos=1, retain=True)

    @property
    def is_accepted(self) -> bool:
        return self._accepted_s is not None

    @property
    def outstanding_bytes(self) -> int:
        with self._counting:
            self._forget_acknowledged()
            return self._outstanding_bytes

    def run(self) -> BrokerError:
        """Connect, stay until the connection has ended, and return why it did."""
        log.debug("connecting to %s as %r", self._address, self._client_id)
        try:
            self._client.connect(self._address.host, self._address.port, keepalive=self._keep_alive_s)
        except (OSError, ValueError) as exc:
            return connect_error(exc, self._address, timeout_s=CONNECT_TIMEOUT_S)
        self._client.loop_start()
        self._client.ended.wait()
        self._let_go()
        if self._refusal is not None:
            return self._refusal
        if not self.is_accepted:
            return silent_error(self._end_reason, self._address)
        return BrokerLostError(
            f"The connection to {self._address} was lost ({self._end_reason.lower()}).",
            broker=str(self._address),
        )

    def _let_go(self) -> None:
        """Leave the client to nobody: it closes the last of its files when it is dropped, and not before."""
        self._client.on_connect = self._client.on_disconnect = None
        self._client.on_message = self._client.on_subscribe = None

    def lived_s(self) -> float:
        """Seconds since the broker accepted it; 0 if it did not."""
        return time.monotonic() - self._accepted_s if self._accepted_s is not None else 0.0

    def was_cut_off(self) -> bool:
        """Whether the broker accepted it and then closed it without a word."""
        return self.is_accepted and self._end_reason == _CLOSED_WITHOUT_A_WORD

    def subscribe(self, filters: Iterable[str]) -> None:
        log.debug("%r subscribes %s", self._client_id, ", ".join(filters))
        self._client.subscribe([(topic_filter, 1) for topic_filter in filters])

    def publish(self, topic: str, payload: bytes | bytearray, *, qos: int, retain: bool) -> None:
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
            with self._counting:
                self._outstanding.append((info, len(payload)))
                self._outstanding_bytes += len(payload)
                self._forget_acknowledged()  # here too: not everybody asks what is outstanding

    def _forget_acknowledged(self) -> None:
        """Count by looking, not in on_publish: paho calls that with its own locks held, before publish() returns."""
        while self._outstanding and self._outstanding[0][0].is_published():
            self._outstanding_bytes -= self._outstanding.popleft()[1]

    def flush(self, deadline_s: float) -> None:
        """Wait until nothing is outstanding, the connection has ended, or the deadline has passed."""
        while self.is_accepted and self._outstanding and time.monotonic() < deadline_s:
            if self._client.ended.wait(0.002) or not self.outstanding_bytes:
                return

    def leave(self) -> None:
        """Say DISCONNECT, now or as soon as there is somebody to say it to."""
        self._leaving.set()
        self._client.disconnect()

    def _on_connect(
        self,
        client: paho.Client,
        _data: object,
        flags: paho.ConnectFlags,
        reason: ReasonCode,
        _: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._refusal = connack_error(reason.value, str(reason), self._address, self._client_id)
        elif self._leaving.is_set():
            client.disconnect()
        else:
            self._accepted_s = time.monotonic()
            log.debug("%s let %r in", self._address, self._client_id)
            self._put(Connected(session_present=flags.session_present))

    def _on_disconnect(
        self, _client: paho.Client, _data: object, _flags: object, reason: ReasonCode, _: Properties | None
    ) -> None:
        self._end_reason = str(reason)

    def _on_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            self._drop()
        else:
            self._put(Received(topic, bytes(message.payload)))

    def _on_subscribe(
        self, _client: paho.Client, _data: object, _mid: int, reasons: list[ReasonCode], _: Properties | None
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            log.warning(
                "%s refused a subscription of client id %r: its account was removed, or may not hear that.",
                self._address,
                self._client_id,
            )


class MqttLink:
    """A ``Link`` over MQTT.

    Args:
        address: the broker; off this machine only with TLS and credentials, or ``insecure``.
        client_id: one process's own; two that share one evict each other.
        will: topic and payload that the broker publishes, retained, when this process is lost.
        max_packet_bytes: the largest packet that the broker takes.
        keep_alive_s: a silent peer is given up after 1.5 of it.
        max_queued_bytes: received payloads held until polled; what arrives beyond is dropped and counted.
        max_backoff_s: cap of the pause before the next attempt, drawn uniformly from 0 to a doubling bound.

    Raises:
        InsecureBrokerError: see ``BrokerAddress.require_secure``.
        UsageError: an argument makes no sense, or the authority's file can't be read.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        will: tuple[str, bytes] | None = None,
        max_packet_bytes: int,
        keep_alive_s: int = 20,
        max_queued_bytes: int = DEFAULT_QUEUE_BYTES,
        max_backoff_s: float = MAX_BACKOFF_S,
    ) -> None:
        address.require_secure()
        check_client(client_id, max_packet_bytes)
        self._address = address
        self._client_id = client_id
        self._will = will
        self._max_packet_bytes = max_packet_bytes
        self._keep_alive_s = keep_alive_s
        self._max_queued_bytes = max_queued_bytes
        self._max_backoff_s = max_backoff_s
        self._tls = tls_context(address) if address.tls else None
        self._events: queue.SimpleQueue[LinkEvent] = queue.SimpleQueue()
        # Two counts of one writer each, the network thread and whoever polls: what lies between them is queued.
        self._put_bytes = 0
        self._polled_bytes = 0
        self._n_dropped = 0
        self._diverted: tuple[str, ...] = ()
        self._take_diverted: Callable[[str, bytes], None] | None = None
        self._connection: _Connection | None = None
        self._closing = threading.Event()
        self._supervisor = threading.Thread(
            target=self._keep_connected, name=f"link-{client_id}", daemon=True
        )

    @property
    def outstanding_bytes(self) -> int:
        """See ``Link.outstanding_bytes``."""
        connection = self._connection
        return connection.outstanding_bytes if connection is not None else 0

    @property
    def max_packet_bytes(self) -> int:
        """See ``Link.max_packet_bytes``."""
        return self._max_packet_bytes

    @property
    def n_dropped(self) -> int:
        """See ``Link.n_dropped``."""
        return self._n_dropped

    def divert(self, filters: Sequence[str], take: Callable[[str, bytes], None]) -> None:
        """Hand messages on some topics straight to somebody else, past ``poll``: whoever polls may be busy for long.

        Args:
            filters: of these topics; they are subscribed to as any others.
            take: called with topic and payload, in the thread that reads the socket: it must not block or raise.
        """
        self._take_diverted, self._diverted = take, tuple(filters)

    def start(self) -> None:
        """See ``Link.start``."""
        if self._supervisor.ident is None and not self._closing.is_set():
            self._supervisor.start()

    def subscribe(self, *filters: str) -> None:
        """See ``Link.subscribe``."""
        for topic_filter in filters:
            check_filter(topic_filter)
        connection = self._connection
        if connection is not None and connection.is_accepted and filters:
            connection.subscribe(filters)

    def publish(self, topic: str, payload: bytes | bytearray, *, qos: int = 1, retain: bool = False) -> None:
        """See ``Link.publish``."""
        # paho ignores the broker's limit: it would be cut off, and never learn why.
        check_publish(topic, len(payload), qos=qos, max_packet_bytes=self._max_packet_bytes)
        connection = self._connection
        if connection is not None and connection.is_accepted:
            connection.publish(topic, payload, qos=qos, retain=retain)

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        """See ``Link.poll``."""
        try:
            events = [self._events.get(timeout=max(0.0, timeout_s))]
        except queue.Empty:
            return []
        while not self._events.empty():  # nobody else takes from it
            events.append(self._events.get())
        self._polled_bytes += sum(_n_bytes(event) for event in events)
        return events

    def close(self, timeout_s: float = 2.0) -> None:
        """See ``Link.close``."""
        deadline_s = time.monotonic() + timeout_s
        connection = self._connection
        if connection is not None and not self._closing.is_set():
            connection.flush(deadline_s)
        self._closing.set()
        connection = self._connection
        if connection is not None:
            connection.leave()
        if self._supervisor.ident is not None:
            self._supervisor.join(max(0.0, deadline_s - time.monotonic()))

    def _keep_connected(self) -> None:
        n_failures = 0
        n_evictions = 0
        while not self._closing.is_set():
            connection = self._connection = _Connection(
                self._address,
                self._client_id,
                will=self._will,
                tls=self._tls,
                keep_alive_s=self._keep_alive_s,
                put=self._put,
                drop=self._count_dropped,
            )
            if self._closing.is_set():
                return
            error = connection.run()
            self._connection = None
            if self._closing.is_set():
                return
            was_short = connection.lived_s() < SHORT_LIVED_S
            n_evictions = n_evictions + 1 if connection.was_cut_off() and was_short else 0
            if n_evictions >= EVICTIONS_TO_CONFLICT:
                error = identity_conflict(self._client_id, n_evictions)
            # A connection cut off at once is a failure too, or two processes of one id would duel at full speed.
            n_failures = n_failures + 1 if was_short else 0
            self._put(Disconnected(error))
            bound_s = backoff_bound_s(n_failures, self._max_backoff_s, was_accepted=connection.is_accepted)
            # From the system: boards that boot from copies of one image must not draw alike.
            pause_s = secrets.SystemRandom().uniform(0.0, bound_s)
            log.debug("%r: %s Trying again in %.1f s.", self._client_id, error.message, pause_s)
            self._closing.wait(pause_s)

    def _put(self, event: LinkEvent) -> None:
        take = self._take_diverted
        if (
            take is not None
            and isinstance(event, Received)
            and any(matches(topic_filter, event.topic) for topic_filter in self._diverted)
        ):
            take(event.topic, event.payload)
            return
        n_bytes = _n_bytes(event)
        if n_bytes and self._put_bytes - self._polled_bytes + n_bytes > self._max_queued_bytes:
            self._n_dropped += 1
            return
        self._put_bytes += n_bytes
        self._events.put(event)

    def _count_dropped(self) -> None:
        self._n_dropped += 1


def backoff_bound_s(n_failures: int, most_s: float, *, was_accepted: bool) -> float:
    """Seconds from 0 to which the pause before the next attempt is drawn: "full jitter", so that no fleet comes back in one wave.

    Args:
        n_failures: attempts that led to nothing, in a row.
        most_s: the bound's own.
        was_accepted: whether the broker took the last one.
    Source: M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
    """
    most_s = min(most_s, MAX_BACKOFF_ACCEPTED_S) if was_accepted else most_s
    return min(most_s, FIRST_BACKOFF_S * 2.0 ** min(n_failures, 32))


def _n_bytes(event: LinkEvent) -> int:
    return len(event.topic) + len(event.payload) if isinstance(event, Received) else 0


def _send_at_once(_client: paho.Client, _data: object, sock: paho.SocketLike) -> None:
    """Hold nothing back: after a PUBACK the next message would wait for the broker's delayed acknowledgement, 40 ms."""
    if isinstance(sock, socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
