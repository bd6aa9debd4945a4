"""The coordinator with real agents over a memory broker: who joins, who comes and goes, what is told and kept."""

import json
import math
from collections import deque
from dataclasses import replace
from itertools import count

import msgspec
import pytest

from coordinator.attendance import OFFLINE_GRACE_S
from coordinator.beside.service import Service
from coordinator.fleet.events import Ended, Notice, PlanMade, RoundClosed, Waiting
from coordinator.store.ledger import Applied, Opened, Void, read_ledger
from device_agent.trainer import Trainer
from tests.integration.small_fleet import SETTINGS, is_over, member, of_kind, ready, resumed
from tests.numerics.fleet import RUN, TOPICS, Fleet
from toolkit.errors import ConfigError, PartialError, RefusedError, RemoteProtocolError
from toolkit.link.base import Received
from toolkit.link.memory import MemoryLink


def test_a_run_from_waiting_to_its_end(make_fleet):
    fleet = make_fleet()
    fleet.start()
    fleet.run_until(is_over(fleet))
    waited = [event.ready for event in of_kind(fleet, Waiting)]
    assert waited[0] == ()
    assert waited[-1] == ("ant", "bee")
    (plan,) = of_kind(fleet, PlanMade)
    assert plan.plan.cuts == {"ant": "hidden1", "bee": "hidden2"}
    assert [event.report.round for event in of_kind(fleet, RoundClosed)] == [1, 2, 3]
    assert fleet.events[-1] == Ended("finished", "All 3 rounds are done.")
    assert [m.agent.result() for m in fleet.members.values()] == ["All 3 rounds are done."] * 2
    record = json.loads((fleet.path / "run/run.json").read_text())
    assert (record["status"], record["rounds_closed"], record["term"]) == ("finished", 3, 1)


def test_nothing_is_told_after_the_end(make_fleet):
    fleet = make_fleet()
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 3)
    # Something that makes a notice waits at every poll of the coordinator, at its last one too.
    while not fleet.coordinator.over:
        fleet.hub.publish(TOPICS.up(RUN, "ant"), b"garbage", retain=False)
        fleet.sweep()
    assert isinstance(fleet.events[-1], Ended)


class Echo(Service):
    """Answers each message on a topic of its own, one a turn."""

    filters = ("echo/+/ask",)

    def __init__(self):
        self.waiting = deque()
        self.log = []

    def begin(self, underway):
        self.log.append(f"began with {sorted(underway.state.jobs)} before round {underway.loop.round + 1}")

    def take(self, topic, payload):
        if payload == b"bad":
            raise RemoteProtocolError("Not with me.")
        self.waiting.append((topic.replace("ask", "answer"), payload))

    def tick(self, publish):
        if self.waiting:
            publish(*self.waiting.popleft())
        return bool(self.waiting)

    def close(self):
        self.log.append("closed")


def test_a_service_rides_beside_training(tmp_path):
    echo = Echo()
    members = (member("ant"), member("bee", cut="hidden2"))
    with Fleet(tmp_path, members, SETTINGS, services=(echo,)) as fleet:
        asker = MemoryLink(fleet.hub, "asker")
        asker.start()
        asker.subscribe("echo/+/answer")
        fleet.start()
        fleet.run_until(lambda: fleet.round() == 2)
        for payload in (b"1", b"bad", b"2"):
            asker.publish("echo/x/ask", payload)
        fleet.run_until(is_over(fleet))
        answers = [event.payload for event in asker.poll(0.0) if isinstance(event, Received)]
    assert answers == [b"1", b"2"]
    assert any("Not with me." in event.text for event in of_kind(fleet, Notice))
    assert echo.log == ["began with ['ant', 'bee'] before round 1", "closed"]


def test_devices_with_different_classes_train_one_network_right(make_fleet):
    fleet = make_fleet(
        member("ant", ("class2", "class10"), n=120), member("bee", ("class1", "class2"), n=120), rounds=16
    )
    fleet.start()
    fleet.run_until(is_over(fleet))
    (plan,) = of_kind(fleet, PlanMade)
    assert plan.plan.classes == ("class1", "class2", "class10")
    for report in of_kind(fleet, RoundClosed)[-1].report.devices:
        # A wrong number for one of their classes would cost at least the half of it.
        assert report.server_accuracy > 0.9
        assert report.exit_accuracy > 0.9


def test_the_job_carries_the_runs_settings(make_fleet):
    fleet = make_fleet(schedule="constant", lr=0.125, momentum=0.5, weight_decay=0.25, codec="int8")
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 1 and all(m.job for m in fleet.members.values()))
    for job in fleet.jobs().values():
        optimizer = job.optimizer
        assert (optimizer.schedule, optimizer.lr) == ("constant", 0.125)
        assert (optimizer.momentum, optimizer.weight_decay, job.codec) == (0.5, 0.25, "int8")


