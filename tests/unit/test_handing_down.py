"""What goes down goes no faster than the link takes it, to one device after the other, and once a wish."""

from types import SimpleNamespace

import numpy as np
import pytest

from coordinator.fleet.handing_down import OUTSTANDING_BYTES, HandingDown, Wish
from toolkit.wire import chunks, frames
from toolkit.wire.limits import DEFAULT_CHUNK_BYTES
from toolkit.wire.weights import FlatWeights, LoweredAddress, RowLengths, decode_lowered, to_weights

N_VALUES = 3 * 2**20
N_CHUNKS = -(-4 * N_VALUES // DEFAULT_CHUNK_BYTES) + 1  # the header takes the last one


class SlowLink:
    """Holds what it is given until it is told to let go."""

    max_packet_bytes = 384 * 1024

    def __init__(self):
        self.outstanding_bytes = 0
        self.sent = []

    def publish(self, topic, payload, **_):
        self.sent.append((topic, bytes(payload)))
        self.outstanding_bytes += len(payload)

    def let_go(self):
        self.outstanding_bytes = 0


def wish(device="ant", *, round_=3, incarnation=1, taken=0):
    address = LoweredAddress(device=device, round=round_, term=1, incarnation=incarnation, plan_version=1)
    return Wish(address, taken)


@pytest.fixture
def link():
    return SlowLink()


@pytest.fixture
def down(link):
    return HandingDown(link, lambda device: f"to/{device}")


@pytest.fixture
def underway():
    flat = FlatWeights(np.arange(N_VALUES, dtype=np.float32), np.empty(0, np.int64), np.empty(0, np.float32))
    asked = []

    def lowered(device, *, taken):
        asked.append((device, taken))
        return flat, None

    devices = {name: SimpleNamespace(lowered_bytes=0) for name in ("ant", "bee")}
    return SimpleNamespace(
        state=SimpleNamespace(common=SimpleNamespace(sync=SimpleNamespace(codec="float32"))),
        model=SimpleNamespace(lowered_round=3, lowered=lowered, asked=asked),
        loop=SimpleNamespace(devices=devices),
    )


def send_all(down, link, underway):
    link.let_go()
    while down.send_some(underway):
        assert link.outstanding_bytes < OUTSTANDING_BYTES + 2 * DEFAULT_CHUNK_BYTES
        link.let_go()


def test_it_sends_no_more_than_the_link_takes_and_all_of_it_in_the_end(down, link, underway):
    down.ask(wish())
    assert down.send_some(underway)
    assert not down.send_some(underway)  # the link has enough
    assert len(link.sent) < N_CHUNKS
    link.let_go()
    send_all(down, link, underway)
    assembler = chunks.Assembler()
    (whole,) = filter(None, (assembler.add(*frames.decode(payload)) for _, payload in link.sent))
    flat = to_weights(*decode_lowered(whole, device="ant"), RowLengths(N_VALUES, 0, 0))
    assert flat.values[-1] == N_VALUES - 1
    assert underway.loop.devices["ant"].lowered_bytes == sum(len(payload) for _, payload in link.sent)


def test_one_device_follows_the_other_and_a_wish_said_twice_is_fulfilled_once(down, link, underway):
    for device in ("bee", "ant", "bee"):
        down.ask(wish(device))
    down.send_some(underway)
    down.ask(wish("bee"))  # while it is under way
    send_all(down, link, underway)
    assert [topic for topic, _ in link.sent] == ["to/bee"] * N_CHUNKS + ["to/ant"] * N_CHUNKS
    down.ask(wish("bee"))  # what was lost is sent again
    send_all(down, link, underway)
    assert len(link.sent) == 3 * N_CHUNKS


def test_a_newer_process_is_served_from_the_beginning(down, link, underway):
    down.ask(wish())
    down.send_some(underway)
    n_lost = len(link.sent)
    down.ask(wish(incarnation=2, taken=2))
    link.let_go()
    send_all(down, link, underway)
    assert len(link.sent) == n_lost + N_CHUNKS
    assert underway.model.asked == [("ant", 0), ("ant", 2)]


def test_what_an_older_round_came_to_is_not_sent_any_more(down, link, underway):
    down.ask(wish(round_=2))
    assert not down.send_some(underway)
    assert link.sent == []
