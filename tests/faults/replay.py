"""Row T6 by delivery: 10,000 stale and cross-device payloads reach a real coordinator by a broker that lets them, in vain."""

from __future__ import annotations

import itertools
import json
import random
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.store.ledger import Applied, Closed, TermRaised, read_ledger
from tests.e2e.processes import Hsee
from tests.mosquitto import find_mosquitto
from tests.served_broker import ServedBroker
from toolkit.access.dynamic_security import DynamicSecurity
from toolkit.access.probe import Probe
from toolkit.wire import chunks, frames
from toolkit.wire.messages import Chunk

pytestmark = [
    pytest.mark.needs_mosquitto,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
N_HOSTILE = 10_000
CAP_S = 180.0
"""Six processes start here; it is a cap, not a time that anything takes."""
ROUNDS = 16
MODEL = ("--model", "mlp", "--set", "run.model_options.width=8", "--set", "run.batch_size=16")
PARTS = {"ant": "1/12", "bee": "2/12"}
CHUNK_BYTES = 256 * 1024


@pytest.fixture
def served(tmp_path) -> Iterator[ServedBroker]:
    broker = ServedBroker(tmp_path / "broker", ["ant", "bee", "thief", "coord-r1"])
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def crew(served, tmp_path) -> Iterator[dict[str, Hsee]]:
    """Each process in its account's folder."""
    made = {name: Hsee(served.folder.account_folder(name)) for name in ("ant", "bee", "coord-r1")}
    words = ("--model", "mlp", "--option", "width=8", "--input", "1x8x8", "--classes", 10, "--quick")
    done = made["ant"].run("profile", *words, "-o", tmp_path / "board.toml", cap_s=CAP_S)
    assert done.end(CAP_S) == 0, done.describe()
    yield made
    for hsee in made.values():
        hsee.kill_all()


def start_agents(crew, tmp_path, clocks):
    return [
        crew[name].start(
            *("agent", "start", "--data", "digits", "--part", part),
            *("--profile", tmp_path / "board.toml"),
            **at(clocks[name]),
        )
        for name, part in PARTS.items()
    ]


FAKETIME = next(Path("/usr").glob("lib*/*/faketime/libfaketime.so.1"), None)
WRONG = {"first": "+3y", "second": "+1y", "ant": "+2y", "bee": ""}
"""A coordinator whose clock goes back by two years when it is started again, and boards that agree with neither.

None is before the broker's certificate: there TLS itself refuses.
"""
RIGHT = dict.fromkeys(WRONG, "")


def at(offset: str) -> dict[str, str]:
    """Set the wall clock of a process, as a battery that died would; the monotonic one goes on as it does."""
    if not offset:
        return {}
    return {"LD_PRELOAD": str(FAKETIME), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


class Spy:
    """Hears all that devices send, puts payloads together, and knows whose each was."""

    def __init__(self, probe: Probe, served: ServedBroker) -> None:
        self._probe = probe
        self._topics = served.topics
        self._assemblers: dict[str, chunks.Assembler] = {}
        self._n_read = 0
        self.whole: list[tuple[str, bytes]] = []
        self.n_chunks = 0
        probe.subscribe(served.topics.up("+", "+"), served.topics.check("op-admin"))

    def listen(self) -> None:
        """Take what has come; a fence says that all before it has."""
        assert self._probe.fence(self._topics.check("op-admin"))
        for message in self._probe.received[self._n_read :]:
            if message.topic.endswith("/up"):
                decoded, body = frames.decode(message.payload)
                if isinstance(decoded, Chunk):
                    self.n_chunks += 1
                    assembler = self._assemblers.setdefault(message.topic, chunks.Assembler())
                    done = assembler.add(decoded, body)
                    if done is not None:
                        self.whole.append((message.topic, bytes(done)))
        self._n_read = len(self._probe.received)


@pytest.mark.parametrize("clocks", [RIGHT, WRONG], ids=["right clocks", "wrong clocks"])
def test_t6_nothing_that_was_said_before_or_elsewhere_counts(served, crew, tmp_path, clocks):
    if clocks is WRONG and FAKETIME is None:
        pytest.skip("libfaketime is not installed")
    topics = served.topics
    with served.probe("op-admin") as operator:
        spy = Spy(operator, served)
        agents = start_agents(crew, tmp_path, clocks)
        words = ("--run", "r1", "--rounds", ROUNDS, "--devices", 2, *MODEL, "--json")
        first = crew["coord-r1"].start("coordinator", "start", *words, **at(clocks["first"]))
        first.wait_for_round(3, CAP_S)
        first.kill()
        first.end()
        spy.listen()
        heard = list(spy.whole)
        assert {topic for topic, _ in heard} == {topics.up("r1", device) for device in PARTS}

        # A broker that gives an account too much: the coordinator must not rely on it.
        control = DynamicSecurity(operator, topics)
        acl = {"acltype": "publishClientSend", "topic": "#", "priority": 0, "allow": True}
        control._ask("addRoleACL", rolename="thief", **acl)
        second = crew["coord-r1"].start("run", "resume", "runs/r1", "--json", **at(clocks["second"]))
        second.wait_for("round", CAP_S)
        draw = random.Random(6)
        with served.probe("thief") as thief:
            for _, (_, payload) in zip(range(N_HOSTILE), itertools.cycle(heard), strict=False):
                # Every one under a new payload id, on one device's topic or the other's.
                for chunk in chunks.split(
                    payload, payload_id=secrets.token_bytes(16), chunk_bytes=CHUNK_BYTES
                ):
                    thief.publish(topics.up("r1", draw.choice(sorted(PARTS))), chunk)
            thief.subscribe(topics.check("thief"))
            assert thief.echo(topics.check("thief"), b"all is sent", timeout_s=60) is not None
        for process in (second, *agents):
            assert process.end(CAP_S) == 0, process.describe()
        spy.listen()
    assert spy.n_chunks >= N_HOSTILE + len(heard), "the hostile ones were delivered"
    entries = read_ledger(crew["coord-r1"].folder / "runs/r1/ledger.jsonl")
    assert [entry.round for entry in entries if isinstance(entry, Closed)] == list(range(1, ROUNDS + 1))
    applied = [entry for entry in entries if isinstance(entry, Applied)]
    assert len({(entry.device, entry.round, entry.seq) for entry in applied}) == len(applied)
    # What each body was made as, by its own header: copies say the same as their originals.
    made_as: dict[str, set[tuple[str, int, int]]] = {}
    terms: dict[str, set[int]] = {}
    for _, payload in spy.whole:
        header, _ = frames.decode(payload)
        made_as.setdefault(header.sha256.hex(), set()).add((header.device, header.round, header.seq))
        terms.setdefault(header.sha256.hex(), set()).add(header.term)
    term = 0
    for entry in entries:
        if isinstance(entry, TermRaised):
            term = entry.term
        elif isinstance(entry, Applied):
            assert made_as[entry.digest] == {(entry.device, entry.round, entry.seq)}
            assert term in terms[entry.digest], "a payload of the killed coordinator's term was applied"
    assert term == 2
    began = int(json.loads((crew["coord-r1"].folder / "runs/r1/run.json").read_text())["started"][:4])
    assert began - datetime.now(UTC).year in ((2, 3) if clocks is WRONG else (-1, 0)), "no clock was wrong"
