"""A board that is asked to measure itself as it joins measures the way it came by, over the connection that it has."""

import time

import msgspec
import pytest

from device_agent.lent_link import LendableLink
from device_agent.workbench import Workbench
from toolkit.config import load_config
from toolkit.link.base import Connected, Disconnected, Received
from toolkit.link.memory import MemoryBroker, MemoryLink
from toolkit.link.mqtt import MqttLink
from toolkit.profile.locate import find_profile
from toolkit.profile.schema import parse_profile, profile_text, read_profile
from toolkit.wire.limits import MAX_MESSAGE_BYTES

CAP_S = 20.0
OWN = "hsee/v1/home/check/dev1"
PROFILE = msgspec.structs.replace(read_profile(find_profile("middle")), link=None)


def connected(broker, client_id, *filters):
    link = LendableLink(
        MqttLink(broker.address, client_id, max_packet_bytes=MAX_MESSAGE_BYTES, max_backoff_s=0.1)
    )
    link.start()
    wait_for(link, lambda e: isinstance(e, Connected))
    link.subscribe(*filters, f"echo/{client_id}")
    link.publish(f"echo/{client_id}", b"")  # it comes back once the broker has taken the subscriptions
    wait_for(link, lambda e: e == Received(f"echo/{client_id}", b""))
    return link


def wait_for(link, wanted):
    deadline_s = time.monotonic() + CAP_S
    while time.monotonic() < deadline_s:
        for event in link.poll(0.1):
            if wanted(event):
                return
    raise AssertionError("it did not come")


def bench_of(said, **settings):
    config = load_config({"device.id": "dev1", **settings}, env={})
    return Workbench(config, device="dev1", data=None, say=said.append)


@pytest.mark.needs_mosquitto
def test_the_link_is_measured_and_the_agents_messages_wait(mosquitto):
    said = []
    link, other = connected(mosquitto, "dev1", "down"), connected(mosquitto, "coordinator")
    for n in range(3):
        other.publish("down", b"%d" % n)
    text = bench_of(said).measure_link(
        profile_text(PROFILE), link.lend(OWN), topic=OWN, address=mosquitto.address
    )
    measured = parse_profile(text)
    assert measured.cuts == PROFILE.cuts
    assert measured.link.provenance == "measured"
    assert measured.link.up_bytes_per_s > 1e5
    assert len(measured.link.transfers) == 2
    assert [line.partition(":")[0] for line in said] == ["link"]
    heard = []
    deadline_s = time.monotonic() + CAP_S
    while len(heard) < 3 and time.monotonic() < deadline_s:
        heard += link.poll(0.1)
    assert heard == [Received("down", b"%d" % n) for n in range(3)]
    late = connected(mosquitto, "late", OWN)
    assert late.poll(0.2) == []  # nothing of it stays at the broker
    for each in (link, other, late):
        each.close()


@pytest.mark.needs_mosquitto
def test_a_broker_that_goes_away_costs_the_link_only(mosquitto, monkeypatch):
    said = []
    link = connected(mosquitto, "dev1")
    lent = link.lend(OWN)
    publish, topics = lent.publish, []

    def publish_until_it_goes(topic, *args, **kwargs):
        topics.append(topic)
        if len(topics) == 5:
            mosquitto.kill()
        publish(topic, *args, **kwargs)

    monkeypatch.setattr(lent, "publish", publish_until_it_goes)
    before = profile_text(PROFILE)
    text = bench_of(said).measure_link(before, lent, topic=OWN, address=mosquitto.address)
    assert text == before
    assert said[0].startswith("the link is not measured, and the plan assumes one: The broker went away")
    assert any(isinstance(event, Disconnected) for event in link.poll(0.0))  # the agent hears of it too
    link.close()


def test_how_the_connection_stands_is_known_without_a_new_one():
    hub = MemoryBroker()
    link = LendableLink(MemoryLink(hub, "dev1"))
    link.start()
    lent = link.lend("own")
    lent.start()
    assert lent.poll(0.0) == [Connected(session_present=False)]
    lent.subscribe("own", "down")
    link.publish("down", b"1")
    link.publish("own", b"2")
    assert lent.poll(0.0) == [Received("own", b"2")]
    lent.close()
    link.publish("own", b"late")
    assert link.poll(0.0) == [Connected(session_present=False), Received("down", b"1")]
    assert link.poll(0.0) == []
    hub.stop()
    lent = link.lend("own")
    lent.start()
    [lost] = lent.poll(0.0)
    assert isinstance(lost, Disconnected)
    assert link.poll(0.0) == [lost]
