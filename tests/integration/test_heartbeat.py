"""A board is heard while it computes: telemetry and log lines over a real broker during a step that nothing interrupts."""

from __future__ import annotations

import time

import numpy as np
import pytest

from device_agent.heartbeat import Heartbeat
from device_agent.telemetry import BoardReading, Reporter
from toolkit.access.probe import Probe
from toolkit.link.mqtt import MqttLink
from toolkit.wire.session import DevicePhase
from toolkit.wire.telemetry import read_log_lines, read_telemetry
from toolkit.wire.topics import Topics

TOPICS = Topics("home")
FASTER = 60
"""The reporter's time goes by so much faster, so that a step of two seconds is one of two minutes."""
STEP_S = 2.0
CAP_S = 20.0


class Agent:
    is_connected = True
    phase = DevicePhase.TRAINING
    cut = "layer1"
    trained = (1, 7)
    exit_accuracy = None
    n_refused_messages = 0


def compute(seconds: float) -> None:
    """Multiply matrices in this thread and do nothing else."""
    until_s = time.monotonic() + seconds
    matrix = np.ones((1200, 1200), np.float32)
    while time.monotonic() < until_s:
        matrix = np.clip(matrix @ matrix, 0, 1)


@pytest.fixture
def agent():
    return Agent()


@pytest.fixture
def heard(embedded_broker, accounts):
    login = embedded_broker.address.with_login("coordinator", accounts["coordinator"])
    with Probe(login) as probe:
        probe.subscribe(
            TOPICS.device_telemetry("dev1"), TOPICS.device_log("dev1"), TOPICS.check("coordinator")
        )
        assert probe.fence(TOPICS.check("coordinator"))
        yield probe


@pytest.fixture
def reporter(embedded_broker, accounts):
    link = MqttLink(
        embedded_broker.address.with_login("dev1", accounts["dev1"]), "dev1", max_packet_bytes=100_000
    )
    link.start()
    assert link.poll(CAP_S)
    yield Reporter(
        link,
        topics=TOPICS,
        device="dev1",
        boot_nonce=b"\1" * 16,
        read_board=lambda: BoardReading(50.0, (), 1, 1, 0.5),
        clock=lambda: time.monotonic() * FASTER,
    )
    link.close()


def reports(probe: Probe) -> list[float]:
    return [
        read_telemetry(message.payload).uptime_s
        for message in probe.received
        if message.topic == TOPICS.device_telemetry("dev1")
    ]


def test_telemetry_goes_on_through_a_step_of_two_minutes(heard, reporter, agent):
    # A machine that stands still for a second spoils one step; a heartbeat that stops in a step is heard in none.
    assert any(goes_on_through_a_step(heard, reporter, agent) for _ in range(3)), reports(heard)


def goes_on_through_a_step(heard, reporter, agent) -> bool:
    n_before = len(reports(heard))
    with Heartbeat(reporter, agent, every_s=0.02):
        began_s = time.monotonic()
        compute(STEP_S)
        took_s = (time.monotonic() - began_s) * FASTER
        heard.wait_until(lambda: len(reports(heard)) - n_before >= int(took_s / 15), 2.0)
    told = reports(heard)[n_before:]
    # Every 15 s; a loaded machine may miss two in a row, and still nobody would be called silent (60 s).
    return len(told) >= max(2, int(took_s / 15) - 3) and np.diff(told).max() < 60


def test_the_last_lines_are_told_before_it_ends_and_none_once_it_is_fenced(heard, reporter, agent):
    with Heartbeat(reporter, agent):
        reporter.line("the disk is full", "error")
    topic = TOPICS.device_log("dev1")
    heard.wait_until(
        lambda: len({m.topic for m in heard.received}) == 2 + 1, CAP_S
    )  # telemetry, lines, the fence
    lines = [read_log_lines(m.payload) for m in heard.received if m.topic == topic]
    assert [line.text for told in lines for line in told.lines] == ["the disk is full"]
    agent.phase = DevicePhase.FENCED
    n_before = len(heard.received)
    with Heartbeat(reporter, agent, every_s=0.01):
        reporter.line("still here", "info")
        time.sleep(0.1)  # ten beats
    reporter._link.publish(TOPICS.check("coordinator"), b"")
    assert heard.wait_until(lambda: len(heard.received) > n_before, CAP_S)
    assert [m.topic for m in heard.received[n_before:]] == [TOPICS.check("coordinator")]
