"""Accounts that log in by certificates, judged by delivery on a real Mosquitto that runs what broker init --certificates writes."""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from tests.e2e.processes import Hsee
from tests.integration.grants_by_hand import settle
from tests.integration.test_join import invite, paste, texts_under
from tests.mosquitto import find_mosquitto
from tests.served_broker import ServedBroker
from toolkit.access import authority, broker_folder
from toolkit.access.dynamic_security import DynamicSecurity
from toolkit.access.probe import Probe
from toolkit.errors import BrokerError, BrokerLoginError, BrokerTlsError, ConfigError, UsageError
from toolkit.link.base import BrokerAddress
from toolkit.link.broker import generate_password

pytestmark = [
    pytest.mark.needs_mosquitto,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


@pytest.fixture(autouse=True)
def a_verdict_is_waited_for(monkeypatch):
    """However long a busy broker takes to say what it thinks of a certificate."""
    monkeypatch.setattr("toolkit.link.tls.VERDICT_S", 10.0)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[ServedBroker]:
    broker = ServedBroker(
        tmp_path_factory.mktemp("certified") / "broker", ["dev1", "dev2", "coord-r1"], certificates=True
    )
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def control(served) -> Iterator[DynamicSecurity]:
    with served.probe("op-admin") as probe:
        yield DynamicSecurity(probe, served.topics)


def own_authority(served: ServedBroker) -> authority.KeyPair:
    path = served.folder.path
    return authority.KeyPair((path / "ca.pem").read_bytes(), (path / "ca.key").read_bytes())


def certified(
    served: ServedBroker, folder: Path, account: str, certificate: bytes, key: bytes
) -> BrokerAddress:
    """The way in with a certificate of a test's own making."""
    folder.mkdir()
    (folder / "cert.pem").write_bytes(certificate)
    (folder / "key.pem").write_bytes(key)
    return served.folder.login("dev1").with_certificate(account, folder / "cert.pem", folder / "key.pem")


def test_an_account_is_who_its_certificate_says(served):
    """Whatever name, client id and password it claims."""
    down = served.topics.down("r1", "dev1")
    thief = replace(served.folder.login("dev2"), username="dev1", password=generate_password())
    with served.probe("dev1") as victim, served.probe("coord-r1") as coordinator:
        victim.subscribe(down)
        settle(victim, served.topics)
        sent = []
        for client_id in ["dev1", "dev2", "coord-r1", ""] * 5:
            with Probe(thief, client_id=client_id or "x") as probe:
                probe.subscribe(down, served.topics.check("dev1"))
                probe.publish(served.topics.up("r1", "dev1"), b"forged")
                own = served.topics.check("dev2")
                probe.subscribe(own)
                assert probe.fence(own), "it is dev2, and has dev2's topics"
                sent.append(secrets.token_bytes(16))
                coordinator.publish(down, sent[-1])
                settle(coordinator, served.topics)
                assert not any(m.topic == down for m in probe.received)
        settle(victim, served.topics)
        assert victim.n_connections == 1
        assert coordinator.n_connections == 1
        assert [m.payload for m in victim.received if m.topic == down] == sent
        assert not any(m.payload == b"forged" for m in coordinator.received)


def refusals(served: ServedBroker, tmp_path: Path) -> dict[str, tuple[BrokerAddress, str]]:
    """Certificates that are none of ours, and what is said of each."""
    ours, rogue = own_authority(served), authority.make_authority("home")
    request, key = authority.make_request("dev1")
    server = authority.issue_server(ours, ["dev1"])
    return {
        "expired": (
            certified(
                served, tmp_path / "e", "dev1", authority.issue_account(ours, "dev1", request, days=-1), key
            ),
            "expired",
        ),
        "rogue": (
            certified(served, tmp_path / "r", "dev1", authority.issue_account(rogue, "dev1", request), key),
            "refused the certificate",
        ),
        "the broker's own kind": (
            certified(served, tmp_path / "s", "dev1", server.certificate, server.key),
            "refused the certificate",
        ),
        "none": (
            served.folder.login("dev1").with_login("dev1", generate_password()),
            "asks for a certificate",
        ),
    }


@pytest.mark.parametrize("what", ["expired", "rogue", "the broker's own kind", "none"])
def test_t4_what_is_no_certificate_of_an_account_is_refused(served, tmp_path, what):
    login, said = refusals(served, tmp_path)[what]
    with pytest.raises(BrokerTlsError, match=said) as caught:
        Probe(login)
    assert caught.value.hint


def test_t4_a_device_takes_no_account_for_a_broker(served, tmp_path):
    """The certificate of an account, which any device holds, is no broker's."""
    false = ServedBroker(tmp_path / "false", ["dev1"])
    for name, content in (("server.pem", "cert.pem"), ("server.key", "key.pem")):
        (false.folder.path / name).write_bytes((served.folder.account_folder("dev1") / content).read_bytes())
    false.start()
    try:
        trusting = replace(false.folder.login("dev1"), ca_file=served.folder.path / "ca.pem")
        with pytest.raises(BrokerTlsError, match=r"unsuitable|mismatch"):
            Probe(trusting)
    finally:
        false.stop()


def test_no_password_lets_an_account_in_where_tokens_are_let_in(served):
    entry = served.folder.entry(served.folder.login("dev1"))
    for login in (
        entry.with_login("", ""),
        *(
            entry.with_login(account, password)
            for account in ("dev1", "op-admin")
            for password in ("", "x" * 32)
        ),
        replace(served.folder.login("op-admin"), port=entry.port),
    ):
        with pytest.raises(BrokerLoginError):
            Probe(login, client_id="dev1")


def test_t3_a_removed_account_is_cut_off_and_its_certificate_is_dead(served, control):
    folder = served.folder
    control.add("dev9")
    folder.write_account("dev9", "")
    stolen = folder.login("dev9")
    copies = folder.path.parent / "stolen"
    copies.mkdir()
    for name in ("cert.pem", "key.pem"):
        (copies / name).write_bytes((folder.account_folder("dev9") / name).read_bytes())
    stolen = stolen.with_certificate("dev9", copies / "cert.pem", copies / "key.pem")
    down, own = served.topics.down("r1", "dev9"), served.topics.check("dev9")
    with Probe(stolen) as thief, served.probe("coord-r1") as coordinator:
        thief.subscribe(down)
        settle(thief, served.topics)
        control.remove("dev9")
        folder.remove_account("dev9")
        assert thief.wait_until(lambda: thief.n_connections > 1 or not thief.is_connected, 10.0), (
            "not cut off"
        )
        assert not folder.account_folder("dev9").exists()
        # The running broker lets the certificate in, and grants it nothing.
        assert thief.wait_until(lambda: thief.is_connected, 10.0)
        coordinator.subscribe(served.topics.up("r1", "dev9"))
        thief.subscribe(down, own, "#")
        thief.publish(served.topics.up("r1", "dev9"), b"stolen")
        thief.answer_s = 0.5
        assert not thief.fence(own)
        coordinator.publish(down, b"secret")
        settle(coordinator, served.topics)
        assert not any(m.payload == b"secret" for m in thief.received)
        assert not any(m.payload == b"stolen" for m in coordinator.received)
        # So the name is not given to another before the broker knows.
        with pytest.raises(UsageError, match="has not read that yet"):
            folder.require_fresh("dev9", control)
    served.stop()
    served.start()
    with pytest.raises(BrokerTlsError, match="revoked"):
        Probe(stolen)
    with served.probe("dev1") as probe:
        settle(probe, served.topics)


def test_a_name_is_given_again_once_the_broker_has_read_the_list(served, monkeypatch):
    folder = served.folder
    with served.probe("op-admin") as probe:
        control = DynamicSecurity(probe, served.topics)
        control.add("dev8")
        folder.write_account("dev8", "")
        control.remove("dev8")
        folder.remove_account("dev8")
        revoked = folder.path / "certificates" / "dev8.revoked"
        with pytest.raises(UsageError, match="has not read"):
            folder.require_fresh("dev8", control)
        # As if the broker had been started since: its own word is asked, whose age counts against the name.
        monkeypatch.setattr(control, "uptime_s", lambda: 100.0)
        os.utime(revoked, (time.time() - 110, time.time() - 110))
        with pytest.raises(UsageError):
            folder.require_fresh("dev8", control)
        os.utime(revoked, (time.time() - 100 - broker_folder.UPTIME_AGE_S - 1,) * 2)
        folder.require_fresh("dev8", control)
        assert not revoked.exists()
        control.add("dev8")
        folder.write_account("dev8", "")
        with served.probe("dev8") as again:
            settle(again, served.topics)
        control.remove("dev8")


def test_a_mosquitto_says_how_long_it_has_run(control):
    control._probe.answer_s = 15.0
    uptime_s = control.uptime_s()
    assert uptime_s is not None
    assert 0 <= uptime_s < 3600


def test_a_board_joins_with_a_key_that_never_leaves_it(served, tmp_path):
    (tmp_path / "board").mkdir()
    board, desk = Hsee(tmp_path / "board"), Hsee(served.folder.path.parent)
    try:
        window, lines, typed = invite(desk, "new1")
        assert "--join-port" in lines["new1"]
        joined = paste(board, lines["new1"], typed["new1"])
        assert joined.end() == 0, joined.describe() + window.describe()
        assert window.end() == 0, window.describe()
        folder = board.folder / "new1"
        assert {path.name for path in folder.iterdir()} == {"hsee.toml", "cert.pem", "key.pem", "ca.pem"}
        assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())
        key = (folder / "key.pem").read_text()
        held = [path for path, text in texts_under(served.folder.path).items() if key in text]
        assert held == []
        checked = Hsee(folder).run("broker", "check")
        assert checked.end() == 0, checked.describe()
        again = paste(board, [*lines["new1"], "--folder", "elsewhere"], typed["new1"])
        assert (again.end(), "used up" in again.err) == (4, True), again.describe()
        removed = desk.run("broker", "user", "remove", "new1", "--yes")
        assert removed.end() == 0, removed.describe()
        refused = desk.run("broker", "invite", "new1")
        assert refused.end() == 2, refused.describe()
        assert "Restart the broker" in refused.err
    finally:
        board.kill_all()
        desk.kill_all()


