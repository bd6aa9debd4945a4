"""Nothing that a coordinator sends or withholds moves a device's weights, buffers, momentum or generators.

The test plays the coordinator on the memory link. It asks for batches again, grants nothing, goes back to rounds
that are over, raises terms, takes the run away and gives it back, and sends garbage. What the device has learned in
the end is what its segment learns alone from as many steps.
"""

import random

import msgspec
import numpy as np
import pytest
import torch

from device_agent.state import DeviceFolder
from tests.numerics import oracle
from tests.numerics.fleet import (
    RUN,
    TOPICS,
    Clock,
    Member,
    local_data,
    make_agent,
    patterns,
    training_data,
    training_state,
)
from tests.numerics.same import assert_same
from toolkit.errors import RefusedError
from toolkit.link.base import Received
from toolkit.link.memory import MemoryBroker, MemoryLink
from toolkit.wire import frames
from toolkit.wire.chunks import split
from toolkit.wire.job import Job, ModelSpec, SyncSpec
from toolkit.wire.messages import Assignment, Chunk, Fenced, Hello, Refusal, State, Welcome
from toolkit.wire.weights import FlatWeights, LoweredAddress, encode_lowered
from toolkit.wire.words import BridgeWord, encode_word

N_TRAIN = 5
BATCH = 8
ROUNDS = 3
RESEND_S = 6.0


def make_job() -> Job:
    return Job(
        run=RUN,
        model=ModelSpec(name="python:tests.numerics.models:with_dropout", input_shape=[3, 12], n_classes=3),
        cut="second",
        classes=["a", "b", "c"],
        mean=[0.0, 0.1, 0.2],
        std=[1.0, 1.1, 1.2],
        seed=11,
        rounds=ROUNDS,
        batch_size=BATCH,
        eval_samples=BATCH,
    )


class HostileCoordinator:
    """Plays the coordinator, and plays foul."""

    def __init__(self, folder, seed: int, *, accepts="never") -> None:
        self.member = Member(
            "dev1", "second", local_data(*patterns(50, (3, 12), seed=3), classes="abc", held_out=0.2)
        )
        self.member.accepts = accepts
        self.job = make_job()
        self.clock = Clock()
        self.hub = MemoryBroker()
        self.folder = folder / "dev1"
        self.member.folder = DeviceFolder(self.folder)
        self.agent = make_agent(self.member, self.hub, self.clock, boot_nonce=b"n" * 16)
        self.link = MemoryLink(self.hub, "coordinator")
        self.link.start()
        self.link.subscribe(TOPICS.all_up(RUN))
        self.random = random.Random(seed)
        self.term, self.n, self.round, self.next = 1, 0, 1, 1
        self.n_payloads = 0
        self.generator_before = torch.get_rng_state()
        self.bridge("online")
        self.agent.start()

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.agent.close()
        self.member.folder.close()

    def bridge(self, word):
        self.link.publish(TOPICS.bridge_state, encode_word(BridgeWord(word, RUN, self.term)), retain=True)

    def send(self, message):
        self.link.publish(TOPICS.down(RUN, "dev1"), frames.encode(message))

    def grant(self, *, first, limit, round_=None, **changes):
        """Say how far the device may send."""
        self.n += 1
        given = {
            "term": self.term,
            "incarnation": 1,
            "n": self.n,
            "phase": "training",
            "round": round_ or self.round,
            "next": first,
            "limit": limit,
            "watermark_round": 0,
            "watermark_seq": 0,
            "plan_version": 1,
        }
        self.send(State(**(given | changes)))

    def turn(self, n=1):
        """Let the device work; answer its hellos, count its chunks."""
        for _ in range(n):
            self.agent.poll(0.0)
            for event in self.link.poll(0.0):
                if not isinstance(event, Received):
                    continue
                message, _ = frames.decode(event.payload)
                if isinstance(message, Hello):
                    self.send(
                        Welcome(boot_nonce=b"n" * 16, run=RUN, term=self.term, incarnation=1, protocol=1)
                    )
                    self.send(Assignment(term=self.term, plan_version=1, job=self.job))
                self.n_payloads += isinstance(message, Chunk)
            self.clock.now += 0.01

    # What it does

    def asks_again(self):
        """Names a batch that it has had, for longer than the device's patience."""
        self.grant(first=1, limit=self.random.randint(2, N_TRAIN + 2))
        self.turn(4)
        self.clock.now += RESEND_S
        self.grant(first=1, limit=self.random.randint(2, N_TRAIN + 2))
        self.turn(6)

    def starves(self):
        first = self.random.randint(1, N_TRAIN)
        self.grant(first=first, limit=first)
        self.turn(8)

    def goes_back(self):
        """Opens a round again that is over, and asks for all of it."""
        self.grant(round_=self.random.randint(1, self.round), first=1, limit=N_TRAIN + 2)
        self.turn(12)

    def raises_the_term(self):
        self.term += self.random.randint(1, 1000)
        self.starves()
        self.bridge("online")  # a device passes over words of a lower term than it has heard of

    def speaks_of_the_past(self):
        self.grant(first=1, limit=N_TRAIN, n=1, round_=1)
        self.grant(first=1, limit=N_TRAIN, incarnation=7)
        other = msgspec.structs.replace(self.job, seed=5)
        self.send(Assignment(term=self.term + 1, plan_version=1, job=other))
        self.turn(4)

    def addresses_another(self):
        self.send(Fenced(boot_nonce=b"m" * 16, incarnation=2))
        self.send(Refusal(boot_nonce=b"m" * 16, code="late", message="go away"))
        self.send(Welcome(boot_nonce=b"m" * 16, run=RUN, term=self.term, incarnation=9, protocol=1))
        self.turn(4)

    def goes_and_comes(self):
        self.bridge("offline")
        self.turn(4)
        self.bridge("online")
        self.turn(4)

    def cuts_the_cable(self):
        self.hub.drop(self.agent._link)
        self.turn(6)

    def sends_garbage(self):
        whole = bytes(frames.encode(Fenced(boot_nonce=b"n" * 16, incarnation=2)))
        down = TOPICS.down(RUN, "dev1")
        for payload in (
            b"",
            self.random.randbytes(200),
            whole[: self.random.randrange(len(whole))],
            bytes(frames.encode(Chunk(payload_id=b"x" * 16, index=0, n_chunks=1, total_bytes=4), [b"zzzz"])),
        ):
            self.link.publish(down, payload)
        self.link.publish(TOPICS.bridge_state, b"\xff{", retain=False)
        self.turn(3)

    FOUL = (
        asks_again,
        starves,
        goes_back,
        raises_the_term,
        speaks_of_the_past,
        addresses_another,
        goes_and_comes,
        cuts_the_cable,
        sends_garbage,
    )

    def lets_the_round_end(self):
        """Grants all of the round, until the device has trained it."""
        for _ in range(200):
            if [seq for number, seq in self.member.trained if number == self.round][-1:] == [N_TRAIN]:
                return
            self.grant(first=1, limit=N_TRAIN + 1)
            self.turn(5)
        raise AssertionError(f"the device does not train round {self.round}: {self.member.said[-1]}")


