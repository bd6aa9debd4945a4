"""An agent over a memory link, a coordinator made of single messages, and a trainer that only counts."""

import numpy as np

from device_agent.agent import Agent
from toolkit.link.base import Received
from toolkit.link.memory import MemoryBroker, MemoryLink
from toolkit.wire import chunks, frames, payloads
from toolkit.wire.job import Job, ModelSpec
from toolkit.wire.messages import (
    Assignment,
    Chunk,
    DataSummary,
    Pace,
    State,
    Welcome,
)
from toolkit.wire.payloads import Batch
from toolkit.wire.topics import Topics
from toolkit.wire.words import BridgeWord, encode_word

TOPICS = Topics("test")
RUN = "r1"
NONCE = bytes(range(16))
MODEL = ModelSpec(name="mlp", input_shape=[4], n_classes=2)
JOB = Job(
    run=RUN,
    model=MODEL,
    cut="hidden1",
    classes=["a", "b"],
    mean=[0.0] * 4,
    std=[1.0] * 4,
    seed=0,
    rounds=3,
    batch_size=2,
)
DATA = DataSummary(
    classes=["a", "b"],
    input_shape=[4],
    n_train=6,
    n_eval=2,
    mean=[0.0] * 4,
    var=[1.0] * 4,
    fingerprint="f" * 32,
)


class Counter:
    """A trainer of three training batches and one held-out batch a round."""

    n_train = 3
    n_batches = 4
    lowered_round = n_steps = 0

    def __init__(self):
        self.round = self.seq = 0
        self.did = []
        self.finished = set()

    def enter_round(self, round_, seq):
        if round_ != self.round:
            self.round, self.seq = round_, seq
            self.did.append(("enter", round_, seq))

    def train_next(self):
        self.seq += 1
        self.did.append(("train", self.round, self.seq))
        return self._batch(self.seq)

    def train_extra(self):
        self.did.append(("extra", self.round, self.seq))

    def make_again(self, seq):
        self.did.append(("again", self.round, seq))
        return self._batch(seq)

    def finish_round(self):
        if not self.round or self.round in self.finished:
            return None
        self.finished.add(self.round)
        return 0.5

    def save(self):
        self.did.append(("save", self.round, self.seq))

    def _batch(self, seq):
        kind = "train" if seq <= self.n_train else "eval"
        return Batch(kind, np.zeros((2, 128), np.float32), np.zeros(2, np.int64), 0.5, 1, seq)


class World:
    """An agent, the broker between, and the coordinator's end of the wire."""

    def __init__(self):
        self.now = 0.0
        self.hub = MemoryBroker()
        self.said = []
        self.trainer = Counter()
        self.measured = []
        self.n_states = 0
        self.agent = Agent(
            MemoryLink(self.hub, "ant"),
            topics=TOPICS,
            device="ant",
            boot_nonce=NONCE,
            data=DATA,
            profile="",
            make_trainer=lambda _job: self.trainer,
            measure=self._measure,
            clock=lambda: self.now,
            say=self.said.append,
        )
        self.server = MemoryLink(self.hub, "coordinator")
        self.server.start()
        self.server.poll(0)
        self.server.subscribe(TOPICS.all_up(RUN), TOPICS.all_device_states)
        self.chunks = chunks.Assembler()
        self.paces = []

    def _measure(self, request):
        self.measured.append(request)
        return "profile"

    def poll(self, times=10):
        for _ in range(times):
            self.agent.poll(0)

    def heard(self):
        """Messages that came up, payloads put together; what batches took is kept apart."""
        got = []
        for event in self.server.poll(0):
            if not isinstance(event, Received) or event.topic != TOPICS.up(RUN, "ant"):
                continue
            message, body = frames.decode(event.payload)
            if isinstance(message, Chunk):
                whole = self.chunks.add(message, body)
                message = payloads.decode(whole, device="ant")[0] if whole else None
            (self.paces if isinstance(message, Pace) else got).append(message)
        return [message for message in got if message is not None]

    def seqs(self):
        return [message.seq for message in self.heard()]

    def tell(self, message):
        self.server.publish(TOPICS.down(RUN, "ant"), frames.encode(message))

    def tell_bridge(self, state, run=RUN, term=1):
        self.server.publish(TOPICS.bridge_state, encode_word(BridgeWord(state, run, term)), retain=True)

    def welcome(self, *, term=1, measure=None):
        self.tell(Welcome(boot_nonce=NONCE, run=RUN, term=term, incarnation=1, protocol=1, measure=measure))

    def state(self, next_, limit, *, round_=1, term=1, phase="training", detail=""):
        self.n_states += 1
        self.tell(
            State(
                term=term,
                incarnation=1,
                n=self.n_states,
                phase=phase,
                round=round_,
                next=next_,
                limit=limit,
                watermark_round=0,
                watermark_seq=0,
                plan_version=1,
                detail=detail,
            )
        )

    def join(self):
        """Bring the agent to where it trains."""
        self.agent.start()
        self.tell_bridge("online")
        self.poll()
        self.welcome()
        self.tell(Assignment(term=1, plan_version=1, job=JOB))
        self.poll()
        self.heard()
