"""Bundles to boards over a real broker: interrupted, forged, refused, twice; what is installed is what was sent."""

import hashlib
import time
from types import SimpleNamespace

import pytest

from coordinator.beside.delivery import BundleDelivery
from coordinator.beside.serving import Server
from device_agent import receiver as receiving
from device_agent.receiver import Receiver
from tests.e2e.processes import Hsee
from tests.tiny_bundles import manifest_of, scaling_onnx, scaling_segment
from toolkit.bundle.archive import write_archive
from toolkit.bundle.folder import open_bundle, write_bundle
from toolkit.errors import BundleSignatureError
from toolkit.link.base import Connected
from toolkit.link.mqtt import MqttLink
from toolkit.runtime.installing import install
from toolkit.wire import frames
from toolkit.wire.limits import MAX_MESSAGE_BYTES, PIECE_BYTES
from toolkit.wire.messages import Offer, Piece
from toolkit.wire.topics import Topics

pytestmark = pytest.mark.needs_mosquitto
TOPICS = Topics("home")
CAP_S = 30.0


def link_of(broker, client_id):
    return MqttLink(broker.address, client_id, max_packet_bytes=MAX_MESSAGE_BYTES, max_backoff_s=0.1)


@pytest.fixture
def hsee(tmp_path):
    started = Hsee(tmp_path)
    yield started
    started.kill_all()


@pytest.fixture
def archive(tmp_path):
    """Larger than what may be under way at a time."""
    bundle = write_bundle(
        tmp_path / "made",
        manifest_of(scaling_segment(1)),
        {"segment1.onnx": scaling_onnx(2.0), "notes.txt": bytes(range(256)) * 1024 * 30},
    )
    return write_archive(bundle, tmp_path / "made.hsee")


class Rig:
    """Boards and a sender, polled in turns in one thread."""

    def __init__(self, broker, folder):
        self.broker = broker
        self.folder = folder
        self.boards = {}
        self.said = []
        self.server = None
        self.delivery = None

    def board(self, name, *, refuse=None):
        def bring(path):
            if refuse is not None:
                raise refuse
            return install(
                path, self.folder / name, device=name, key=None, self_test=lambda *_, **__: "passed"
            )

        board = Receiver(
            link_of(self.broker, f"{name}.infer"),
            topics=TOPICS,
            device=name,
            folder=self.folder / name,
            install=bring,
            clock=time.monotonic,
            say=self.said.append,
        )
        board.start()
        self.boards[name] = board
        return board

    def send(self, archive, *devices):
        self.delivery = BundleDelivery(
            archive, devices, topics=TOPICS, clock=time.monotonic, say=self.said.append
        )
        self.server = Server(
            link_of(self.broker, "op"), [self.delivery], clock=time.monotonic, say=self.said.append
        )
        self.server.start()
        return self.delivery

    def until(self, holds):
        deadline_s = time.monotonic() + CAP_S
        while not holds():
            assert time.monotonic() < deadline_s, self.said
            for party in (self.server, *self.boards.values()):
                if party is not None:
                    party.poll(0.01)

    def close(self):
        for party in (self.server, *self.boards.values()):
            if party is not None:
                party.close()


@pytest.fixture
def rig(mosquitto, tmp_path, monkeypatch):
    monkeypatch.setattr(receiving, "AGAIN_S", 0.3)
    monkeypatch.setattr("coordinator.beside.delivery.OFFER_EVERY_S", 0.3)
    made = Rig(mosquitto, tmp_path / "boards")
    yield made
    made.close()


def outcomes(delivery):
    return {device: receipt.outcome for device, receipt in delivery.receipts.items()}


def test_what_was_sent_is_what_runs_on_every_board(rig, archive, tmp_path):
    for name in ("ant", "bee"):
        rig.board(name)
    delivery = rig.send(archive, "ant", "bee")
    rig.until(lambda: not delivery.waiting)
    assert outcomes(delivery) == {"ant": "installed", "bee": "installed"}
    for name in ("ant", "bee"):
        place = tmp_path / "boards" / name
        assert (place / "bundle.hsee").read_bytes() == archive.read_bytes()
        assert list(place.glob("receiving-*")) == []
    rig.server.close()
    again = rig.send(archive, "ant")
    rig.until(lambda: not again.waiting)
    assert outcomes(again) == {"ant": "installed"}  # what was said before is said again


def test_it_goes_on_where_it_stopped_after_a_killed_broker_and_a_restarted_board(
    rig, archive, tmp_path, mosquitto
):
    board = rig.board("ant")
    delivery = rig.send(archive, "ant")
    rig.until(lambda: board._fetching is not None and board._fetching.n_bytes > 0)
    mosquitto.restart()
    here = board._fetching.n_bytes
    rig.until(lambda: board._fetching is None or board._fetching.n_bytes > here)
    board.close()
    [part] = (tmp_path / "boards/ant").glob("receiving-*") or [None]
    kept = part.stat().st_size
    assert kept >= PIECE_BYTES
    rig.board("ant")
    rig.until(lambda: not delivery.waiting)
    assert any(f"{kept} of them are here" in line for line in rig.said)
    assert (tmp_path / "boards/ant/bundle.hsee").read_bytes() == archive.read_bytes()


