"""Rows T3 to T5 of the promises, judged by delivery on a real Mosquitto that runs what hsee broker init writes; T1, T2: test_apart."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.e2e.processes import Hsee
from tests.integration.grants_by_hand import ACCOUNTS, settle
from tests.mosquitto import find_mosquitto
from tests.served_broker import ServedBroker
from toolkit.access import authority
from toolkit.access.accounts import check_new
from toolkit.access.dynamic_security import DynamicSecurity
from toolkit.access.probe import Probe
from toolkit.errors import BrokerError, BrokerLoginError, BrokerTlsError, InsecureBrokerError, UsageError
from toolkit.link.base import BrokerAddress
from toolkit.link.broker import generate_password
from toolkit.link.mqtt import MqttLink

pytestmark = [
    pytest.mark.needs_mosquitto,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]

CAP_S = 10.0


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[ServedBroker]:
    broker = ServedBroker(
        tmp_path_factory.mktemp("access") / "broker", [name for name in ACCOUNTS if name != "op-admin"]
    )
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def control(served) -> Iterator[DynamicSecurity]:
    with served.probe("op-admin") as probe:
        yield DynamicSecurity(probe, served.topics)


def test_t1_only_operators_change_accounts(served):
    for account in ("dev1", "dev1.infer", "coord-r1"):
        with served.probe(account) as probe:
            probe.answer_s = 0.3
            with pytest.raises(BrokerError, match="does not answer"):
                DynamicSecurity(probe, served.topics).accounts()


def test_t3_a_removed_device_is_cut_off_within_two_seconds(served, control):
    # Of three: a machine that stands still for a moment is slow once.
    assert min(seconds_until_cut_off(served, control) for _ in range(3)) < 2.0


def seconds_until_cut_off(served, control) -> float:
    old = generate_password()
    control.add("dev9", old)
    login = served.folder.login("dev1").with_login("dev9", old)
    down = served.topics.down("r1", "dev9")
    with Probe(login) as probe, served.probe("coord-r1") as coordinator:
        probe.subscribe(down)
        settle(probe, served.topics)
        start_s = time.monotonic()
        control.remove("dev9")
        assert probe.wait_until(lambda: not probe.is_connected, CAP_S), "still connected"
        took_s = time.monotonic() - start_s
        assert probe.wait_until(lambda: isinstance(probe.lost, BrokerLoginError), CAP_S)
        coordinator.publish(down, b"for nobody")
        settle(coordinator, served.topics)
        # The device comes back under a new password; what its old connection was subscribed to is dead.
        control.add("dev9", generate_password())
        with pytest.raises(BrokerLoginError):
            Probe(login)
        assert [m for m in probe.received if m.topic == down] == []
    control.remove("dev9")
    return took_s


def test_accounts_survive_a_restart_of_the_broker(served, control):
    password = generate_password()
    control.add("dev8", password)
    login = served.folder.login("dev1").with_login("dev8", password)
    served.stop()
    with pytest.raises(BrokerError):
        Probe(login)
    served.start()
    with Probe(login) as probe:
        settle(probe, served.topics)
    state = served.folder.path / "dynamic-security.json"
    assert state.stat().st_mode & 0o077 == 0, "the broker opened its accounts to others"


def test_what_there_is_not_is_named(control):
    with pytest.raises(UsageError, match="no account 'ghost'"):
        control.remove("ghost")
    with pytest.raises(UsageError, match="already"):
        control.add("dev1", generate_password())
    with pytest.raises(UsageError, match="join tokens"):
        check_new("join-1")


def test_grants_that_somebody_changed_are_found_and_given_again(control):
    acl = {"acltype": "publishClientSend", "topic": "#", "priority": 0, "allow": True}
    control._ask("addRoleACL", rolename="dev3", **acl)
    with pytest.raises(BrokerError, match="others than were asked for"):
        control.check("dev3")
    control.grant("dev3")
    control.check("dev3")
    default = [{"acltype": "publishClientSend", "allow": True}]
    control._ask("setDefaultACLAccess", acls=default)
    with pytest.raises(BrokerError, match="not denied"):
        control.check("dev3")
    control._ask("setDefaultACLAccess", acls=[{**default[0], "allow": False}])
    control.check("dev3")


def certificate_of(served: ServedBroker, pair: authority.KeyPair) -> None:
    (served.folder.path / "server.pem").write_bytes(pair.certificate)
    (served.folder.path / "server.key").write_bytes(pair.key)


@pytest.fixture
def own(tmp_path) -> Iterator[ServedBroker]:
    """A broker whose certificate a test replaces before it starts it."""
    broker = ServedBroker(tmp_path / "broker", ["dev1"])
    yield broker
    broker.stop()


def authority_of(served: ServedBroker) -> authority.KeyPair:
    path = served.folder.path
    return authority.KeyPair((path / "ca.pem").read_bytes(), (path / "ca.key").read_bytes())


@pytest.mark.parametrize(
    ("what", "hosts", "days", "said"),
    [
        ("rogue", ["localhost"], 10, "self-signed|unable to get local issuer|signature failure"),
        ("expired", ["localhost"], -1, "expired"),
        ("wrong name", ["another.local"], 10, "mismatch"),
    ],
)
def test_t4_a_device_refuses_a_false_broker(own, what, hosts, days, said):
    # A rogue authority of the same name as ours: only its key tells.
    issuer = authority.make_authority("home") if what == "rogue" else authority_of(own)
    certificate_of(own, authority.issue_server(issuer, hosts, days=days))
    own.start()
    with pytest.raises(BrokerTlsError, match=said) as caught:
        own.probe("dev1")
    assert ("clock right" in caught.value.hint) == (what == "expired")
    # It was the certificate, not the test: the right one is taken, by the same broker.
    own.stop()
    own.folder.issue_certificate()
    own.start()
    own.probe("dev1").close()


def test_t5_the_broker_takes_no_plain_connection(served):
    login = served.folder.login("dev1")
    with pytest.raises(BrokerError):
        Probe(replace(login, tls=False, ca_file=None))


def test_t5_nothing_goes_off_loopback_insecure_by_accident(served):
    plain = BrokerAddress(host="192.0.2.1", port=1883, username="dev1", password=generate_password())
    no_login = replace(served.folder.login("dev1"), host="192.0.2.1", username="", password="")
    for address in (plain, no_login):
        with pytest.raises(InsecureBrokerError, match="without"):
            MqttLink(address, "dev1", max_packet_bytes=1000)


def test_a_message_longer_than_any_of_ours_is_refused(served):
    with Probe(served.folder.login("dev1"), max_packet_bytes=1_000_000) as probe:
        own_topic = served.topics.check("dev1")
        probe.subscribe(own_topic)
        assert probe.echo(own_topic, bytes(500_000)) is None
        assert not probe.is_connected or probe.n_connections > 1


def test_a_small_message_waits_for_no_delayed_acknowledgement(served):
    """Both sides send at once: the broker by its configuration, the link by its own doing; else it is 44 ms."""
    topic = served.topics.check("dev1")
    with served.probe("dev1") as probe:
        probe.subscribe(topic)
        trips = [probe.echo(topic, secrets.token_bytes(64)) for _ in range(75)]
    assert sorted(trips)[len(trips) // 5] < 0.025  # a busy machine may be late for the others


def test_an_operator_elsewhere_throws_a_device_out(served, control, tmp_path):
    """On a machine that has neither the broker's folder nor a coordinator: an operator's own account is enough."""
    for account in ("op-alice", "dev7", "dev7.infer"):
        password = generate_password()
        control.add(account, password)
        served.folder.write_account(account, password)
    login = served.folder.login("dev7")
    laptop = tmp_path / "op-alice"
    shutil.copytree(served.folder.account_folder("op-alice"), laptop)
    alice, nobody = Hsee(laptop), Hsee(served.folder.account_folder("dev7"))
    try:
        with Probe(login) as probe:
            settle(probe, served.topics)
            would = alice.run("device", "remove", "dev7", "--dry-run", "--json")
            assert json.loads(would.out)["would_revoke"] == ["dev7", "dev7.infer"], would.describe()
            removed = alice.start("device", "remove", "dev7", "--yes", "--json")
            assert probe.wait_until(lambda: isinstance(probe.lost, BrokerLoginError), 30.0)
            assert removed.end() == 0, removed.describe()
        assert json.loads(removed.out)["revoked"] == ["dev7", "dev7.infer"]
        listed = alice.run("broker", "user", "list", "--json")
        names = [entry["account"] for entry in json.loads(listed.out)["accounts"]]
        assert "op-alice" in names
        assert "dev7" not in names
        itself = alice.run("broker", "user", "remove", "op-alice", "--yes")
        assert (itself.end(), "remove itself" in itself.err) == (2, True), itself.describe()
        # No other account has a say, and it is told what is missing.
        refused = nobody.run("device", "remove", "dev1", "--yes")
        assert (refused.end(), "no broker's folder" in refused.err) == (2, True), refused.describe()
    finally:
        alice.kill_all()
        nobody.kill_all()
        control.remove("op-alice")
        served.folder.remove_account("op-alice")
