"""The agent's loop: what it says, trains and sends, and what it makes of what it hears."""

import numpy as np
import pytest

from device_agent.sending import USUAL_CONDUCT, Sender
from tests.unit.lone_agent import DATA, JOB, MODEL, NONCE, RUN, TOPICS, World
from toolkit.link.memory import MemoryBroker, MemoryLink
from toolkit.wire.messages import (
    STOPPED,
    Assignment,
    Bye,
    Hello,
    MeasureRequest,
    State,
)
from toolkit.wire.payloads import Batch
from toolkit.wire.session import DevicePhase, DeviceState


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


@pytest.mark.parametrize(("why", "reason"), [("", STOPPED), ("The disk is full.", "The disk is full.")])
def test_its_goodbye_says_why_it_could_not_go_on(world, why, reason):
    world.join()
    world.agent.fail(why)
    world.agent.close()
    (bye,) = [message for message in world.heard() if isinstance(message, Bye)]
    assert bye.reason == reason


def test_what_is_no_message_is_counted_and_changes_nothing(world):
    world.join()
    world.server.publish(TOPICS.down(RUN, "ant"), b"HSEE nonsense")
    world.tell(Bye(device="ant", boot_nonce=NONCE, reason=""))
    world.server.publish(TOPICS.bridge_state, b"{")
    world.poll()
    assert world.agent.n_refused_messages == 3
    assert world.agent.phase is DevicePhase.TRAINING


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