def test_too_few_devices_end_the_wait_with_names_and_a_fix(make_fleet):
    fleet = make_fleet()
    fleet.start("ant")
    fleet.run_until(lambda: ready(fleet) == ("ant",))
    fleet.clock.now += SETTINGS.wait_s
    with pytest.raises(PartialError, match=r"Only 1 of 2 devices joined within 60 s: ant\.") as caught:
        fleet.run_until(is_over(fleet))
    assert caught.value.exit_status == 5
    assert caught.value.hint == "Start the missing agents, or lower --devices."
    assert not fleet.members["ant"].agent.over  # it waits for the next coordinator


def test_time_without_a_broker_is_no_time_to_join(make_fleet):
    fleet = make_fleet()
    fleet.start("ant")
    fleet.run_until(lambda: ready(fleet) == ("ant",))
    fleet.hub.stop()
    fleet.run_until(lambda: not fleet.coordinator.is_connected)
    fleet.clock.now += 2 * SETTINGS.wait_s
    fleet.sweep()
    fleet.hub.start()
    fleet.start("bee")
    fleet.run_until(is_over(fleet))
    assert fleet.coordinator.status == "finished"


@pytest.mark.parametrize(
    ("odd", "changes", "code", "text"),
    [
        (member("odd", shape=(1, 5, 5)), {}, "shape", r"shape \[1, 5, 5\]; the run's have \[1, 4, 4\]"),
        (member("odd", ("a", "x")), {"classes": ["a", "b", "c"]}, "classes", "does not have: x"),
    ],
)
def test_a_device_that_does_not_fit_is_refused_and_the_others_go_on(make_fleet, odd, changes, code, text):
    fleet = make_fleet(member("ant"), member("bee"), odd, **changes)
    fleet.start("ant")
    fleet.run_until(lambda: ready(fleet) == ("ant",))
    fleet.start("odd")
    fleet.run_until(lambda: odd.agent.over)
    with pytest.raises(RefusedError, match=text) as caught:
        odd.agent.result()
    assert caught.value.facts["reason"] == code
    assert caught.value.hint
    fleet.start("bee")
    fleet.run_until(is_over(fleet))
    assert fleet.coordinator.status == "finished"
    assert any("Refused device odd" in notice.text for notice in of_kind(fleet, Notice))


def test_a_model_that_does_not_fit_the_data_is_told_to_the_first_device(make_fleet):
    fleet = make_fleet(member("ant", shape=(16,)), model="resnet_small", model_options={})
    fleet.start()
    ant = fleet.members["ant"]
    fleet.run_until(lambda: ant.agent.over)
    with pytest.raises(RefusedError, match="'resnet_small' takes pictures") as caught:
        ant.agent.result()
    assert "--model" in caught.value.hint


def test_the_shape_of_a_device_that_left_binds_nobody(make_fleet):
    wrong = member("wrong", shape=(1, 5, 5))
    fleet = make_fleet(wrong, member("ant"), member("bee"))
    fleet.start("wrong")
    fleet.run_until(lambda: ready(fleet) == ("wrong",))
    fleet.stop("wrong")
    fleet.run_until(lambda: ready(fleet) == ())
    fleet.start("ant", "bee")
    fleet.run_until(is_over(fleet))
    assert fleet.coordinator.status == "finished"


def test_a_late_device_is_refused(make_fleet):
    fleet = make_fleet(member("ant"), member("bee"), member("late"))
    fleet.start("ant", "bee")
    fleet.run_until(lambda: fleet.round() == 2)
    fleet.start("late")
    fleet.run_until(lambda: fleet.members["late"].agent.over)
    with pytest.raises(RefusedError, match="began without this device") as caught:
        fleet.members["late"].agent.result()
    assert caught.value.hint == "Start this device before the run, or start a new run."
    fleet.run_until(is_over(fleet))
    assert fleet.coordinator.status == "finished"


def test_a_device_that_returns_with_other_data_takes_part_from_the_next_round_on(make_fleet):
    fleet = make_fleet(rounds=20)
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 2)
    fleet.stop("ant")
    fleet.members["ant"].data = member("ant", n=64).data
    fleet.start("ant")
    fleet.run_until(is_over(fleet))
    entries = read_ledger(fleet.path / "run/ledger.jsonl")
    (void,) = {e.round: e for e in entries if isinstance(e, Void) and e.reason == "data_changed"}.values()
    owed = {e.round: e.owed["ant"] for e in entries if isinstance(e, Opened)}
    assert owed[void.round] == owed[1] != owed[void.round + 1]
    trained = [
        e for e in entries if isinstance(e, Applied) and e.device == "ant" and e.round == void.round + 1
    ]
    assert len(trained) == sum(owed[void.round + 1])


def test_a_device_that_leaves_on_purpose_is_not_waited_for_and_may_come_back(make_fleet):
    fleet = make_fleet(rounds=40)
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 2)
    fleet.stop("ant")
    fleet.run_until(lambda: fleet.round() == 5)
    assert fleet.clock.now < OFFLINE_GRACE_S
    fleet.start("ant")
    fleet.run_until(is_over(fleet))
    voids = {
        entry.reason for entry in read_ledger(fleet.path / "run/ledger.jsonl") if isinstance(entry, Void)
    }
    assert voids == {"left"}
    last = of_kind(fleet, RoundClosed)[-1].report
    assert all(device.n_void == 0 for device in last.devices)


