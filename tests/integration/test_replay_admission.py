"""Row T6 in memory: every payload that was ever said is said again, in the worst places, and the run is bit for bit the same."""

from __future__ import annotations

import random

import msgspec
import pytest
import torch

from coordinator.store.ledger import Applied, read_ledger
from tests.numerics.fleet import RUN, TOPICS, Fleet, Member, local_data, patterns
from toolkit.config import Run
from toolkit.link.base import Received
from toolkit.link.memory import MemoryLink
from toolkit.wire import chunks, frames
from toolkit.wire.messages import Chunk, Payload

N_HOSTILE = 10_000
SHAPE = (1, 4, 4)
DEVICES = {"ant": "hidden1", "bee": "hidden2"}
SETTINGS = Run(
    model="mlp",
    model_options={"width": 16, "depth": 3},
    devices=2,
    rounds=4,
    batch_size=4,
    seed=1,
    wait_s=60.0,
)


class Ear:
    """Hears what devices send, and puts payloads together."""

    def __init__(self, fleet: Fleet) -> None:
        self._link = MemoryLink(fleet.hub, "ear")
        self._link.start()
        self._link.subscribe(TOPICS.up("+", "+"))
        self._assemblers: dict[str, chunks.Assembler] = {}
        self.whole: list[tuple[Payload, bytes]] = []

    def listen(self) -> None:
        for event in self._link.poll(0.0):
            if isinstance(event, Received):
                message, body = frames.decode(event.payload)
                if isinstance(message, Chunk):
                    done = self._assemblers.setdefault(event.topic, chunks.Assembler()).add(message, body)
                    if done is not None:
                        header, content = frames.decode(done)
                        assert isinstance(header, Payload)
                        self.whole.append((header, bytes(content)))


def run_fleet(folder, *, seed=SETTINGS.seed, hostile=None):
    """Run a fleet to its end; ``hostile`` is called with fleet and ear before each sweep."""
    members = [
        Member(name, cut, local_data(*patterns(32, SHAPE, seed=len(cut)), classes=["a", "b", "c"]))
        for name, cut in DEVICES.items()
    ]
    settings = Run(**{name: getattr(SETTINGS, name) for name in Run.__struct_fields__} | {"seed": seed})
    folder.mkdir()
    with Fleet(folder, members, settings) as fleet:
        ear = Ear(fleet)
        fleet.start()

        def is_over():
            ear.listen()
            if hostile is not None:
                hostile(fleet, ear)
            return fleet.coordinator.over and all(m.agent.over for m in fleet.members.values())

        fleet.run_until(is_over)
        model = fleet.server()
    return ear.whole, model, read_ledger(folder / "run/ledger.jsonl")


class Thief:
    """Says again, under new payload ids, on both devices' topics, what it has: of another run, and of this one."""

    def __init__(self, elsewhere) -> None:
        self._elsewhere = [(msgspec.structs.replace(header, run="r0"), body) for header, body in elsewhere]
        self._draw = random.Random(6)
        self.n_said = 0

    def __call__(self, fleet, ear) -> None:
        if fleet.round() == 0 or fleet.coordinator.over:
            return
        term, round_ = fleet.coordinator.term, fleet.round()
        # Payloads that the open round may still want are no replay of anything that was dealt with: they stay out.
        stale = [(h, b) for h, b in ear.whole if (h.term, h.round) < (term, round_)]
        for _ in range(60):
            header, body = self._draw.choice(
                self._elsewhere if not stale or self._draw.random() < 0.5 else stale
            )
            payload = frames.encode(header, [body])
            for device in DEVICES:
                for chunk in chunks.split(
                    payload, payload_id=self._draw.randbytes(16), chunk_bytes=256 * 1024
                ):
                    fleet.hub.publish(TOPICS.up(RUN, device), bytes(chunk), retain=False)
                self.n_said += 1


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What the same devices sent in another run, under the same term, incarnations and plan version."""
    whole, _, _ = run_fleet(tmp_path_factory.mktemp("elsewhere") / "r0", seed=5)
    return whole


def test_t6_a_run_among_ten_thousand_replays_is_the_run_without_them(tmp_path, elsewhere):
    _, quiet, quiet_ledger = run_fleet(tmp_path / "quiet")
    thief = Thief(elsewhere)
    _, loud, loud_ledger = run_fleet(tmp_path / "loud", hostile=thief)

    def applied(ledger):
        return [(e.device, e.round, e.seq, e.digest) for e in ledger if isinstance(e, Applied)]

    assert sorted(applied(loud_ledger)) == sorted(applied(quiet_ledger))
    assert set(loud) == set(quiet)
    assert all(torch.equal(loud[name], quiet[name]) for name in quiet)
    assert thief.n_said >= N_HOSTILE


def test_a_payload_of_another_run_would_fit_but_for_its_name(elsewhere):
    """Term, incarnation, plan and round are small numbers that two runs share: only the name tells them apart."""
    header, _ = elsewhere[0]
    assert (header.term, header.incarnation, header.plan_version, header.round) == (1, 1, 1, 1)
    assert header.run == RUN
