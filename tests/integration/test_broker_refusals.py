"""Each way in which a broker can't be used ends in its own error, with what to do next."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mosquitto import Mosquitto, free_port
from toolkit.errors import (
    BrokerError,
    BrokerLoginError,
    BrokerTlsError,
    BrokerUnreachableError,
    UsageError,
)
from toolkit.link.base import BrokerAddress, Connected, Disconnected, LinkEvent, Received
from toolkit.link.broker import generate_password
from toolkit.link.mqtt import MqttLink

CAP_S = 10.0


def first_event(address: BrokerAddress, **options) -> LinkEvent:
    link = MqttLink(address, "dev1", max_packet_bytes=1000, **options)
    link.start()
    events = link.poll(CAP_S)
    link.close()
    assert events, "nothing happened"
    return events[0]


def refusal(address: BrokerAddress) -> BrokerError:
    event = first_event(address)
    assert isinstance(event, Disconnected), event
    return event.error


def test_nobody_listens():
    error = refusal(BrokerAddress(host="127.0.0.1", port=free_port()))
    assert isinstance(error, BrokerUnreachableError)
    assert error.retryable
    assert "Nobody listens" in error.message
    assert "Start the broker" in error.hint


def test_a_host_that_does_not_exist():
    error = refusal(BrokerAddress(host="no-such-host.invalid", port=1883, insecure=True))
    assert isinstance(error, BrokerUnreachableError)
    assert "no-such-host.invalid" in error.message


def test_a_host_that_no_resolver_takes_does_not_kill_the_link():
    error = refusal(BrokerAddress(host="a..b", port=1883, insecure=True))
    assert isinstance(error, BrokerUnreachableError)


def test_something_else_listens_there():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        error = refusal(BrokerAddress(host="127.0.0.1", port=server.getsockname()[1]))
        thread.join()
    assert isinstance(error, BrokerUnreachableError)
    assert "MQTT broker listens there" in error.hint


def test_a_link_that_waits_for_an_answer_closes_at_once():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        link = MqttLink(
            BrokerAddress(host="127.0.0.1", port=mute.getsockname()[1]), "dev1", max_packet_bytes=1000
        )
        link.start()
        mute.accept()[0].close()
        start_s = time.monotonic()
        link.close(CAP_S)
        assert time.monotonic() - start_s < CAP_S  # all of which one would take that waits for its answer
        assert not any(isinstance(event, Connected) for event in link.poll(0))


@pytest.mark.parametrize("user", ["dev1", "stranger"])
def test_a_wrong_password_on_the_embedded_broker(embedded_broker, user):
    error = refusal(embedded_broker.address.with_login(user, generate_password()))
    assert isinstance(error, BrokerLoginError)
    assert user in error.message
    assert "HSEE_BROKER_PASSWORD" in error.hint
    assert not error.retryable


def test_an_anonymous_login_on_the_embedded_broker(embedded_broker):
    error = refusal(embedded_broker.address)
    assert isinstance(error, BrokerLoginError)
    assert "without a user name" in error.message


@pytest.mark.needs_mosquitto
def test_logins_on_mosquitto(tmp_path):
    mosquitto = Mosquitto(tmp_path, accounts={"dev1": "right"})
    mosquitto.start()
    try:
        assert isinstance(first_event(mosquitto.address.with_login("dev1", "right")), Connected)
        assert isinstance(refusal(mosquitto.address.with_login("dev1", "wrong")), BrokerLoginError)
        assert isinstance(refusal(mosquitto.address), BrokerLoginError)
    finally:
        mosquitto.kill()


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Path:
    """A folder with a self-signed certificate for localhost: ``cert.pem``, ``key.pem``."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command += " -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem"
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def tls_broker(tmp_path, authority) -> Iterator[BrokerAddress]:
    settings = f"certfile {authority / 'cert.pem'}\nkeyfile {authority / 'key.pem'}"
    mosquitto = Mosquitto(tmp_path, settings=settings)
    mosquitto.start()
    yield BrokerAddress(
        host="localhost", port=mosquitto.address.port, tls=True, ca_file=authority / "cert.pem"
    )
    mosquitto.kill()


@pytest.mark.needs_mosquitto
def test_tls_is_verified(tls_broker):
    assert isinstance(first_event(tls_broker), Connected)
    untrusted = refusal(replace(tls_broker, ca_file=None))
    assert isinstance(untrusted, BrokerTlsError)
    assert "can't be trusted" in untrusted.message
    # The certificate is for localhost.
    assert isinstance(refusal(replace(tls_broker, host="127.0.0.1")), BrokerTlsError)


@pytest.mark.needs_mosquitto
def test_tls_and_plain_ports_taken_for_each_other(tls_broker, authority, mosquitto):
    assert isinstance(refusal(replace(tls_broker, tls=False, ca_file=None)), BrokerUnreachableError)
    plain = replace(mosquitto.address, host="localhost", tls=True, ca_file=authority / "cert.pem")
    assert isinstance(refusal(plain), BrokerError)


def test_an_authority_that_can_not_be_read_is_refused_before_connecting(tmp_path):
    address = BrokerAddress(host="localhost", port=8883, tls=True, ca_file=tmp_path / "missing.pem")
    with pytest.raises(UsageError, match=r"missing\.pem"):
        MqttLink(address, "dev1", max_packet_bytes=1000)


@pytest.mark.needs_mosquitto
def test_a_reader_that_does_not_poll_costs_no_memory_and_no_connection(mosquitto):
    link = MqttLink(mosquitto.address, "dev1", max_packet_bytes=20_000, max_queued_bytes=50_000)
    link.start()
    assert link.poll(CAP_S) == [Connected(session_present=False)]
    link.subscribe("up")
    for _ in range(20):
        link.publish("up", bytes(10_000))
    deadline_s = time.monotonic() + CAP_S
    while link.n_dropped < 16:
        assert time.monotonic() < deadline_s, f"{link.n_dropped} dropped"
        time.sleep(0.001)
    # 10,002 bytes each with the topic: four fit.
    assert [type(event) for event in link.poll(0)] == [Received] * 4
    link.publish("up", b"room again")
    assert link.poll(CAP_S) == [Received("up", b"room again")]
    link.close()
