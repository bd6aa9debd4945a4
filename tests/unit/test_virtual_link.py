"""Links in virtual time: bytes take as long as their line needs, and come in order."""

import pytest

from toolkit.link.base import Connected, Disconnected, Received
from toolkit.link.virtual import Line, VirtualBroker, VirtualLink


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def ends():
    hub, clock, arrivals = VirtualBroker(), Clock(), []
    device = VirtualLink(hub, "dev", clock=clock, line=Line(1000.0, 500.0, 0.1), will=("gone", b"dev"))
    server = VirtualLink(hub, "server", clock=clock, line=Line(), on_arrival=arrivals.append)
    for link in (device, server):
        link.start()
        assert link.poll(0.0) == [Connected(session_present=False)]
    server.subscribe("up", "gone")
    device.subscribe("down")
    return clock, device, server, arrivals, hub


def test_bytes_go_up_one_after_the_other(ends):
    clock, device, server, arrivals, _ = ends
    device.publish("up", b"a" * 1000)
    device.publish("up", b"b" * 500)
    assert arrivals == pytest.approx([1.1, 1.6])
    assert device.outstanding_bytes == 1500
    clock.now = 1.05
    assert server.poll(0.0) == []
    assert device.outstanding_bytes == pytest.approx(450, abs=1)
    clock.now = 1.11
    assert server.poll(0.0) == [Received("up", b"a" * 1000)]
    clock.now = 2.0
    assert server.poll(0.0) == [Received("up", b"b" * 500)]
    assert device.outstanding_bytes == 0
    assert (device.n_published_bytes, server.n_received_bytes) == (1500, 1500)


def test_bytes_come_down_at_the_line_s_own_speed(ends):
    clock, device, server, _, _ = ends
    server.publish("down", b"c" * 1000)
    assert device.next_arrival_s == pytest.approx(2.1)
    clock.now = 2.05
    assert device.poll(0.0) == []
    clock.now = 2.11
    assert device.poll(0.0) == [Received("down", b"c" * 1000)]


def test_what_is_on_its_way_is_lost_with_the_connection_and_the_will_is_heard(ends):
    clock, device, server, _, hub = ends
    server.publish("down", b"d" * 1000)
    hub.arrival_s = clock.now
    hub.drop(device)
    clock.now = 9.0
    (lost,) = device.poll(0.0)
    assert isinstance(lost, Disconnected)
    assert server.poll(0.0) == [Received("gone", b"dev")]
