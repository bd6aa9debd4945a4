"""How a broker's address is read, and what is refused before anything connects."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit.errors import InsecureBrokerError, UsageError
from toolkit.link.base import BrokerAddress, Received, parse_broker
from toolkit.link.mqtt import MqttLink


@pytest.mark.parametrize(
    ("text", "host", "port", "tls"),
    [
        ("localhost", "localhost", 1883, False),
        ("broker.lan:1884", "broker.lan", 1884, False),
        ("192.168.1.7", "192.168.1.7", 1883, False),
        ("mqtt://broker.lan", "broker.lan", 1883, False),
        ("mqtts://broker.lan", "broker.lan", 8883, True),
        ("mqtts://broker.lan:443/", "broker.lan", 443, True),
        ("[::1]:1884", "::1", 1884, False),
        ("mqtts://[2001:db8::1]", "2001:db8::1", 8883, True),
    ],
)
def test_an_address_is_read_as_a_user_writes_it(text, host, port, tls):
    address = parse_broker(text)
    assert (address.host, address.port, address.tls) == (host, port, tls)
    assert parse_broker(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":1883",
            "broker:",
            "broker:0",
            "broker:70000",
            "broker:http",
            "broker:18 83",
            "bro ker",
            "a..b",
            "-a",
        ),
        *(
            "::1",
            "[::1",
            "[nonsense]:1883",
            "[127.0.0.1]",
            "300.1.1.1",
            "1.2.3",
            "a" * 64,
            "bröker",
            "mqtt://",
        ),
        *("mqtt://broker/topic", "mqtt://broker?x=1", "broker#x"),
    ],
)
def test_garbage_is_refused_with_the_forms_that_are_right(text):
    with pytest.raises(UsageError) as caught:
        parse_broker(text)
    assert "HOST:PORT" in caught.value.hint


def test_another_scheme_is_refused_with_the_nearest_right_one():
    with pytest.raises(UsageError, match="Did you mean 'mqtts'") as caught:
        parse_broker("mqttss://broker")
    assert caught.value.exit_status == 2
    with pytest.raises(UsageError, match="Known: mqtt, mqtts"):
        parse_broker("coap://broker")


@pytest.mark.parametrize(
    "text", ["mqtt://dev1:hunter2@broker", "dev1:hunter2@broker:1883", "ws://dev1:hunter2@broker"]
)
def test_a_password_in_an_address_is_refused_and_never_shown(text):
    with pytest.raises(UsageError, match="HSEE_BROKER_PASSWORD") as caught:
        parse_broker(text)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.facts)


def test_a_certificate_authority_without_tls_is_refused():
    with pytest.raises(UsageError, match="mqtts://broker"):
        parse_broker("broker:1883", ca_file=Path("ca.pem"))


def test_no_repr_shows_a_password_or_a_payload():
    assert "hunter2" not in repr(parse_broker("broker", username="dev1", password="hunter2"))  # noqa: S106
    assert "secret" not in repr(Received("up", b"secret"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1"])
def test_loopback_needs_neither_tls_nor_credentials(host):
    BrokerAddress(host=host, port=1883).require_secure()


@pytest.mark.parametrize(
    ("text", "username", "missing"),
    [
        ("mqtt://192.168.1.7", "", ["TLS", "a user name and password"]),
        ("mqtt://broker.lan", "dev1", ["TLS"]),
        ("mqtts://localhost.example.org", "", ["a user name and password"]),
    ],
)
def test_off_loopback_nothing_starts_without_tls_and_credentials(text, username, missing):
    address = parse_broker(text, username=username, password="hunter2" * bool(username))
    with pytest.raises(InsecureBrokerError, match="--insecure") as caught:
        MqttLink(address, "dev1", max_packet_bytes=1000)
    assert caught.value.facts["missing"] == missing
    assert caught.value.exit_status == 4


def test_insecure_is_a_choice_that_a_user_can_make():
    parse_broker("192.168.1.7", insecure=True).require_secure()
    parse_broker("mqtts://192.168.1.7", username="dev1", password="hunter2").require_secure()  # noqa: S106
