"""Segments made one between rounds: the run equals an oracle of its own bit for bit, whatever is lost on the way."""

import random

import pytest

from coordinator.fleet.events import Notice, RoundClosed
from coordinator.model import segments
from coordinator.model.aggregate import CrossLayerMean
from device_agent.trainer import Trainer
from tests.numerics import oracle, oracle_beyond
from tests.numerics.fleet import Fleet
from tests.numerics.same import assert_same
from tests.numerics.test_run_equals_oracle import CUTS, members_for, settings_for
from toolkit.errors import RefusedError
from toolkit.link.memory import MemoryBroker
from toolkit.nn.weights import training_state
from toolkit.wire.weights import FlatWeights

MODES = ("same_cut", "prefix")


def fleet_for(folder, *, cuts=CUTS, shape=(1, 8, 8), order=0, hub=None, accepts="coordinator", **changes):
    members = members_for(cuts, shape=shape)
    for member in members:
        member.accepts = accepts
    given = {"client_sync": "prefix", "round_steps": 2, "rounds": 4} | changes
    return Fleet(folder, members, settings_for(**given), order=order, hub=hub)


def run_fleet(folder, **how) -> Fleet:
    with fleet_for(folder, **how) as fleet:
        fleet.start()
        fleet.run_until(lambda: fleet.coordinator.over)
    return fleet


def play_oracle(fleet: Fleet, **how):
    return oracle_beyond.play(
        fleet.jobs(), fleet.data(), fleet.rounds(), fleet.made_one(), strategy=fleet.settings.strategy, **how
    )


def assert_equals_oracle(fleet: Fleet, **how) -> None:
    devices, server = play_oracle(fleet, **how)
    for name in fleet.members:
        assert_same(fleet.device(name), devices[name])
    assert_same(fleet.server(), server)


@pytest.mark.parametrize(("mode", "strategy"), [("same_cut", "sequential"), ("prefix", "averaging")])
def test_a_synchronised_run_equals_the_oracle(mode, strategy, tmp_path):
    fleet = run_fleet(tmp_path, client_sync=mode, strategy=strategy)
    assert fleet.made_one() == dict.fromkeys((1, 2, 3), sorted(CUTS))
    assert_equals_oracle(fleet)


@pytest.mark.parametrize("momentum", ["average", "reset"])
def test_it_does_with_other_rules_for_the_devices_momentum(momentum, tmp_path):
    assert_equals_oracle(run_fleet(tmp_path, sync_momentum=momentum))


def test_it_does_when_weights_travel_as_float16_and_only_now_and_then(tmp_path):
    fleet = run_fleet(tmp_path, sync_codec="float16+zstd", sync_every=2, rounds=5)
    assert sorted(fleet.made_one()) == [2, 4]
    assert_equals_oracle(fleet, carry=lambda weights: weights.half().float())


def test_it_does_when_devices_are_absent(tmp_path):
    """dev3, who alone holds layer2, misses the first average: it keeps its own segment until it has given it."""
    with fleet_for(tmp_path, rounds=5) as fleet:
        fleet.start()
        fleet.run_until(lambda: fleet.trained_in("dev3", 1))
        fleet.stop("dev3")
        fleet.run_until(lambda: fleet.round() == 3)
        fleet.start("dev3")
        fleet.stop("dev2")
        fleet.run_until(lambda: fleet.round() == 4)
        fleet.start("dev2")
        fleet.run_until(lambda: fleet.coordinator.over)
    assert "dev3" not in fleet.made_one()[1]
    assert "dev2" not in fleet.made_one()[3]
    assert_equals_oracle(fleet)


class LossyBroker(MemoryBroker):
    """Loses a fifth of all that a run says."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self.n_lost = {"up": 0, "down": 0}

    def publish(self, topic, payload, *, retain):
        if "/data/" in topic and self._random.random() < 0.2:
            self.n_lost[topic.rpartition("/")[2]] += 1
            return
        super().publish(topic, payload, retain=retain)


@pytest.mark.parametrize("seed", [1, 2])
def test_it_does_when_messages_are_lost(seed, tmp_path):
    hub = LossyBroker(seed)
    fleet = run_fleet(tmp_path, hub=hub, rounds=3)
    assert min(hub.n_lost.values()) > 3
    devices, server = play_oracle(fleet)
    for name in CUTS:
        assert_same(fleet.device(name), devices[name])
    # A batch that was lost is made again from weights that have moved on: theta is not what it would have been.
    made = fleet.server()
    assert_same(
        {n: made[n] for n in server if n.startswith("segments/")},
        {n: server[n] for n in server if n.startswith("segments/")},
    )


@pytest.mark.parametrize("when", ["before it gave", "before it took"])
def test_it_does_when_an_agent_is_killed(when, tmp_path):
    with fleet_for(tmp_path) as fleet:
        fleet.start()
        if when == "before it gave":
            fleet.run_until(lambda: fleet.trained_in("dev1", 2))
        else:
            fleet.run_until(lambda: fleet.round() == 3)
        fleet.kill("dev1")
        for _ in range(20):
            fleet.sweep()
        fleet.start("dev1")
        fleet.run_until(lambda: fleet.coordinator.over)
    assert all(present == sorted(CUTS) for present in fleet.made_one().values())
    assert_equals_oracle(fleet)


def test_it_does_when_the_coordinator_is_taken_up_again(tmp_path):
    """Between the commit of a round and the devices' fetching: the next process hands down what that one committed."""
    with fleet_for(tmp_path) as fleet:
        fleet.start()
        fleet.run_until(lambda: fleet.round() == 3)
        fleet.restart_coordinator()
        fleet.run_until(lambda: fleet.coordinator.over)
    assert fleet.coordinator.term == 2
    assert sorted(fleet.made_one()) == [1, 2, 3]
    assert_equals_oracle(fleet)


