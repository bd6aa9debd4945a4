"""What a link over MQTT keeps of what it has published."""

import pytest

from toolkit.link.base import Connected, Received
from toolkit.link.mqtt import MqttLink

CAP_S = 60.0
N_MESSAGES = 300

pytestmark = pytest.mark.needs_mosquitto


def test_a_program_that_only_publishes_keeps_nothing_of_what_was_delivered(mosquitto):
    """Nobody asks this link what is outstanding: a coordinator that says something for days would grow by all of it."""
    link = MqttLink(mosquitto.address, "teller", max_packet_bytes=100_000)
    link.start()
    try:
        assert any(isinstance(event, Connected) for event in link.poll(CAP_S))
        link.subscribe("told")
        for _ in range(N_MESSAGES):
            link.publish("told", b"so it is")
            assert any(isinstance(event, Received) for event in link.poll(CAP_S))
        assert len(link._connection._outstanding) < N_MESSAGES // 10
    finally:
        link.close()
