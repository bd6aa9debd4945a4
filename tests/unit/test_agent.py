"""The agent's loop over a memory link, with a coordinator made of single messages and a trainer that only counts."""

import os
import signal

import numpy as np
import pytest

from device_agent.agent import ADVICE, Agent
from device_agent.identity import HeldIdentity, device_id
from device_agent.sending import USUAL_CONDUCT, Sender
from device_agent.signals import StopSignals, TerminatedError
from toolkit.errors import (
    BrokerLoginError,
    BrokerUnreachableError,
    FencedError,
    MachineError,
    RefusedError,
    RunError,
    UsageError,
)
from toolkit.link.base import Disconnected, Received
from toolkit.link.memory import MemoryBroker, MemoryLink
from toolkit.wire import chunks, frames, payloads
from toolkit.wire.job import Job, ModelSpec
from toolkit.wire.messages import (
    Assignment,
    Bye,
    Chunk,
    DataSummary,
    Fenced,
    Hello,
    MeasureRequest,
    Pace,
    Refusal,
    State,
    Welcome,
)
from toolkit.wire.payloads import Batch
from toolkit.wire.session import DevicePhase, DeviceState
from toolkit.wire.topics import Topics
from toolkit.wire.words import BridgeWord, DeviceWord, encode_word

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


@pytest.fixture
def world():
    return World()


def test_a_hello_follows_the_coordinators_word_and_says_what_the_device_holds(world):
    world.agent.start()
    world.poll()
    assert world.heard() == []
    world.tell_bridge("online")
    world.poll()
    (hello,) = world.heard()
    assert isinstance(hello, Hello)
    assert (hello.device, hello.boot_nonce, hello.data, hello.profile) == ("ant", NONCE, DATA, "")


def test_a_device_without_a_profile_measures_itself_when_asked(world):
    world.agent.start()
    world.tell_bridge("online")
    world.poll()
    world.heard()
    request = MeasureRequest(model=MODEL, batch_size=2, exit_head="pooled")
    world.welcome(measure=request)
    world.poll()
    assert world.measured == [request]
    (again,) = world.heard()
    assert again.profile == "profile"


def test_it_sends_what_credit_allows_in_order_and_trains_a_little_ahead(world):
    world.join()
    world.state(1, 2)
    world.poll()
    assert world.seqs() == [1]
    # Two batches ahead of credit, then it waits.
    assert world.trainer.did == [("enter", 1, 0), ("train", 1, 1), ("train", 1, 2), ("train", 1, 3)]
    world.state(2, 5)
    world.poll()
    assert world.seqs() == [2, 3, 4]
    assert world.trainer.did[4:] == [("again", 1, 4)]
    assert "round 1: exit accuracy 50.0% on own held-out samples" in world.said


def test_what_a_rounds_batches_took_is_told_when_they_are_trained(world):
    world.join()
    steps = iter((0.25, 0.5, 0.75))
    train_next = world.trainer.train_next

    def train_slowly():
        world.now += next(steps)
        return train_next()

    world.trainer.train_next = train_slowly
    world.state(1, 2)
    world.poll()
    world.state(2, 5)
    world.poll()
    world.heard()
    (pace,) = world.paces
    assert (pace.device, pace.round, pace.n_steps, pace.step_ms) == ("ant", 1, 3, 500.0)
    assert pace.n_sent == 1
    assert pace.sent_bytes > 2 * 128 * 4


def test_every_batch_names_the_orders_it_was_made_under(world):
    world.join()
    world.state(1, 2)
    world.poll()
    (payload,) = world.heard()
    assert (payload.device, payload.round, payload.seq, payload.kind) == ("ant", 1, 1, "train")
    assert (payload.term, payload.incarnation, payload.plan_version, payload.cut) == (1, 1, 1, "hidden1")


def test_a_batch_that_stays_owed_is_made_again_and_not_trained_again(world):
    world.join()
    world.state(1, 3)
    world.poll()
    assert world.seqs() == [1, 2]
    world.now = 6.0
    world.state(1, 3)
    world.poll()
    assert world.seqs() == [1, 2]
    assert [what for what in world.trainer.did if what[0] == "train"] == [("train", 1, n) for n in (1, 2, 3)]
    assert ("again", 1, 1) in world.trainer.did


def test_a_returning_coordinator_is_served_from_where_it_stands(world):
    world.join()
    world.state(1, 4)
    world.poll()
    world.heard()
    world.tell_bridge("offline")
    world.poll()
    assert world.agent.phase is DevicePhase.SEEKING
    assert "the coordinator is offline; waiting for it" in world.said
    world.tell_bridge("online", term=2)
    world.poll()
    (hello,) = world.heard()
    assert (hello.trained_round, hello.trained_seq) == (1, 3)
    world.welcome(term=2)
    world.tell(Assignment(term=2, plan_version=1, job=JOB))
    world.state(2, 5, term=2)
    world.poll()
    assert world.seqs() == [2, 3, 4]
    assert [what for what in world.trainer.did if what[0] == "train"] == [("train", 1, n) for n in (1, 2, 3)]