def test_a_refusal_comes_back_with_its_reason_and_leaves_nothing(rig, archive, tmp_path):
    rig.board("ant", refuse=BundleSignatureError("It is not signed."))
    delivery = rig.send(archive, "ant")
    rig.until(lambda: not delivery.waiting)
    receipt = delivery.receipts["ant"]
    assert (receipt.outcome, receipt.message) == ("refused", "It is not signed. (HSEE-E142)")
    assert list((tmp_path / "boards/ant").iterdir()) == []


class Forger:
    def __init__(self, rig):
        self._link = link_of(rig.broker, "forger")
        self._link.start()
        while not any(isinstance(event, Connected) for event in self._link.poll(0.1)):
            pass

    def say(self, message, body=b""):
        self._link.publish(TOPICS.offer("ant"), frames.encode(message, [body]))

    def close(self):
        self._link.close()


def test_forged_offers_and_pieces_cost_nothing_and_install_nothing(rig, archive, tmp_path):
    board = rig.board("ant")
    place = tmp_path / "boards" / "ant"
    rig.until(lambda: board._contact.is_made)
    board._link.publish(TOPICS.offer("ant"), b"")
    rig.until(lambda: board.n_refused_messages == 1)  # the broker has its subscription
    forger = Forger(rig)
    content = archive.read_bytes()
    digest = hashlib.sha256(content).digest()
    forger.say(Piece(archive=digest, offset=0), content[:PIECE_BYTES])  # of nothing that was offered
    forger.say(Offer(archive=bytes(32), n_bytes=2 * PIECE_BYTES))
    rig.until(lambda: board._fetching is not None)
    forger.say(Piece(archive=bytes(32), offset=PIECE_BYTES), bytes(PIECE_BYTES))  # not the next one
    forger.say(Piece(archive=bytes(32), offset=0), bytes(PIECE_BYTES - 1))  # too short
    forger.say(Piece(archive=bytes(32), offset=0), bytes(PIECE_BYTES + 1))  # too long
    forger.say(Piece(archive=bytes(32), offset=0), bytes(PIECE_BYTES))
    rig.until(lambda: board._fetching.n_bytes == PIECE_BYTES)
    forger.say(Piece(archive=bytes(32), offset=PIECE_BYTES), bytes(PIECE_BYTES))
    rig.until(lambda: board.n_done == 1)
    assert "refused: What arrived is not what was offered." in rig.said
    board._max_bytes = 2**20
    forger.say(Offer(archive=bytes(31) + b"2", n_bytes=2**21))
    rig.until(lambda: board.n_done == 2)
    assert "refused: 2097152 bytes; at most 1048576 are fetched." in rig.said
    assert not (place / "bundle.hsee").exists()
    assert sum(path.stat().st_size for path in place.iterdir()) <= PIECE_BYTES
    forger.close()


def test_no_room_is_told_before_anything_is_fetched(rig, archive, monkeypatch):
    rig.board("ant")
    monkeypatch.setattr(receiving.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    delivery = rig.send(archive, "ant")
    rig.until(lambda: not delivery.waiting)
    assert "has 1000 bytes free" in delivery.receipts["ant"].message


def test_the_commands_send_and_receive(hsee, archive, tmp_path, mosquitto):
    broker = ("--broker", f"127.0.0.1:{mosquitto.address.port}")
    place = tmp_path / "place"
    refused = hsee.run("bundle", "receive", "--into", place, *broker)
    assert refused.end() == 2
    assert "trusts no operator" in refused.err
    board = hsee.start(
        "bundle", "receive", "--into", place, "--id", "ant", "--once", "--allow-unsigned", *broker
    )
    board.wait_for("waiting for bundles")
    sent = hsee.run("bundle", "send", archive, "--to", "ant", *broker)
    assert sent.end() == 0, sent.describe()
    assert "ant: installed: 1 exits on 4 stored samples" in sent.out
    assert board.end() == 0, board.describe()
    assert open_bundle(place / "bundle.hsee").digest == open_bundle(archive).digest
    again = hsee.start(
        *("bundle", "receive", "--into", place, "--id", "ant", "--once", "--allow-unsigned", "--json"),
        *broker,
    )
    again.wait_for("waiting for bundles")
    told = hsee.run("bundle", "send", archive, "--to", "ant", "--json", *broker)
    assert (told.end(), again.end()) == (0, 0), told.describe() + again.describe()
    assert {event.get("event") for event in told.events[:-1]} == {"notice"}
    assert told.events[-1] == {"success": True, "receipts": {"ant": "unchanged"}}
    assert again.events[-1] == {"success": True, "installed": 1}
    alone = hsee.run("bundle", "send", archive, "--to", "bee", "--wait", 1, *broker)
    assert alone.end() == 5
    assert "no word from bee" in alone.err