@pytest.mark.parametrize("seed", range(4))
def test_a_hostile_coordinator_moves_nothing(seed, tmp_path):
    with HostileCoordinator(tmp_path, seed) as hostile:
        hostile.turn(6)
        # Where a device begins that has learned nothing yet is the coordinator's to say (rule 12); then no more.
        hostile.grant(first=1, limit=1)
        hostile.turn(1)
        for round_ in range(1, ROUNDS + 1):
            hostile.round = round_
            for foul in hostile.random.sample(hostile.FOUL, len(hostile.FOUL)):
                foul(hostile)
            hostile.lets_the_round_end()
            foul(hostile)
    assert hostile.agent.n_refused_messages >= 4 * ROUNDS
    assert hostile.n_payloads > ROUNDS * N_TRAIN  # it did ask again
    keys = [(round_, seq) for round_ in range(1, ROUNDS + 1) for seq in range(1, N_TRAIN + 1)]
    assert hostile.member.trained == keys

    alone = oracle.device_learner(hostile.job)
    data = training_data(hostile.member)
    for round_, seq in keys:
        oracle.train_alone(alone, "dev1", hostile.job, data, round_=round_, seq=seq)
    assert_same(training_state(hostile.folder), alone.tensors())
    assert torch.equal(torch.get_rng_state(), hostile.generator_before)


@pytest.mark.parametrize("accepts", ["never", "coordinator"])
def test_weights_that_no_job_asked_for_move_nothing(accepts, tmp_path):
    """Also at a device that would take them from a run that averages segments."""
    with HostileCoordinator(tmp_path, 0, accepts=accepts) as hostile:
        hostile.turn(6)
        hostile.grant(first=1, limit=1, round_=2, lowered_round=1)
        address = LoweredAddress(device="dev1", round=1, term=1, incarnation=1, plan_version=1)
        zeros = hostile.agent._trainer.weights()
        zeros = FlatWeights(np.zeros_like(zeros.values), np.zeros_like(zeros.counters), zeros.momentum)
        for chunk in split(
            encode_lowered(address, zeros, "float32"), payload_id=b"w" * 16, chunk_bytes=2**18
        ):
            hostile.link.publish(TOPICS.down(RUN, "dev1"), chunk)
        hostile.round = 2
        hostile.lets_the_round_end()
    assert hostile.agent.n_refused_messages == 1
    alone = oracle.device_learner(hostile.job)
    data = training_data(hostile.member)
    for round_, seq in hostile.member.trained:
        oracle.train_alone(alone, "dev1", hostile.job, data, round_=round_, seq=seq)
    assert_same(training_state(hostile.folder), alone.tensors())


def test_a_job_that_would_influence_it_is_refused_by_the_device_itself(tmp_path):
    with HostileCoordinator(tmp_path, 0) as hostile:
        hostile.job = msgspec.structs.replace(hostile.job, sync=SyncSpec(mode="prefix"))
        with pytest.raises(RefusedError, match=r"run\.client_sync = prefix"):
            hostile.turn(6)
    assert hostile.member.trained == []


def test_a_coordinator_that_vanishes_leaves_what_was_learned(tmp_path):
    with HostileCoordinator(tmp_path, 0) as hostile:
        hostile.turn(6)
        hostile.grant(first=1, limit=3)
        hostile.turn(20)
        hostile.bridge("offline")
        hostile.turn(20)
    keys = hostile.member.trained
    assert keys == [(1, seq) for seq in range(1, len(keys) + 1)]
    assert keys[-1] >= (1, 3)
    alone = oracle.device_learner(hostile.job)
    data = training_data(hostile.member)
    for round_, seq in keys:
        oracle.train_alone(alone, "dev1", hostile.job, data, round_=round_, seq=seq)
    assert_same(training_state(hostile.folder), alone.tensors())
