"""The coordinator's answers to offloaded samples: one pass for many boards, bounded, and never for nobody."""

import numpy as np
import pytest

from coordinator.beside import offload
from coordinator.beside.offload import STALE_PIECES_S, OffloadService
from coordinator.beside.routes import Served
from toolkit.errors import CheckpointError, RemoteProtocolError
from toolkit.wire import chunks, frames, questions
from toolkit.wire.limits import MAX_ASK_BYTES
from toolkit.wire.messages import Bye, Chunk, Declined
from toolkit.wire.topics import Topics

TOPICS = Topics("home")
ORIGIN = bytes(range(32))


class Doubling:
    """Layers that double what they are given, in the manner of ``Route``."""

    def __init__(self, round_, passes):
        self.round = round_
        self._passes = passes

    def logits(self, h):
        self._passes.append((self.round, len(h)))
        with np.errstate(over="ignore"):
            return 2 * h


class Routes:
    """Rounds 3 and 4 are kept; two cuts."""

    def __init__(self):
        self.passes = []
        self.gone = False

    def served(self):
        return Served((3, 4), {"one": (2,), "two": (3,)})

    def get(self, round_, cut):
        del cut
        if self.gone:
            raise CheckpointError("The layers are not kept any more.")
        return Doubling(round_, self.passes)


class Rig:
    def __init__(self, **changes):
        self.now = 0.0
        self.routes = Routes()
        self.service = OffloadService(
            "run1", topics=TOPICS, routes=self.routes, clock=lambda: self.now, **changes
        )
        self.published = []

    def ask(self, device, h, *, n=1, cut="one", run="run1", round_=4, ttl_ms=200):
        nonce = device.encode().ljust(16, b"\0")
        address = questions.AskAddress(
            boot_nonce=nonce, device=device, run=run, cut=cut, round=round_, origin=ORIGIN
        )
        frame = questions.encode_ask(address, np.asarray(h, np.float32), "float32", n=n, ttl_ms=ttl_ms)
        for piece in chunks.split(frame, payload_id=nonce[:15] + bytes([n]), chunk_bytes=len(frame)):
            self.service.take(TOPICS.ask(device), bytes(piece))

    def tick(self):
        return self.service.tick(
            lambda *message, qos, retain=False: self.published.append((*message, qos, retain))
        )

    def answers(self):
        """Logits by device and question; a declined one's code."""
        told = {}
        for topic, frame, qos, retain in self.published:
            assert (qos, retain) == (0, False)
            device = topic.split("/")[-2]
            message, body = frames.decode(frame)
            if isinstance(message, Declined):
                told[device, message.n] = message.code
                continue
            answer, content = questions.decode_answer(chunks.Assembler().add(message, body))
            logits = questions.to_logits(
                answer, content, n_samples=answer.tensors[0].shape[0], n_classes=answer.tensors[0].shape[1]
            )
            told[device, answer.n] = (answer.theta_round, logits.tolist())
        return told


@pytest.fixture
def rig():
    return Rig()


def test_boards_that_ask_the_same_layers_share_one_pass(rig):
    rig.ask("a", [[1, 2]])
    rig.ask("b", [[3, 4], [5, 6]])
    rig.ask("c", [[1, 1, 1]], cut="two")
    rig.ask("a", [[7, 8]], n=2)
    assert rig.tick()
    assert not rig.tick()
    assert rig.routes.passes == [(4, 4), (4, 1)]
    assert rig.answers() == {
        ("a", 1): (4, [[2, 4]]),
        ("b", 1): (4, [[6, 8], [10, 12]]),
        ("c", 1): (4, [[2, 2, 2]]),
        ("a", 2): (4, [[14, 16]]),
    }
    assert (rig.service.n_answered, rig.service.n_passes, rig.service.held_bytes) == (4, 2, 0)


def test_a_pass_has_an_end(rig):
    for n in range(1, 5):
        rig.ask("a", np.ones((100, 2)), n=n)
    while rig.tick():
        pass
    assert rig.routes.passes == [(4, 300), (4, 100)]


