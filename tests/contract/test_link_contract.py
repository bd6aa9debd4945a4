"""What every link promises, asked of each: in memory, on Mosquitto, on the embedded broker."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import pytest

from tests.mosquitto import Mosquitto
from toolkit.errors import (
    BrokerLostError,
    IdentityConflictError,
    LocalProtocolError,
    PacketTooLargeError,
    UsageError,
)
from toolkit.link.base import BrokerAddress, Connected, Disconnected, Link, LinkEvent, Received
from toolkit.link.broker import generate_password, start_embedded_broker
from toolkit.link.memory import MemoryBroker, MemoryLink
from toolkit.link.mqtt import MqttLink

CAP_S = 15.0
MAX_PACKET_BYTES = 300_000
CLIENTS = ("dev1", "early", "hash", "late", "other", "plus", "receiver", "sender", "stranger", "watcher")


class World(Protocol):
    """A broker under test, and links to it."""

    def link(self, client_id: str, *, will: tuple[str, bytes] | None = None) -> Link: ...
    def cut(self, link: Link) -> None: ...
    def stop(self) -> None: ...
    def start(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self._hub = MemoryBroker()

    def link(self, client_id, *, will=None):
        return MemoryLink(self._hub, client_id, will=will, max_packet_bytes=MAX_PACKET_BYTES)

    def cut(self, link):
        self._hub.drop(link)

    def stop(self):
        self._hub.stop()

    def start(self):
        self._hub.start()


class MqttWorld:
    def __init__(
        self,
        address: BrokerAddress,
        *,
        stop: Callable[[], None],
        start: Callable[[], None],
        accounts: Mapping[str, str] | None = None,
    ) -> None:
        self._address = address
        self._accounts = accounts or {}
        self.stop = stop
        self.start = start

    def link(self, client_id, *, will=None):
        address = self._address
        if client_id in self._accounts:
            address = address.with_login(client_id, self._accounts[client_id])
        return MqttLink(address, client_id, will=will, max_packet_bytes=MAX_PACKET_BYTES, max_backoff_s=0.1)

    def cut(self, link):
        # As the broker sees a process that was killed: the socket closes, and nobody said DISCONNECT.
        link._connection._client.socket().shutdown(socket.SHUT_RDWR)


@pytest.fixture(params=["memory", pytest.param("mosquitto", marks=pytest.mark.needs_mosquitto), "embedded"])
def world(request, tmp_path) -> Iterator[World]:
    if request.param == "memory":
        yield MemoryWorld()
    elif request.param == "mosquitto":
        mosquitto = Mosquitto(tmp_path)
        mosquitto.start()
        yield MqttWorld(mosquitto.address, stop=mosquitto.kill, start=mosquitto.start)
        mosquitto.kill()
    else:
        # One account is one connection there.
        accounts = {name: generate_password() for name in CLIENTS}
        running = [start_embedded_broker(tmp_path, accounts)]
        port = running[0].address.port
        yield MqttWorld(
            running[0].address,
            accounts=accounts,
            stop=lambda: running.pop().stop(),
            start=lambda: running.append(start_embedded_broker(tmp_path, accounts, port=port)),
        )
        for broker in running:
            broker.stop()


@pytest.fixture
def connect(world) -> Iterator[Callable[..., Link]]:
    """Make a link, start it, wait until it is connected and subscribed, and close it at the end."""
    links = []

    def make(client_id: str, *filters: str, will: tuple[str, bytes] | None = None) -> Link:
        link = world.link(client_id, will=will)
        links.append(link)
        link.start()
        assert wait_for(link, Connected) == [Connected(session_present=False)]
        if filters:
            subscribe(link, *filters)
        return link

    yield make
    for link in links:
        link.close()


def wait_for(link: Link, kind: type[LinkEvent], n: int = 1) -> list[LinkEvent]:
    """Poll until ``n`` events of a kind have come; return all events."""
    events: list[LinkEvent] = []
    deadline_s = time.monotonic() + CAP_S
    while sum(isinstance(event, kind) for event in events) < n:
        assert time.monotonic() < deadline_s, f"waited {CAP_S} s for {n} x {kind.__name__}, got {events}"
        events += link.poll(0.2)
    return events


def echo_topic(link: Link) -> str:
    return f"echo/{id(link)}"


def subscribe(link: Link, *filters: str) -> None:
    """Subscribe, and return once the broker has taken it: a message of its own comes back."""
    link.subscribe(*filters, echo_topic(link))
    link.publish(echo_topic(link), b"")
    assert wait_for(link, Received)[-1] == Received(echo_topic(link), b"")


def settle(link: Link) -> list[LinkEvent]:
    """Pass everything that is still on its way to this link: what it sends to itself last comes last."""
    last = Received(echo_topic(link), b"settled")
    link.publish(last.topic, last.payload)
    events: list[LinkEvent] = []
    deadline_s = time.monotonic() + CAP_S
    while last not in events:
        assert time.monotonic() < deadline_s, f"the echo did not come back, got {events}"
        events += link.poll(0.2)
    return [event for event in events if event != last]


def test_a_message_reaches_the_subscribers_of_its_topic_and_nobody_else(connect):
    sender = connect("sender")
    plus, hash_, other = (
        connect("plus", "data/+/up"),
        connect("hash", "data/#"),
        connect("other", "data/+/down"),
    )
    sender.publish("data/dev1/up", b"payload")
    assert wait_for(plus, Received) == [Received("data/dev1/up", b"payload")]
    assert wait_for(hash_, Received) == [Received("data/dev1/up", b"payload")]
    assert settle(other) == []


def test_wildcards_stop_where_mqtt_stops_them(connect):
    receiver = connect("receiver", "a/+", "b/#")
    sender = connect("sender")
    for topic in ("a", "a/", "a/1", "a/1/2", "b", "b/1", "b/1/2", "bb/1"):
        sender.publish(topic, b"")
    sender.publish("a/last", b"")
    got = [event.topic for event in wait_for(receiver, Received, 6)]
    assert got == ["a/", "a/1", "b", "b/1", "b/1/2", "a/last"]


def test_messages_of_a_topic_arrive_whole_and_in_order(connect):
    receiver = connect("receiver", "up")
    sender = connect("sender")
    payloads = [bytes([number]) * (number * 997) for number in range(200)]
    for payload in payloads:
        sender.publish("up", payload)
    received = wait_for(receiver, Received, len(payloads))
    assert [event.payload for event in received] == payloads


@pytest.mark.parametrize("qos", [0, 1])
def test_what_is_outstanding_drains_to_nothing(connect, qos):
    receiver = connect("receiver", "up")
    sender = connect("sender")
    for _ in range(5):
        sender.publish("up", bytearray(100_000), qos=qos)
    assert sender.outstanding_bytes <= 500_000
    wait_for(receiver, Received, 5)
    deadline_s = time.monotonic() + CAP_S
    while sender.outstanding_bytes:
        assert time.monotonic() < deadline_s, f"{sender.outstanding_bytes} bytes were never acknowledged"
        time.sleep(0.001)


def test_a_retained_message_waits_for_whoever_subscribes_later(connect):
    sender = connect("sender", "state/#")
    sender.publish("state/dev1", b"old", retain=True)
    sender.publish("state/dev1", b"new", retain=True)
    sender.publish("state/dev2", b"gone", retain=True)
    sender.publish("state/dev2", b"", retain=True)
    wait_for(sender, Received, 4)
    late = connect("late")
    late.subscribe("state/+")
    assert wait_for(late, Received) == [Received("state/dev1", b"new")]
    subscribe(late, "something/else")
    assert settle(late) == []


def test_a_new_connection_receives_nothing_that_it_did_not_subscribe(connect):
    sender = connect("sender", "state/#")
    sender.publish("state/dev1", b"for subscribers", retain=True)
    wait_for(sender, Received)
    assert settle(connect("stranger", "something/else")) == []


def test_a_lost_process_leaves_its_will_retained(world, connect):
    watcher = connect("watcher", "state/+")
    device = connect("dev1", will=("state/dev1", b"offline"))
    world.cut(device)
    assert wait_for(watcher, Received) == [Received("state/dev1", b"offline")]
    late = connect("late")
    late.subscribe("state/+")
    assert wait_for(late, Received) == [Received("state/dev1", b"offline")]


def test_a_closed_link_leaves_no_will_and_has_sent_everything(connect):
    watcher = connect("watcher", "up", "state/dev1")
    device = connect("dev1", will=("state/dev1", b"offline"))
    for _ in range(10):
        device.publish("up", bytes(200_000))
    device.close()
    device.close()
    assert [event.topic for event in wait_for(watcher, Received, 10)] == ["up"] * 10
    assert settle(watcher) == []
    device.publish("up", b"after the end")
    assert device.poll(0) == []
    assert settle(watcher) == []


def test_an_oversize_message_is_refused_and_the_connection_lives(connect):
    receiver = connect("receiver", "up")
    sender = connect("sender")
    with pytest.raises(PacketTooLargeError) as caught:
        sender.publish("up", bytes(MAX_PACKET_BYTES))
    assert caught.value.facts["limit_bytes"] == MAX_PACKET_BYTES
    assert caught.value.facts["n_bytes"] > MAX_PACKET_BYTES
    sender.publish("up", b"small")
    assert wait_for(receiver, Received) == [Received("up", b"small")]


@pytest.mark.parametrize("topic", ["", "a/+/b", "a/#", "nul\0"])
def test_an_invalid_topic_is_our_own_bug(connect, topic):
    with pytest.raises(LocalProtocolError):
        connect("sender").publish(topic, b"")


@pytest.mark.parametrize("topic_filter", ["", "a#", "a/#/b", "+a/b"])
def test_an_invalid_filter_is_our_own_bug(connect, topic_filter):
    with pytest.raises(LocalProtocolError):
        connect("receiver").subscribe(topic_filter)


def test_a_link_needs_a_client_id(world):
    with pytest.raises(UsageError, match="client id"):
        world.link("")


def test_after_a_restart_of_the_broker_come_disconnected_then_connected_and_nothing_stale(world, connect):
    receiver, sender = connect("receiver", "up"), connect("sender")
    sender.publish("up", b"before")
    wait_for(receiver, Received)
    world.stop()
    assert all(isinstance(event, Disconnected) for event in wait_for(sender, Disconnected))
    sender.publish("up", b"stale")
    assert sender.outstanding_bytes == 0
    world.start()
    # Attempts meanwhile may have failed, each with a Disconnected of its own.
    *failures, last = wait_for(sender, Connected)
    assert last == Connected(session_present=False)
    assert all(isinstance(event, Disconnected) for event in failures)
    events = wait_for(receiver, Connected)
    assert isinstance(events[0], Disconnected)
    subscribe(receiver, "up")
    sender.publish("up", b"after")
    assert wait_for(receiver, Received) == [Received("up", b"after")]


def test_a_reconnected_link_has_no_subscription_left(world, connect):
    receiver, sender = connect("receiver", "up"), connect("sender")
    world.cut(receiver)
    lost, connected = wait_for(receiver, Connected)
    assert isinstance(lost, Disconnected)
    assert isinstance(lost.error, BrokerLostError)
    assert lost.error.retryable
    assert connected == Connected(session_present=False)
    sender.publish("up", b"unheard")
    subscribe(receiver, "something/else")
    assert settle(receiver) == []


def test_a_link_that_starts_before_its_broker_says_so_and_connects_later(world):
    world.stop()
    link = world.link("early")
    link.start()
    assert isinstance(wait_for(link, Disconnected)[0], Disconnected)
    world.start()
    assert wait_for(link, Connected)[-1] == Connected(session_present=False)
    link.close()


def test_a_newer_connection_takes_the_client_id_over(world, connect):
    watcher = connect("watcher", "state/dev1")
    older = connect("dev1", will=("state/dev1", b"offline"))
    newer = world.link("dev1")
    newer.start()
    wait_for(newer, Connected)
    assert isinstance(wait_for(older, Disconnected)[0], Disconnected)
    older.close()
    newer.close()
    assert wait_for(watcher, Received)[0] == Received("state/dev1", b"offline")


def test_two_processes_of_one_client_id_learn_the_cause(world, connect):
    ours, theirs = connect("dev1"), world.link("dev1")
    theirs.start()
    conflicts = []
    deadline_s = time.monotonic() + CAP_S
    while not conflicts:
        assert time.monotonic() < deadline_s, "never told of the conflict"
        lost = [event for event in ours.poll(0.02) + theirs.poll(0.02) if isinstance(event, Disconnected)]
        conflicts = [event.error for event in lost if isinstance(event.error, IdentityConflictError)]
    theirs.close()
    assert conflicts[0].facts["client_id"] == "dev1"