def test_a_board_without_the_port_is_told(served, tmp_path):
    """The line was pasted in part: the broker asks for a certificate before it hears of the token."""
    desk, board = Hsee(served.folder.path.parent), Hsee(tmp_path)
    try:
        window, lines, typed = invite(desk, "new2", "--minutes", "1")
        line = lines["new2"]
        at = line.index("--join-port")
        joined = paste(board, [*line[:at], *line[at + 2 :]], typed["new2"])
        assert joined.end() == 4, joined.describe()
        assert "certificate" in joined.err
        window.process.terminate()
        window.end()
    finally:
        board.kill_all()
        desk.kill_all()


def test_files_that_can_not_be_are_named(served, tmp_path):
    from toolkit.config import load_config
    from toolkit.link.connect import broker_of

    folder = served.folder.account_folder("dev1")
    flags = {"broker.address": "mqtts://localhost", "broker.cert_file": str(folder / "cert.pem")}
    with pytest.raises(ConfigError, match="key_file is not"):
        broker_of(load_config(flags))
    with pytest.raises(ConfigError, match="can't be read"):
        broker_of(load_config({**flags, "broker.key_file": str(tmp_path / "none.pem")}))
    (tmp_path / "open.pem").write_bytes((folder / "key.pem").read_bytes())
    (tmp_path / "open.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="read by others"):
        broker_of(load_config({**flags, "broker.key_file": str(tmp_path / "open.pem")}))
    (tmp_path / "other.pem").write_bytes((served.folder.account_folder("dev2") / "key.pem").read_bytes())
    with pytest.raises(UsageError, match="can't be used"):
        Probe(
            served.folder.login("dev1").with_certificate("dev1", folder / "cert.pem", tmp_path / "other.pem")
        )
    with pytest.raises(BrokerError):
        Probe(replace(served.folder.login("dev1"), tls=False, ca_file=None, cert_file=None))


def test_a_certificate_whose_account_was_removed_elsewhere_is_revoked_before_its_name_is_given_again(
    served, control
):
    folder = served.folder
    control.add("dev6")
    folder.write_account("dev6", "")
    certificate = (folder.path / "certificates" / "dev6.pem").read_bytes()
    folder.require_fresh("dev6", control)
    assert (folder.path / "certificates" / "dev6.pem").read_bytes() == certificate, "it is in use"
    control.remove("dev6")  # by an operator who has no such folder
    with pytest.raises(UsageError, match="has not read that yet"):
        folder.require_fresh("dev6", control)
    serial = x509.load_pem_x509_certificate(certificate).serial_number
    revoked = x509.load_pem_x509_crl((folder.path / "revoked.pem").read_bytes())
    assert revoked.get_revoked_certificate_by_serial_number(serial) is not None