def test_the_bundles_own_round_answers_where_it_is_kept_else_the_newest(rig):
    for n, round_ in enumerate((3, 4, 1, 9), 1):
        rig.ask("a", [[1, 2]], n=n, round_=round_)
    while rig.tick():
        pass
    assert {n: told[0] for (_, n), told in rig.answers().items()} == {1: 3, 2: 4, 3: 4, 4: 4}


def test_a_question_whose_time_is_over_costs_nothing(rig):
    rig.ask("a", [[1, 2]], ttl_ms=200)
    rig.ask("b", [[1, 2]], ttl_ms=500)
    rig.now = 0.2
    rig.tick()
    assert rig.routes.passes == [(4, 1)]
    assert list(rig.answers()) == [("b", 1)]
    assert rig.service.n_expired == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"run": "run2"}, "run"), ({"cut": "three"}, "cut"), ({"cut": "two"}, "cut")],
    ids=["another run", "another cut", "another shape"],
)
def test_what_is_not_served_is_declined_so_that_nobody_waits(rig, changes, code):
    rig.ask("a", [[1, 2]], **changes)
    rig.tick()
    assert rig.answers() == {("a", 1): code}
    assert rig.routes.passes == []


def test_layers_that_are_gone_by_then_are_declined(rig):
    rig.ask("a", [[1, 2]])
    rig.routes.gone = True
    rig.tick()
    assert rig.answers() == {("a", 1): "cut"}


def test_activations_without_finite_logits_spoil_nobody_elses(rig):
    rig.ask("a", [[3e38, 0]])
    rig.ask("b", [[1, 2]])
    while rig.tick():
        pass
    assert rig.answers() == {("a", 1): "cut", ("b", 1): (4, [[2, 4]])}


def test_the_queue_is_bounded(rig, monkeypatch):
    monkeypatch.setattr(offload, "MAX_WAITING", 2)
    for n in range(1, 4):
        rig.ask("a", [[1, 2]], n=n)
    while rig.tick():
        pass
    assert rig.answers()["a", 3] == "busy"
    assert rig.service.n_answered == 2


def test_bytes_are_bounded_over_all_boards_and_for_each():
    budget = MAX_ASK_BYTES * 6
    rig = Rig(budget_bytes=budget)
    for board in range(8):
        for n in range(4):
            chunk = Chunk(
                payload_id=bytes([board, n]).ljust(16, b"\0"), index=0, n_chunks=2, total_bytes=MAX_ASK_BYTES
            )
            piece = frames.encode(chunk, [bytes(MAX_ASK_BYTES // 2)])
            rig.service.take(TOPICS.ask(f"board{board}"), bytes(piece))
            assert rig.service.held_bytes <= budget
    assert rig.service.n_dropped > 0
    rig.now = STALE_PIECES_S
    rig.tick()
    assert rig.service.held_bytes == 0


def test_what_is_no_question_is_refused(rig):
    nonce = bytes(16)
    too_long = Chunk(payload_id=nonce, index=0, n_chunks=32, total_bytes=MAX_ASK_BYTES + 1)
    bye = frames.encode(Bye(device="a", boot_nonce=nonce, reason=""))
    for payload in (b"garbage", bytes(bye), bytes(frames.encode(too_long, [bytes(too_long.chunk_bytes)]))):
        with pytest.raises(RemoteProtocolError):
            rig.service.take(TOPICS.ask("a"), payload)
    address = questions.AskAddress(
        boot_nonce=nonce, device="b", run="run1", cut="one", round=1, origin=ORIGIN
    )
    frame = questions.encode_ask(address, np.ones((1, 2), np.float32), "float32", n=1, ttl_ms=1)
    [piece] = chunks.split(frame, payload_id=nonce, chunk_bytes=len(frame))
    with pytest.raises(RemoteProtocolError, match="in the name of"):
        rig.service.take(TOPICS.ask("a"), bytes(piece))
    assert not rig.tick()