def test_a_lost_broker_is_told_once_and_the_device_says_hello_again(world):
    world.join()
    world.hub.stop()
    world.poll()
    assert world.agent.phase is DevicePhase.OFFLINE
    world.hub.start()
    world.server.poll(0)
    world.server.poll(0)
    world.server.subscribe(TOPICS.all_up(RUN))
    world.tell_bridge("online")
    world.poll()
    assert [type(message) for message in world.heard()] == [Hello]
    assert sum(line.startswith("lost the broker") for line in world.said) == 1


def test_a_device_sends_nothing_that_its_list_does_not_have(world):
    """A coordinator that does not know yet of a device's other data asks for the list of the old."""
    world.join()
    world.state(1, 9)
    world.poll(30)
    assert world.seqs() == [1, 2, 3, 4]
    assert world.agent.phase is DevicePhase.TRAINING


def test_a_device_that_hears_no_coordinator_trains_extra_steps_and_owes_them_to_nobody(world):
    world.join()
    world.state(1, 2)
    world.poll()
    world.heard()
    world.hub.stop()
    world.now = 29.0
    world.poll()
    assert ("extra", 1, 3) not in world.trainer.did
    world.now = 36.0  # its link changed 7 s ago
    world.poll(3)
    assert world.trainer.did.count(("extra", 1, 3)) == 3
    assert sum("training on alone" in line for line in world.said) == 1
    world.hub.start()
    world.server.poll(0)
    world.server.poll(0)
    world.server.subscribe(TOPICS.all_up(RUN))
    world.tell_bridge("online")
    world.poll()
    world.welcome()
    world.tell(Assignment(term=1, plan_version=1, job=JOB))
    world.state(2, 4)
    world.poll()
    assert [message.seq for message in world.heard() if not isinstance(message, Hello)] == [2, 3]
    assert [what for what in world.trainer.did if what[0] == "train"] == [("train", 1, n) for n in (1, 2, 3)]


def test_what_is_no_message_is_counted_and_changes_nothing(world):
    world.join()
    world.server.publish(TOPICS.down(RUN, "ant"), b"HSEE nonsense")
    world.tell(Bye(device="ant", boot_nonce=NONCE, reason=""))
    world.server.publish(TOPICS.bridge_state, b"{")
    world.poll()
    assert world.agent.n_refused_messages == 3
    assert world.agent.phase is DevicePhase.TRAINING


def test_the_end_of_the_run_is_a_good_end(world):
    world.join()
    world.state(1, 1, phase="finished", detail="All 3 rounds are done.")
    world.poll()
    assert world.agent.over
    assert world.agent.result() == "All 3 rounds are done."


@pytest.mark.parametrize("code", [*ADVICE, "unheard-of"])
def test_a_refusal_ends_the_process_with_its_reason_and_advice(world, code):
    world.join()
    world.tell(Refusal(boot_nonce=NONCE, code=code, message="Because."))
    world.poll()
    with pytest.raises(RefusedError, match=r"The coordinator refused 'ant': Because\.") as caught:
        world.agent.result()
    assert caught.value.hint == ADVICE.get(code, "")
    assert caught.value.facts["reason"] == code


def test_a_failed_run_is_told_with_its_reason(world):
    world.join()
    world.state(1, 1, phase="failed", detail="The disk is full.")
    world.poll()
    with pytest.raises(RunError, match=r"The run failed at the coordinator: The disk is full\."):
        world.agent.result()


def test_a_revoked_account_is_told_once_with_what_to_do(world):
    world.join()
    world.hub.stop()
    world.poll()
    for _ in range(3):  # each try is refused
        world.agent._link.cut_off(
            BrokerLoginError("The broker refused the login.", hint="Ask for a new account.")
        )
        world.poll()
    told = [line for line in world.said if "lets this device in no more" in line]
    assert told == [
        "the broker lets this device in no more: The broker refused the login. Ask for a new account. Trying again."
    ]


def test_leaving_saves_and_says_goodbye(world):
    world.join()
    world.agent.close()
    assert world.trainer.did[-1] == ("save", 0, 0)
    assert [type(message) for message in world.heard()] == [Bye]
    late = MemoryLink(world.hub, "late")
    late.start()
    late.poll(0)
    late.subscribe(TOPICS.device_state("ant"))
    assert late.poll(0) == [
        Received(TOPICS.device_state("ant"), encode_word(DeviceWord("offline", NONCE.hex())))
    ]