@pytest.mark.parametrize("bent", ["too few", "a variance below zero"])
def test_weights_that_are_none_are_refused_and_the_others_averaged(bent, tmp_path, monkeypatch):
    def sent(trainer):
        flat = trainer.layout.flatten(training_state(trainer._model.modules, trainer._model.optimizer))
        if trainer._device != "dev1":
            return flat
        values = flat.values[:-1] if bent == "too few" else -1 - abs(flat.values)
        return FlatWeights(values, flat.counters, flat.momentum)

    monkeypatch.setattr(Trainer, "weights", sent)
    fleet = run_fleet(tmp_path, rounds=3)
    assert fleet.made_one() == {1: ["dev2", "dev3", "dev4"], 2: ["dev2", "dev3", "dev4"]}
    reasons = [e.text for e in fleet.events if isinstance(e, Notice) and "dev1" in e.text]
    assert any(("running variance" if bent != "too few" else "rows") in text for text in reasons)
    devices, _ = play_oracle(fleet)
    for name in CUTS:
        assert_same(fleet.device(name), devices[name])


def test_bytes_are_counted_both_ways(tmp_path):
    fleet = run_fleet(tmp_path, rounds=3, eval_every=2)
    reports = {
        event.report.round: {device.device: device for device in event.report.devices}
        for event in fleet.events
        if isinstance(event, RoundClosed)
    }
    n_bytes = {name: 4 * sum(t.numel() for t in fleet.device(name).values()) for name in CUTS}
    for name in CUTS:
        own = [reports[round_][name] for round_ in (1, 2, 3)]
        assert [report.n_eval > 0 for report in own] == [False, True, True]
        # Of the device's own tensors half are momentum, which stays.
        assert 0.4 * n_bytes[name] < own[0].weights_bytes < 0.6 * n_bytes[name] + 2000
        assert own[2].weights_bytes == own[0].lowered_bytes == 0
        assert own[1].lowered_bytes == pytest.approx(own[0].weights_bytes, abs=200)


def test_a_device_that_does_not_accept_it_is_refused(tmp_path):
    with fleet_for(tmp_path, accepts="never") as fleet:
        fleet.start("dev1")
        fleet.run_until(lambda: fleet.members["dev1"].agent.over)
        agent = fleet.members["dev1"].agent
        with pytest.raises(
            RefusedError, match=r"run\.client_sync = prefix.*device\.accept_weights = never"
        ) as refused:
            agent.result()
        assert "--accept-weights coordinator" in refused.value.hint
        assert any(isinstance(e, Notice) and "client_sync" in e.text for e in fleet.events)


def test_a_device_that_accepts_it_is_influenced_by_nothing_where_nothing_is_made_one(tmp_path):
    fleet = run_fleet(tmp_path, client_sync="none", rounds=2)
    devices, server = oracle.play(fleet.jobs(), fleet.data(), fleet.rounds(), strategy="sequential")
    for name in CUTS:
        assert_same(fleet.device(name), devices[name])
    assert_same(fleet.server(), server)


# The tests of the test: the comparison notices every way to get it wrong.


class Skipping(CrossLayerMean):
    """Forgets segments that hold layer1."""

    def add(self, tensors, weight):
        if "segment.layer1.0.conv1.weight" not in tensors:
            super().add(tensors, weight)


class InFloat32(CrossLayerMean):
    def result(self):
        return {n: (t + 1) - 1 if t.is_floating_point() else t for n, t in super().result().items()}


@pytest.mark.parametrize("mutant", [Skipping, InFloat32])
def test_a_coordinator_that_averages_wrongly_is_caught(mutant, tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "CrossLayerMean", mutant)
    fleet = run_fleet(tmp_path, rounds=3)
    with pytest.raises(AssertionError, match=r"not equal|only one has"):
        assert_equals_oracle(fleet)


ORACLE_MUTANTS = {
    "an absent device is counted": (
        "make_one",
        lambda make_one: lambda devices, jobs, _present, carry: make_one(devices, jobs, list(devices), carry),
    ),
    "a head is averaged over all cuts": (
        "shared_name",
        lambda shared_name: lambda name, job: shared_name(name, job).replace(f"exits.{job.cut}.", "exits."),
    ),
    "what was made one is never taken": ("take", lambda _take: lambda *_args: None),
}


@pytest.fixture(scope="module")
def with_absence(tmp_path_factory):
    with fleet_for(tmp_path_factory.mktemp("absence")) as fleet:
        fleet.start()
        fleet.run_until(lambda: fleet.trained_in("dev2", 1))
        fleet.stop("dev2")
        fleet.run_until(lambda: fleet.round() == 2)
        fleet.start("dev2")
        fleet.run_until(lambda: fleet.coordinator.over)
    assert_equals_oracle(fleet)
    return fleet


@pytest.mark.parametrize(("name", "mutate"), ORACLE_MUTANTS.values(), ids=ORACLE_MUTANTS)
def test_an_oracle_that_shares_otherwise_is_not_equal(name, mutate, with_absence, monkeypatch):
    monkeypatch.setattr(oracle_beyond, name, mutate(getattr(oracle_beyond, name)))
    with pytest.raises((AssertionError, RuntimeError), match=r"not equal|only one has|size"):
        assert_equals_oracle(with_absence)
