"""``hsee broker check``: each fault of a broker is found, by what it delivers, and named with its fix."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.mosquitto import Mosquitto, free_port
from tests.served_broker import ServedBroker
from toolkit.access import authority
from toolkit.access.broker_check import check_broker
from toolkit.cli.entry import main
from toolkit.findings import Finding
from toolkit.link.base import BrokerAddress
from toolkit.wire.topics import Topics

TOPICS = Topics("home")


def hsee(line: str) -> int:
    """Type a command."""
    return main(line.split())


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """The command silences expected refusals; other tests want to hear of theirs."""
    log = logging.getLogger("toolkit.link")
    before = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(before)


def verdicts(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.verdict for finding in findings}


def broker(tmp_path, settings="", accounts=None) -> Mosquitto:
    made = Mosquitto(tmp_path, accounts=accounts, settings=settings)
    made.start()
    return made


@pytest.fixture
def many_trips(monkeypatch):
    """So many that a busy machine is not late for most of them."""
    monkeypatch.setattr("toolkit.access.broker_check.N_TRIPS", 25)


@pytest.mark.usefixtures("many_trips")
@pytest.mark.needs_mosquitto
def test_what_broker_init_writes_passes_all(tmp_path, capsys, monkeypatch):
    served = ServedBroker(tmp_path / "broker", ["dev1", "dev2"])
    served.start()
    try:
        monkeypatch.chdir(served.folder.account_folder("dev1"))
        other = ["--other", "dev2", "--other-password-file", "../dev2/password"]
        assert main(["broker", "check", "--json", *other]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["success"] is True
        assert {f["check"]: f["verdict"] for f in told["findings"]} == dict.fromkeys(
            [
                *("security", "tcp", "tls", "login", "anonymous login", "wrong password", "own topics"),
                *("packet size", "nodelay", "queue limits", "reconnect"),
                *("dev1 on dev2", "dev2 on dev1", "client-id theft"),
            ],
            "ok",
        )
        assert "TLSv1.3" in str(told)
        # Two accounts of different kinds: what each may do by its grants is no fault.
        operator = served.folder.login("op-admin")
        found = verdicts(check_broker(operator, TOPICS, other=served.folder.login("dev2")))
        assert set(found.values()) == {"ok"}
    finally:
        served.stop()


@pytest.mark.needs_mosquitto
def test_a_certificate_near_its_end_is_a_warning(tmp_path):
    served = ServedBroker(tmp_path / "broker", ["dev1"])
    path = served.folder.path
    pair = authority.KeyPair((path / "ca.pem").read_bytes(), (path / "ca.key").read_bytes())
    issued = authority.issue_server(pair, ["localhost"], days=10)
    (path / "server.pem").write_bytes(issued.certificate)
    (path / "server.key").write_bytes(issued.key)
    served.start()
    try:
        login = served.folder.login("dev1")
        found = {f.check: f for f in check_broker(login, TOPICS)}
        assert found["tls"].verdict == "warning"
        assert "hsee broker renew" in found["tls"].fix
        assert found["others' topics"].verdict == "ok"
        rogue = tmp_path / "rogue.pem"
        rogue.write_bytes(authority.make_authority("home").certificate)
        assert verdicts(check_broker(replace(login, ca_file=rogue), TOPICS))["tls"] == "failed"
    finally:
        served.stop()


@pytest.mark.needs_mosquitto
def test_an_open_broker_on_loopback_is_a_warning(mosquitto, capsys):
    assert main(["broker", "check", "--broker", f"127.0.0.1:{mosquitto.address.port}"]) == 0
    told = capsys.readouterr().out
    assert "warning  anonymous login" in told
    assert "skipped  others' topics" in told
    assert "fix: In mosquitto.conf: allow_anonymous false" in told


@pytest.mark.usefixtures("many_trips")
@pytest.mark.needs_mosquitto
@pytest.mark.parametrize(
    ("before", "after", "check", "verdict"),
    [
        ("max_packet_size 393216", "max_packet_size 300000", "packet size", "failed"),
        ("set_tcp_nodelay true", "set_tcp_nodelay false", "nodelay", "warning"),
        (
            "max_inflight_messages 20",
            "max_inflight_messages 1\nmax_queued_messages 2",
            "queue limits",
            "failed",
        ),
    ],
)
def test_limits_are_judged_by_delivery(tmp_path, before, after, check, verdict):
    served = ServedBroker(tmp_path / "broker", ["dev1"])
    config = served.folder.path / "mosquitto.conf"
    assert before in config.read_text()
    config.write_text(config.read_text().replace(before, after))
    served.start()
    try:
        findings = check_broker(served.folder.login("dev1"), TOPICS)
    finally:
        served.stop()
    found = {f.check: f for f in findings}
    assert found[check].verdict == verdict, findings
    assert "mosquitto.conf" in found[check].fix


@pytest.mark.needs_mosquitto
def test_passwords_without_an_access_list_are_found_out(tmp_path):
    made = broker(tmp_path, accounts={"dev1": "one", "dev2": "two"})
    one, two = made.address.with_login("dev1", "one"), made.address.with_login("dev2", "two")
    try:
        alone = verdicts(check_broker(one, TOPICS))
        both = verdicts(check_broker(one, TOPICS, other=two))
    finally:
        made.kill()
    assert (alone["wrong password"], alone["others' topics"]) == ("ok", "failed")
    assert (both["dev1 on dev2"], both["dev2 on dev1"]) == ("failed", "failed")
    assert both["client-id theft"] == "failed"


@pytest.mark.needs_mosquitto
def test_an_access_list_that_forgets_the_own_topic_is_named(tmp_path):
    acl = tmp_path / "acl"
    acl.write_text("user dev1\ntopic write hsee/v1/home/device/dev1/state\n")
    acl.chmod(0o600)
    made = broker(tmp_path, f"acl_file {acl}", accounts={"dev1": "one"})
    try:
        found = {
            f.check: f for f in check_broker(made.address.with_login("dev1", "one"), TOPICS, answer_s=3.0)
        }
    finally:
        made.kill()
    assert found["own topics"].verdict == "failed"
    assert "hsee/v1/home/check/dev1" in found["own topics"].detail


def test_nobody_listens(capsys):
    assert main(["broker", "check", "--broker", f"127.0.0.1:{free_port()}", "--json"]) == 4
    told = json.loads(capsys.readouterr().out)
    assert told["success"] is False
    assert told["error"]["code"] == "HSEE-E400"
    assert [f["verdict"] for f in told["findings"]] == ["ok", "failed"]
    assert "Start the broker" in told["findings"][1]["fix"]


def test_off_loopback_without_tls_nothing_is_tried():
    findings = check_broker(BrokerAddress(host="192.0.2.1", port=1883), TOPICS)
    assert [(f.check, f.verdict) for f in findings] == [("security", "failed")]
    assert "--insecure" in findings[0].fix


def test_half_a_second_account_is_a_usage_error(capsys):
    assert hsee("broker check --other dev2") == 2
    assert "belong together" in capsys.readouterr().err


def test_the_embedded_broker_is_told_apart_from_a_safe_one(embedded_broker, accounts):
    """It binds loopback only because of this: its accounts are not apart."""
    one = embedded_broker.address.with_login("dev1", accounts["dev1"])
    found = verdicts(check_broker(one, TOPICS))
    assert (found["anonymous login"], found["wrong password"]) == ("ok", "ok")
    assert (found["packet size"], found["queue limits"]) == ("ok", "ok")
    assert found["others' topics"] == "failed"


def test_a_failed_finding_without_a_fix_can_not_be_made():
    with pytest.raises(ValueError, match="names no fix"):
        Finding("tcp", "failed", "no")
