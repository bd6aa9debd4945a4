"""A service with a thread of its own: handed messages by anybody, raising where its owner looks."""

import threading
import time

import pytest

from coordinator.beside import own_thread
from coordinator.beside.own_thread import Beside
from coordinator.beside.service import Service
from toolkit.errors import RemoteProtocolError

CAP_S = 10.0


class Echo(Service):
    """Says back what it is told, in its own time."""

    def __init__(self):
        self.told = []
        self.threads = set()
        self.gate = threading.Event()
        self.gate.set()
        self.is_closed = False

    @property
    def filters(self):
        return ("echo/+",)

    def take(self, topic, payload):
        del topic
        self.threads.add(threading.current_thread().name)
        if payload == b"bad":
            raise RemoteProtocolError("It is bad.")
        if payload == b"bug":
            raise ZeroDivisionError
        self.told.append(payload)

    def tick(self, publish):
        self.gate.wait(CAP_S)
        if self.told:
            publish("back", self.told.pop(0), qos=0)
        return bool(self.told)

    def close(self):
        self.is_closed = True


class Rig:
    def __init__(self):
        self.published = []
        self.said = []
        self.echo = Echo()
        self.beside = Beside(self.echo, clock=lambda: 0.0, say=self.said.append)

    def publish(self, topic, payload, *, qos=1, retain=False):
        del topic, qos, retain
        self.published.append(payload)

    def tick(self):
        return self.beside.tick(self.publish)

    def until(self, holds):
        deadline_s = time.monotonic() + CAP_S
        while not holds():
            assert time.monotonic() < deadline_s
            time.sleep(0.001)


@pytest.fixture
def rig():
    made = Rig()
    yield made
    made.echo.gate.set()
    made.beside.close()


def test_nobody_has_to_poll_for_an_answer(rig):
    assert rig.beside.filters == ("echo/+",)
    rig.beside.take("echo/a", b"early")  # before its thread runs: kept
    assert rig.tick() is False
    for i in range(5):
        rig.beside.take("echo/a", b"%d" % i)
    rig.until(lambda: len(rig.published) == 6)
    assert rig.published == [b"early", b"0", b"1", b"2", b"3", b"4"]
    assert threading.current_thread().name not in rig.echo.threads


def test_what_it_refuses_is_counted_and_told_once_in_a_while(rig):
    rig.tick()
    for _ in range(20):
        rig.beside.take("echo/a", b"bad")
    rig.beside.take("echo/a", b"good")
    rig.until(lambda: rig.published == [b"good"])
    assert rig.beside.n_refused == 20
    assert rig.said == ["Refused a message on echo/a: It is bad."]


def test_a_failure_is_raised_where_the_run_is_worked_on(rig):
    rig.tick()
    rig.beside.take("echo/a", b"bug")
    rig.until(lambda: not rig.beside._thread.is_alive())
    with pytest.raises(ZeroDivisionError):
        rig.tick()


def test_what_is_too_much_is_dropped_and_counted(rig, monkeypatch):
    monkeypatch.setattr(own_thread, "MAX_HELD_BYTES", 10)
    for _ in range(3):
        rig.beside.take("echo/a", b"12345")
    assert rig.beside.n_dropped == 1
    rig.tick()
    rig.until(lambda: len(rig.published) == 2)
    rig.beside.take("echo/a", b"12345")
    rig.until(lambda: len(rig.published) == 3)


def test_closing_ends_the_thread_and_then_the_service(rig):
    rig.tick()
    thread = rig.beside._thread
    rig.beside.close()
    assert not thread.is_alive()
    assert rig.echo.is_closed
    Beside(Echo(), clock=time.monotonic, say=rig.said.append).close()  # one that never had a turn
