"""Rows T1 and T2 of the promises, judged by delivery on both brokers: Mosquitto as broker init sets it up, and the embedded one."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest

from tests.integration.grants_by_hand import ACCOUNTS, allowed, settle
from tests.mosquitto import find_mosquitto
from tests.served_broker import FLEET, ServedBroker
from toolkit.access.accounts import grants_of
from toolkit.access.probe import Probe
from toolkit.errors import BrokerError, BrokerLoginError
from toolkit.link.base import BrokerAddress
from toolkit.link.broker import generate_password, start_embedded_broker
from toolkit.wire.topics import Topics

MOSQUITTO = pytest.param(
    "mosquitto",
    marks=[
        pytest.mark.needs_mosquitto,
        pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
    ],
)


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that runs, and how each account logs in."""

    topics: Topics
    login: Callable[[str], BrokerAddress]

    def probe(self, account: str) -> Probe:
        return Probe(self.login(account))


@pytest.fixture(scope="module", params=[MOSQUITTO, "embedded"])
def broker(request, tmp_path_factory) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("apart")
    if request.param == "mosquitto":
        served = ServedBroker(folder / "broker", [name for name in ACCOUNTS if name != "op-admin"])
        served.start()
        yield Broker(served.topics, served.folder.login)
        served.stop()
        return
    topics = Topics(FLEET)
    passwords = {name: generate_password() for name in ACCOUNTS}
    grants = {name: grants_of(name, topics) for name in ACCOUNTS}
    with start_embedded_broker(folder, passwords, grants=grants) as embedded:
        yield Broker(topics, lambda name: embedded.address.with_login(name, passwords[name]))


def test_t1_nobody_speaks_or_hears_beyond_its_grants(broker):
    table = allowed(broker.topics)
    sent: dict[bytes, tuple[str, str]] = {}
    with ExitStack() as stack:
        probes = {name: stack.enter_context(broker.probe(name)) for name in ACCOUNTS}
        for probe in probes.values():
            for topic_filter in (*table, "#", "+/#", "hsee/v1/home/#", "hsee/v1/home/data/+/+/up"):
                probe.subscribe(topic_filter)
            settle(probe, broker.topics)
        for name, probe in probes.items():
            for topic in table:
                payload = secrets.token_bytes(16)
                sent[payload] = (name, topic)
                probe.publish(topic, payload)
            settle(probe, broker.topics)
        for probe in probes.values():
            settle(probe, broker.topics)
        delivered = {
            (*sent[message.payload], listener)
            for listener, probe in probes.items()
            for message in probe.received
            if message.payload in sent
        }
    expected = {
        (speaker, topic, listener)
        for topic, (speakers, listeners) in table.items()
        for speaker in speakers
        for listener in listeners
    }
    assert delivered - expected == set(), "delivered and should not be"
    assert expected - delivered == set(), "should be delivered"


def test_t1_nor_by_what_is_retained(broker):
    """A retained word is kept if its sender may send it, and told to whom it may be told; a last will is such a word too."""
    topics = broker.topics
    state, other = topics.device_state("dev1"), topics.device_state("dev2")
    word, forged = secrets.token_bytes(16), secrets.token_bytes(16)
    with broker.probe("dev1") as speaker:
        for topic, payload in ((state, word), (other, forged), (topics.bridge_state, forged)):
            speaker.publish(topic, payload, retain=True)
        settle(speaker, topics)
    heard = {}
    for account in ACCOUNTS:
        with broker.probe(account) as probe:
            for topic_filter in ("#", topics.everything, state, other, topics.bridge_state):
                probe.subscribe(topic_filter)
            settle(probe, topics)
            heard[account] = {message.payload for message in probe.received}
    assert {account for account in ACCOUNTS if word in heard[account]} == allowed(topics)[state][1]
    assert not any(forged in payloads for payloads in heard.values())
    with broker.probe("dev1") as speaker:
        speaker.publish(state, b"", retain=True)
        settle(speaker, topics)


def test_t1_nor_by_a_last_will(broker):
    topics = broker.topics
    forged = secrets.token_bytes(16)
    with broker.probe("op-admin") as listener:
        listener.subscribe("#", topics.everything)
        settle(listener, topics)
        mine, its = topics.device_state("dev1"), topics.device_state("dev2")
        for topic in (its, topics.bridge_state, mine):
            die_with_will(broker.login("dev1"), topic, forged)
        # The last of them is its own, so that its coming proves that the others were dealt with.
        assert listener.wait_until(lambda: any(m.payload == forged for m in listener.received), 10)
        settle(listener, topics)
    with broker.probe("op-admin") as later:
        later.subscribe("#", topics.everything)
        settle(later, topics)
    for heard in (listener, later):
        assert {m.topic for m in heard.received if m.payload == forged} == {mine}
    with broker.probe("dev1") as owner:
        owner.publish(mine, b"", retain=True)
        settle(owner, topics)


def die_with_will(login: BrokerAddress, topic: str, payload: bytes) -> None:
    """Log in with a last will, and vanish without a goodbye."""
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=login.username)
    client.username_pw_set(login.username, login.password)
    if login.tls:
        client.tls_set(ca_certs=str(login.ca_file))
    client.will_set(topic, payload, qos=1, retain=True)
    client.connect(login.host, login.port)
    while not client.is_connected():
        client.loop(0.1)
    client.socket().close()


def test_t2_nobody_takes_a_client_id_over(broker):
    topics = broker.topics
    victim_login, thief_login = broker.login("dev1"), broker.login("dev2")
    wrong = generate_password()
    thieves = [
        (thief_login, True),
        (replace(thief_login, password=wrong), False),
        (replace(victim_login, password=wrong), False),
        (replace(victim_login, username="", password=""), False),
    ]
    down = topics.down("r1", "dev1")
    with broker.probe("dev1") as victim, broker.probe("coord-r1") as coordinator:
        victim.subscribe(down)
        settle(victim, topics)
        sent = []
        for i in range(100):
            login, may_enter = thieves[i % len(thieves)]
            try:
                Probe(login, client_id="dev1").close()
                assert may_enter, f"{login.username!r} was let in with a wrong password"
            except BrokerLoginError:
                assert not may_enter
            sent.append(secrets.token_bytes(16))
            coordinator.publish(down, sent[-1])
        settle(coordinator, topics)
        settle(victim, topics)
        assert victim.n_connections == 1
        assert [m.payload for m in victim.received if m.topic == down] == sent


def test_an_account_without_grants_may_do_nothing(tmp_path):
    passwords = {"dev1": generate_password(), "dev2": generate_password()}
    topics = Topics(FLEET)
    with start_embedded_broker(tmp_path, passwords, grants={"dev1": grants_of("dev1", topics)}) as embedded:
        nobody = embedded.address.with_login("dev2", passwords["dev2"])
        with Probe(nobody) as probe:
            probe.answer_s = 0.5
            own = topics.check("dev2")
            probe.subscribe(own)
            assert not probe.fence(own)


def test_grants_that_can_not_be_read_stop_the_broker(tmp_path):
    from toolkit.link.grants import read_grants

    (tmp_path / "grants").write_text('{"dev1": {"publish": "all"}}')
    with pytest.raises(BrokerError, match="can't be read"):
        read_grants(tmp_path / "grants")
