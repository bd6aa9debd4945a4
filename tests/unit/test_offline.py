"""A month without a network (O5): updates wait, inference never. The days pass by a clock that only the test moves."""

from statistics import median

import numpy as np
import pytest

from coordinator.beside.delivery import BundleDelivery
from coordinator.beside.serving import Server
from device_agent.asker import Asker
from device_agent.receiver import Receiver
from tests.tiny_bundles import manifest_of, scaling_onnx, scaling_segment
from toolkit.bundle.archive import write_archive
from toolkit.bundle.folder import open_bundle, write_bundle
from toolkit.bundle.manifest import Provenance
from toolkit.bundle.place import Place
from toolkit.errors import BrokerUnreachableError
from toolkit.link.memory import MemoryBroker, MemoryLink
from toolkit.runtime.cascade import Cascade
from toolkit.runtime.installing import install
from toolkit.runtime.placed import Placed
from toolkit.wire.limits import MAX_MESSAGE_BYTES, PIECE_BYTES
from toolkit.wire.topics import Topics

TOPICS = Topics("home")
HOUR_S = 3600.0
DAYS = 30
UNSURE = np.asarray([[0.1, 0.0, 0.0]], np.float32)
PROBABILITY = {1.0: 0.3560, 2.0: 0.3790}
"""Of the first class, by the factor that a bundle's logits are scaled with."""


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def archive_of(folder, factor):
    """Several pieces long, so that it can be half here."""
    made = Provenance(
        run="run1",
        device="ant",
        model="scaling",
        cut="stage1",
        round=1,
        created="2026-01-01T00:00:00+00:00",
        software={},
        weights="0" * 64,
    )
    bundle = write_bundle(
        folder / f"made{factor}",
        manifest_of(scaling_segment(1), provenance=made),
        {"segment1.onnx": scaling_onnx(factor), "notes.txt": bytes(range(256)) * (40 * PIECE_BYTES // 256)},
    )
    return write_archive(bundle, folder / f"made{factor}.hsee")


def bring(archive, place):
    return install(archive, place, device="ant", key=None, self_test=lambda *_, **__: "passed")


class Board:
    """What runs on a board: the receiver of bundles, and inference that may ask a coordinator."""

    def __init__(self, hub, folder, clock, said):
        self.place = folder / "place"
        self.receiver = Receiver(
            MemoryLink(hub, "ant.infer", max_packet_bytes=MAX_MESSAGE_BYTES),
            topics=TOPICS,
            device="ant",
            folder=self.place,
            install=lambda path: bring(path, self.place),
            clock=clock,
            say=said.append,
        )
        self.receiver.start()
        # Its link never comes up, as in the month that is tested here.
        self.asker = Asker(
            MemoryLink(hub, "ant.asker"),
            topics=TOPICS,
            device="ant",
            deadline_s=60.0,
            clock=clock,
            boot_nonce=bytes(16),
        )
        self.notes = []

    def open(self):
        self.placed = Placed(Place(self.place), self._cascade, self.notes.append)

    def _cascade(self, bundle):
        return Cascade(bundle, offload=self.asker.about(bundle.manifest), threshold=0.01)

    def answer(self):
        [answer] = self.placed.cascade(UNSURE)
        self.placed.answered()
        return answer


def test_updates_wait_and_inference_never(tmp_path):
    hub, clock, said = MemoryBroker(), Clock(), []
    old, new = (archive_of(tmp_path, factor) for factor in (1.0, 2.0))
    board = Board(hub, tmp_path, clock, said)
    bring(old, board.place)
    board.open()
    delivery = BundleDelivery(new, ["ant"], topics=TOPICS, clock=clock, say=said.append)
    operator = Server(
        MemoryLink(hub, "op", max_packet_bytes=MAX_MESSAGE_BYTES), [delivery], clock=clock, say=said.append
    )
    operator.start()

    def a_while(seconds):
        clock.now += seconds
        operator.poll(0.0)
        board.receiver.poll(0.0)

    while board.receiver._fetching is None or board.receiver._fetching.n_bytes < 10 * PIECE_BYTES:
        a_while(0.1)
    here = board.receiver._fetching.n_bytes
    hub.stop()
    took_ms = []
    for _ in range(DAYS * 24):
        a_while(HOUR_S)
        # A real link tries for ever, and tells of each try.
        board.receiver._link.cut_off(BrokerUnreachableError("Nobody answers."))
        answer = board.answer()
        assert answer.probability == pytest.approx(PROBABILITY[1.0], abs=1e-3)
        assert answer.fallback
        took_ms.append(answer.ms)
    assert median(took_ms) < 1000
    assert board.asker.facts.reasons == {"no connection": DAYS * 24}
    assert board.receiver._fetching.n_bytes == here
    assert sum("lost the broker" in line for line in said) == 2  # one line of the board, one of the operator
    assert (board.notes, delivery.receipts) == ([], {})

    hub.start()
    while not delivery.receipts:
        a_while(0.1)
    assert delivery.receipts["ant"].outcome == "installed"
    board.answer()  # the first after the swap sees it and takes it up
    assert board.answer().probability == pytest.approx(PROBABILITY[2.0], abs=1e-3)
    assert board.notes == [f"note: The bundle {open_bundle(new).digest[:16]} runs from now on."]
    operator.close()
    board.receiver.close()