def test_a_fenced_process_speaks_for_the_device_no_more(world):
    world.join()
    world.tell(Fenced(boot_nonce=NONCE, incarnation=2))
    world.poll()
    with pytest.raises(FencedError, match="Another process took over the device id 'ant'") as caught:
        world.agent.result()
    assert "--id" in caught.value.hint
    before = list(world.trainer.did)
    world.agent.close()
    assert world.heard() == []
    assert world.trainer.did == before


def test_a_state_that_can_not_be_saved_does_not_keep_the_process_from_leaving(world):
    def refuse():
        raise MachineError("The disk is full.")

    world.join()
    world.trainer.save = refuse
    with pytest.raises(MachineError):
        world.agent.close()
    assert [type(message) for message in world.heard()] == [Bye]


def test_a_disk_that_refused_something_is_not_tried_again(world):
    def refuse():
        raise MachineError("Input/output error.")

    world.join()
    world.trainer.finish_round = world.trainer.train_next = refuse
    world.state(1, 4)
    with pytest.raises(MachineError):
        world.poll()
    before = list(world.trainer.did)
    world.agent.close()
    assert world.trainer.did == before


def test_no_broker_is_told_at_once_and_given_up_in_time(world):
    world.hub.stop()
    world.agent.start()
    world.poll()
    assert world.said == ["The memory broker is not running. Trying again for 20 s."]
    world.now = 21.0
    world.agent._link._events.append(
        Disconnected(BrokerUnreachableError("The memory broker is not running."))
    )
    with pytest.raises(BrokerUnreachableError):
        world.poll()


def test_an_identity_is_one_process_in_its_home(tmp_path):
    held = HeldIdentity(tmp_path, fleet="home", device="ant")
    with pytest.raises(RunError, match=f"An agent of device 'ant' runs already in {tmp_path}") as caught:
        HeldIdentity(tmp_path, fleet="home", device="ant")
    assert "another --id" in caught.value.hint
    for other in ({"fleet": "yard", "device": "ant"}, {"fleet": "home", "device": "bee"}):
        HeldIdentity(tmp_path, **other).close()
    held.close()
    HeldIdentity(tmp_path, fleet="home", device="ant").close()


def test_a_device_id_is_one_level_of_a_topic(monkeypatch):
    assert device_id("hall-camera") == "hall-camera"
    with pytest.raises(UsageError, match=r"The device id 'a/b'"):
        device_id("a/b")
    monkeypatch.setattr("socket.gethostname", lambda: "the board")
    with pytest.raises(
        UsageError, match=r"The host's name 'the board'.*can't serve as a device id"
    ) as caught:
        device_id("")
    assert caught.value.hint == "Name one with --id."


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TerminatedError)]
)
def test_a_stop_signal_waits_for_the_end_of_a_step(number, error):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        os.kill(os.getpid(), number)
        step_ended = True
        assert signals.wanted
        with pytest.raises(error):
            signals.obey()
        with pytest.raises(error):
            os.kill(os.getpid(), number)  # a second one insists
    assert step_ended
    assert signal.getsignal(number) is before


def test_a_measurement_is_broken_off_at_once():
    did = []

    def measure(signals):
        with signals.at_once():
            did.append("begun")
            os.kill(os.getpid(), signal.SIGTERM)
            did.append("went on")

    with StopSignals() as signals:
        for _ in range(2):  # a process that is to stop begins none
            with pytest.raises(TerminatedError):
                measure(signals)
    assert did == ["begun"]


@pytest.mark.parametrize(("limit", "most"), [(122_880, 122_880), (393_216, 262_144 + 1024)])
def test_chunks_are_cut_to_what_the_broker_takes(limit, most):
    hub = MemoryBroker()
    seen = MemoryLink(hub, "seen")
    seen.start()
    seen.poll(0)
    seen.subscribe(TOPICS.all_up(RUN))
    link = MemoryLink(hub, "ant", max_packet_bytes=limit)
    link.start()
    link.poll(0)
    batch = Batch("train", np.zeros((2, 128, 1024), np.float32), np.zeros(2, np.int64), 0.5, 1, 1)
    flow = State(
        term=1,
        incarnation=1,
        n=1,
        phase="training",
        round=1,
        next=1,
        limit=2,
        watermark_round=0,
        watermark_seq=0,
        plan_version=1,
    )
    state = DeviceState(NONCE, run=RUN, term=1, incarnation=1, plan_version=1, flow=flow)
    n_bytes = Sender(link, TOPICS, "ant", USUAL_CONDUCT).send_batch(state, JOB, 1, batch)
    sizes = [len(event.payload) for event in seen.poll(0)]
    assert sum(sizes) > n_bytes > 2**20
    assert most * 0.7 < max(sizes) <= most