def test_a_device_that_is_cut_off_is_waited_for_a_while(make_fleet):
    fleet = make_fleet(rounds=40)
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 2)
    ant = fleet.members["ant"]
    ant.agent._link.will = (TOPICS.device_state("ant"), ant.agent._word("offline"))
    fleet.hub.drop(ant.agent._link)
    agent, ant.agent = ant.agent, None  # its process hangs
    fleet.run_until(lambda: any("offline" in notice.text for notice in of_kind(fleet, Notice)))
    here = fleet.round()
    for _ in range(20):
        fleet.sweep()
    assert fleet.round() == here
    fleet.clock.now += OFFLINE_GRACE_S
    fleet.run_until(lambda: fleet.round() == here + 1)
    ant.agent = agent
    fleet.run_until(is_over(fleet))
    assert fleet.coordinator.status == "finished"


def test_the_deadline_closes_a_round_and_a_silent_device_goes_on_in_the_next(make_fleet):
    fleet = make_fleet(rounds=6, round_deadline_s=10.0)
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 2)
    bee = fleet.members["bee"]
    agent, bee.agent = bee.agent, None
    here = fleet.round()
    fleet.run_until(lambda: fleet.round() == here + 1)
    assert of_kind(fleet, RoundClosed)[-1].report.reason == "deadline"
    bee.agent = agent
    fleet.run_until(is_over(fleet))
    assert of_kind(fleet, RoundClosed)[-1].report.reason == "complete"


def test_when_everybody_is_gone_the_run_ends_and_says_how_to_go_on(make_fleet):
    fleet = make_fleet(rounds=40)
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 2)
    fleet.stop("ant")
    fleet.stop("bee")
    with pytest.raises(PartialError, match="Every device is gone at the end of round") as caught:
        fleet.run_until(lambda: fleet.coordinator.over)
    assert "hsee run resume" in caught.value.hint
    assert json.loads((fleet.path / "run/run.json").read_text())["status"] == "failed"


def test_a_batch_that_counts_for_exits_that_its_job_has_not_is_refused(make_fleet, monkeypatch):
    fleet = make_fleet(rounds=2)
    make, n_more = Trainer._to_batch, count(1)

    def boast(trainer, kind, forward, y, **how):
        batch = make(trainer, kind, forward, y, **how)
        boasts = kind == "eval" and trainer._device == "ant"
        return replace(batch, shallow_correct=(0,) * next(n_more)) if boasts else batch

    monkeypatch.setattr(Trainer, "_to_batch", boast)
    fleet.start()
    fleet.run_until(is_over(fleet))
    assert fleet.coordinator.status == "finished"
    for event in of_kind(fleet, RoundClosed):
        ant, bee = event.report.devices
        assert ant.n_refused >= 1
        assert ant.exit_accuracy is None
        assert bee.n_refused == 0
        assert bee.exit_accuracy is not None


def test_a_long_reason_still_reaches_the_devices(make_fleet):
    fleet = make_fleet()
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 1)
    fleet.coordinator.end("failed", "x" * 5000)
    fleet.run_until(is_over(fleet))
    assert fleet.members["ant"].agent._stop.detail == "x" * 1024


def test_a_round_with_too_few_devices_fails_with_its_count(make_fleet):
    fleet = make_fleet(rounds=40, quorum=2, min_share=1.0)
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 2)
    fleet.stop("bee")
    with pytest.raises(PartialError, match="has 1 of the 2 devices that it needs") as caught:
        fleet.run_until(lambda: fleet.coordinator.over)
    assert "run.quorum" in caught.value.hint
    fleet.run_until(lambda: fleet.members["ant"].agent.over)


def test_memory_for_no_batch_is_refused_in_words_before_anything_is_trained(make_fleet):
    fleet = make_fleet(waiting_bytes=100)
    fleet.start()
    with pytest.raises(
        ConfigError, match=r"run\.waiting_bytes = 100 has no room for a batch of .*, which takes \d+ bytes"
    ) as caught:
        fleet.run_until(is_over(fleet))
    assert f"--set run.waiting_bytes={2 * caught.value.facts['n_bytes']} or more" in caught.value.hint
    assert fleet.coordinator.status == "failed"
    assert not fleet.coordinator._folder.checkpoints.kept()


def test_memory_for_one_batch_is_enough(make_fleet):
    fleet = make_fleet(rounds=2)
    fleet.start()
    fleet.run_until(lambda: of_kind(fleet, PlanMade))
    plan = of_kind(fleet, PlanMade)[0].plan
    one = max(
        job.batch_size * (4 * math.prod(plan.activation_shapes[device]) + 8)
        for device, job in plan.jobs.items()
    )
    fleet.coordinator.end("stopped", "by hand")
    fleet.settings = msgspec.structs.replace(fleet.settings, waiting_bytes=one)
    resumed(fleet)
    fleet.run_until(is_over(fleet))
    assert fleet.coordinator.status == "finished"
