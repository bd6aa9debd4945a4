"""What a link keeps of connections that ended: nothing, or a board that was cut off a thousand times runs out of files."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import pytest

from toolkit.link.base import Connected, Disconnected, parse_broker
from toolkit.link.mqtt import MqttLink
from toolkit.wire.limits import MAX_MESSAGE_BYTES

pytestmark = pytest.mark.needs_mosquitto
CAP_S = 20.0


@pytest.fixture
def nothing_is_collected():
    """No garbage collection: what goes, goes because nobody holds it any more."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def wait_for(link, kind):
    deadline_s = time.monotonic() + CAP_S
    while time.monotonic() < deadline_s:
        if any(isinstance(event, kind) for event in link.poll(0.05)):
            return
    raise AssertionError(f"no {kind.__name__} within {CAP_S:g} s")


def n_open():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.usefixtures("nothing_is_collected")
def test_connections_that_ended_hold_no_files(mosquitto):
    link = MqttLink(mosquitto.address, "ant", max_packet_bytes=MAX_MESSAGE_BYTES, max_backoff_s=0.1)
    link.start()
    try:
        wait_for(link, Connected)
        before = n_open()
        for _ in range(5):
            mosquitto.restart()
            wait_for(link, Connected)
        deadline_s = time.monotonic() + CAP_S
        while n_open() != before:  # the thread of the last one that ended may not have had its turn
            assert time.monotonic() < deadline_s, (n_open(), before)
            time.sleep(0.01)
    finally:
        link.close()


@pytest.mark.usefixtures("nothing_is_collected")
def test_attempts_that_nobody_answers_hold_no_files(mosquitto):
    port = mosquitto.address.port
    mosquitto.stop()
    link = MqttLink(
        parse_broker(f"127.0.0.1:{port}"), "ant", max_packet_bytes=MAX_MESSAGE_BYTES, max_backoff_s=0.02
    )
    before = n_open()
    link.start()
    try:
        for _ in range(5):
            wait_for(link, Disconnected)
        assert n_open() <= before + 2  # of the attempt that is under way
    finally:
        link.close()
