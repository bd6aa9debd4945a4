"""What an agent tells of its board: on change, now and then, bounded, and nothing while nobody can hear it."""

import pytest

from device_agent.telemetry import (
    AT_MOST_EVERY_S,
    EVERY_S,
    KEPT_LINES,
    LINES_AT_ONCE,
    LINES_PER_S,
    BoardReader,
    BoardReading,
    Reporter,
)
from toolkit.wire.limits import MAX_LOG_LINES
from toolkit.wire.session import DevicePhase
from toolkit.wire.telemetry import MAX_LINE_CHARACTERS, read_log_lines, read_telemetry
from toolkit.wire.topics import Topics

TOPICS = Topics("home")
READING = BoardReading(61.5, ("under-voltage",), 300_000_000, 500_000_000, 0.5)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Wire:
    """Takes what is published."""

    def __init__(self):
        self.sent = []

    def publish(self, topic, payload, *, qos=1, retain=False):
        assert not retain
        self.sent.append((topic, qos, payload))

    def telemetry(self):
        return [read_telemetry(p) for t, q, p in self.sent if t == TOPICS.device_telemetry("hall") and q == 0]

    def logs(self):
        return [read_log_lines(p) for t, q, p in self.sent if t == TOPICS.device_log("hall") and q == 1]

    def texts(self):
        return [line.text for told in self.logs() for line in told.lines]


class Agent:
    is_connected = True
    phase = DevicePhase.SEEKING
    cut = ""
    trained = (0, 0)
    exit_accuracy = None
    n_refused_messages = 0


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def reporter(wire, clock):
    return Reporter(
        wire,
        topics=TOPICS,
        device="hall",
        boot_nonce=b"\1" * 16,
        read_board=lambda: READING,
        clock=clock,
        wall_clock=lambda: 1000.0,
    )


@pytest.fixture
def agent():
    return Agent()


def test_it_tells_at_once_and_then_every_so_often(reporter, wire, clock, agent):
    for _ in range(1000):
        reporter.tick(agent)
        clock.now += EVERY_S / 100
    assert len(wire.telemetry()) == 10
    first = wire.telemetry()[0]
    assert (first.phase, first.temperature_c, first.throttled) == ("seeking", 61.5, ["under-voltage"])
    assert (first.memory_bytes, first.free_memory_bytes, first.load) == (300_000_000, 500_000_000, 0.5)
    assert wire.telemetry()[1].uptime_s == pytest.approx(EVERY_S, abs=0.2)


def test_a_change_is_told_soon_but_not_more_often_than_once_a_second(reporter, wire, clock, agent):
    reporter.tick(agent)
    agent.phase, agent.cut, agent.trained = DevicePhase.TRAINING, "layer1", (1, 3)
    reporter.tick(agent)
    assert len(wire.telemetry()) == 1
    clock.now += AT_MOST_EVERY_S
    reporter.tick(agent)
    agent.exit_accuracy = 0.75
    clock.now += AT_MOST_EVERY_S
    reporter.tick(agent)
    assert [(t.phase, t.cut, t.round, t.seq, t.exit_accuracy) for t in wire.telemetry()[1:]] == [
        ("training", "layer1", 1, 3, None),
        ("training", "layer1", 1, 3, 0.75),
    ]


def test_an_error_is_told_as_a_line_and_as_the_last_one(reporter, wire, clock, agent):
    reporter.tick(agent)
    reporter.line("no room on the disk", "error")
    clock.now += AT_MOST_EVERY_S
    reporter.tick(agent)
    assert wire.telemetry()[-1].last_error == "no room on the disk"
    (told,) = wire.logs()
    assert [(line.at, line.level, line.text) for line in told.lines] == [
        (1000.0, "error", "no room on the disk")
    ]


def test_while_the_link_is_down_lines_wait_and_the_oldest_are_counted(reporter, wire, clock, agent):
    agent.is_connected = False
    for number in range(KEPT_LINES + 10):
        reporter.line(str(number))
    reporter.tick(agent)
    assert wire.sent == []
    agent.is_connected = True
    for _ in range(40):
        reporter.tick(agent)
        clock.now += 1.0
    assert wire.texts() == [str(number) for number in range(10, KEPT_LINES + 10)]
    assert {told.n_dropped for told in wire.logs()} == {10}
    assert max(len(told.lines) for told in wire.logs()) == MAX_LOG_LINES


def test_after_a_reconnect_it_tells_again(reporter, wire, clock, agent):
    reporter.tick(agent)
    agent.is_connected = False
    reporter.tick(agent)
    agent.is_connected = True
    clock.now += AT_MOST_EVERY_S
    reporter.tick(agent)
    assert len(wire.telemetry()) == 2


def test_a_flood_of_lines_is_rated_and_what_is_left_out_is_counted(reporter, wire, clock, agent):
    for second in range(20):
        for number in range(500):
            reporter.line(f"{second}.{number}")
        clock.now += 1.0
        reporter.tick(agent)
    n_sent = len(wire.texts())
    assert n_sent <= LINES_AT_ONCE + 20 * LINES_PER_S
    assert n_sent >= LINES_AT_ONCE + 19 * LINES_PER_S
    assert wire.logs()[-1].n_dropped == 20 * 500 - n_sent - len(reporter._lines)
    assert wire.texts() == sorted(wire.texts(), key=lambda text: tuple(map(int, text.split("."))))


def test_a_long_line_is_cut(reporter, wire, agent):
    reporter.line("x" * 10_000)
    reporter.tick(agent)
    (text,) = wire.texts()
    assert len(text) == MAX_LINE_CHARACTERS
    assert text.endswith("x...")


def test_switched_off_it_says_nothing(wire, clock, agent):
    silent = Reporter(wire, topics=TOPICS, device="hall", boot_nonce=b"\1" * 16, is_on=False, clock=clock)
    silent.line("secret", "error")
    silent.tick(agent)
    assert wire.sent == []


def test_this_board_can_be_read():
    reading = BoardReader()()
    assert reading.memory_bytes > 1e6
    assert reading.free_memory_bytes > 1e6
    assert reading.load >= 0
