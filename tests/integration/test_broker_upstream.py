"""Holds what we lean on inside amqtt: its version is pinned, and these methods are ours to watch."""

from __future__ import annotations

import hashlib
import inspect

import pytest
from amqtt.broker import Broker
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.protocol.handler import ProtocolHandler
from amqtt.plugins.authentication import FileAuthPlugin

from toolkit.link.loopback_broker import LoopbackBroker, _Broadcast

WATCHED = {
    # What LoopbackBroker overrides.
    Broker._initialize_client_session: "5dd89158bbe46266",
    Broker._authenticate: "4d7db8cc6fe2c3f6",
    Broker._publish_retained_messages_for_subscription: "d6ad257821ba29ef",
    Broker._broadcast_message: "78ad4edb7efb3b72",
    Broker._topic_filtering: "9259ae5e1dd3e20d",
    Broker.retain_message: "6233eff2618baede",
    # What calls the overrides, or is called by them, in an order that they rely on.
    Broker._client_connected: "432b724bc4fb7946",
    Broker._handle_client_session: "8b1b52a03df9daf5",
    Broker._handle_disconnect: "8c3b8702f3567055",
    Broker._delete_session: "a8333dded50648a7",
    Broker._handle_message_delivery: "89727723da550bed",
    Broker.add_subscription: "07757b63113c395e",
    Broker._run_broadcast: "e852128b3e38e04a",
    BrokerProtocolHandler.init_from_connect: "036dc04c1133a18f",
    BrokerProtocolHandler.handle_connection_closed: "e9c448557a8dab58",
    BrokerProtocolHandler.handle_disconnect: "63b454d06eab58f8",
    ProtocolHandler.stop: "874ae8871911881f",
    ProtocolHandler._reader_loop: "93f3b8e4483040d0",
    FileAuthPlugin.authenticate: "28f101534fdd014e",
    FileAuthPlugin._read_password_file: "5d188414feecdd02",
}


def digest(method) -> str:
    return hashlib.sha256(inspect.getsource(method).encode()).hexdigest()[:16]


@pytest.mark.parametrize("method", WATCHED, ids=lambda method: method.__qualname__)
def test_amqtt_is_what_the_overrides_were_written_against(method):
    assert digest(method) == WATCHED[method], (
        f"amqtt changed {method.__qualname__}: read it, check toolkit/link/loopback_broker.py against it, "
        f"then enter {digest(method)!r} here."
    )


def test_every_override_still_overrides_something():
    own = {name for name, value in vars(LoopbackBroker).items() if inspect.isfunction(value)}
    inherited = {name for name in own if hasattr(Broker, name)}
    assert own - inherited == {"_evict", "_may"}


def test_a_queued_message_is_never_written_out_whole():
    message = _Broadcast(topic="up", data=b"payload" * 1000)
    assert f"{message}" == "<message on 'up'>"
    assert message["data"] == b"payload" * 1000
