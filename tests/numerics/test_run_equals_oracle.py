"""The run equals the oracle bit for bit: every weight, buffer and momentum of every device and of the server."""

import pytest
import torch

from coordinator.model import server_model
from coordinator.model.aggregate import CrossLayerMean
from tests.numerics import oracle
from tests.numerics.fleet import Fleet, Member, local_data, patterns
from tests.numerics.same import assert_same, digest
from toolkit.config import Run

SHAPE = (1, 8, 8)
STRATEGIES = ("sequential", "averaging")
CUTS = {"dev1": "layer1", "dev2": "stem", "dev3": "layer2", "dev4": "stem"}


def settings_for(**changes) -> Run:
    given = {
        "model": "resnet_small",
        "model_options": {"width": 4},
        "rounds": 3,
        "devices": len(CUTS),
        "batch_size": 8,
        "exit_head": "pooled",
        "classes": ["a", "b", "c"],
        "eval_samples": 16,
        "lr": 0.1,
    }
    return Run(**(given | changes))


def members_for(cuts=CUTS, *, shape=SHAPE):
    # Parts of unequal size: lists of unequal length, last batches that are partial.
    return [
        Member(name, cut, local_data(*patterns(30 + 9 * n, shape, seed=n), classes="abc"))
        for n, (name, cut) in enumerate(cuts.items())
    ]


def assert_equals_oracle(fleet: Fleet, *, strategy: str, **how) -> None:
    devices, server = oracle.play(fleet.jobs(), fleet.data(), fleet.rounds(), strategy=strategy, **how)
    for name in fleet.members:
        assert_same(fleet.device(name), devices[name])
    assert_same(fleet.server(), server)


def run_fleet(folder, *, cuts=CUTS, shape=SHAPE, order=0, **changes) -> Fleet:
    members = members_for(cuts, shape=shape)
    with Fleet(folder, members, settings_for(**changes), order=order) as fleet:
        fleet.start()
        fleet.run_until(lambda: fleet.coordinator.over)
    return fleet


def run_with_absence(folder, **changes) -> Fleet:
    """A round without dev2 and dev4, which have the shallowest cut: nobody trains layer1 in it."""
    with Fleet(folder, members_for(), settings_for(**changes)) as fleet:
        fleet.start()
        fleet.run_until(lambda: fleet.round() == 2)
        fleet.stop("dev2")
        fleet.stop("dev4")
        fleet.run_until(lambda: fleet.round() == 3)
        fleet.start("dev2", "dev4")
        fleet.run_until(lambda: fleet.coordinator.over)
    return fleet


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_equals_the_oracle(strategy, tmp_path):
    fleet = run_fleet(tmp_path, strategy=strategy)
    assert {name: member.job.cut for name, member in fleet.members.items()} == CUTS
    assert [sorted(round_.trained) for round_ in fleet.rounds()] == [sorted(CUTS)] * 3
    assert all(len(r.applied) == sum(map(len, r.trained.values())) for r in fleet.rounds())
    assert_equals_oracle(fleet, strategy=strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_does_with_dropout_other_shapes_and_rounds_of_few_steps(strategy, tmp_path):
    fleet = run_fleet(
        tmp_path,
        strategy=strategy,
        cuts={"dev1": "first", "dev2": "second"},
        shape=(3, 12),
        model="python:tests.numerics.models:with_dropout",
        model_options={},
        devices=2,
        round_steps=5,
        rounds=4,
    )
    assert {len(seqs) for round_ in fleet.rounds() for seqs in round_.trained.values()} == {5}
    assert_equals_oracle(fleet, strategy=strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_does_when_activations_travel_as_int8(strategy, tmp_path):
    def as_int8(h):
        channel = h.abs().amax(dim=(0, 2, 3), keepdim=True)
        scale = torch.where(channel > 0, channel / 127, torch.ones_like(channel))
        return torch.round(h / scale).to(torch.int8).to(torch.float32) * scale

    fleet = run_fleet(tmp_path, strategy=strategy, codec="int8", rounds=2)
    assert_equals_oracle(fleet, strategy=strategy, transport=as_int8)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_does_when_devices_are_absent_for_a_round(strategy, tmp_path):
    fleet = run_with_absence(tmp_path, strategy=strategy)
    assert [sorted(round_.trained) for round_ in fleet.rounds()] == [
        ["dev1", "dev2", "dev3", "dev4"],
        ["dev1", "dev3"],
        ["dev1", "dev2", "dev3", "dev4"],
    ]
    assert_equals_oracle(fleet, strategy=strategy)


def test_it_does_whatever_the_order_of_arrival(tmp_path):
    servers = set()
    for order in (1, 2):
        fleet = run_fleet(tmp_path / str(order), strategy="averaging", order=order, rounds=2)
        assert_equals_oracle(fleet, strategy="averaging")
        servers.add(digest(fleet.server()))
    assert len(servers) == 1


@pytest.mark.parametrize("resident_copies", [1, 3, 4])
def test_the_number_of_copies_in_memory_changes_nothing(resident_copies, tmp_path):
    options = {"resident_copies": resident_copies}
    fleet = run_fleet(tmp_path, strategy="averaging", strategy_options=options, rounds=2)
    assert_equals_oracle(fleet, strategy="averaging")


@pytest.mark.parametrize("momentum", ["reset", "keep"])
def test_it_does_with_other_rules_for_momentum(momentum, tmp_path):
    fleet = run_with_absence(tmp_path, strategy="averaging", strategy_options={"momentum": momentum})
    _, server = oracle.play(
        fleet.jobs(), fleet.data(), fleet.rounds(), strategy="averaging", momentum=momentum
    )
    # Momentum that is kept is a device's own and no part of theta; what it did to the weights is.
    expected = {name: t for name, t in server.items() if momentum == "reset" or "momentum/" not in name}
    assert_same(fleet.server(), expected)


def test_it_does_with_weights_by_samples(tmp_path):
    fleet = run_fleet(tmp_path, strategy="averaging", strategy_options={"weights": "samples"}, rounds=2)
    n_train = {name: len(member.data.train) for name, member in fleet.members.items()}
    whole = {name: n - (n % 8 == 1) for name, n in n_train.items()}  # a last batch of one does not count
    assert all(round_.weights == whole for round_ in fleet.rounds())
    assert_equals_oracle(fleet, strategy="averaging")


def test_sequential_takes_device_after_device_and_batch_after_batch(tmp_path):
    fleet = run_fleet(tmp_path, strategy="sequential")
    orders = []
    for round_ in fleet.rounds():
        turns = list(dict.fromkeys(device for device, _ in round_.applied))
        orders.append(tuple(turns))
        expected = [(device, seq) for device in turns for seq in range(1, fleet.n_train(device) + 1)]
        assert round_.applied == expected
    assert len(set(orders)) > 1  # shuffled from round to round


def test_devices_learn_the_same_under_every_strategy_and_alone(tmp_path):
    fleets = [run_fleet(tmp_path / name, strategy=name) for name in STRATEGIES]
    jobs, data = fleets[0].jobs(), fleets[0].data()
    for name in CUTS:
        alone = oracle.device_learner(jobs[name])
        for round_ in (1, 2, 3):
            for seq in range(1, fleets[0].n_train(name) + 1):
                oracle.train_alone(alone, name, jobs[name], data[name], round_=round_, seq=seq)
        for fleet in fleets:
            assert_same(fleet.device(name), alone.tensors())


# The tests of the test: the comparison notices every way to get the mean wrong.


@pytest.fixture(scope="module")
def with_absence(tmp_path_factory):
    fleet = run_with_absence(tmp_path_factory.mktemp("absence"), strategy="averaging")
    assert_equals_oracle(fleet, strategy="averaging")
    return fleet


def average_with(change):
    """The oracle's mean over other copies or weights than it should be."""
    average = oracle.average
    return lambda copies, weights, momentum: average(*change(copies, weights), momentum)


ORACLE_MUTANTS = {
    "a present copy is skipped": (
        "average",
        average_with(lambda copies, weights: (copies, {d: w for d, w in weights.items() if d != "dev1"})),
    ),
    "an absent copy is counted": (
        "average",
        average_with(lambda copies, _weights: (copies, dict.fromkeys(copies, 1))),
    ),
    "an absent device goes on from where it was": (
        "average",
        average_with(lambda copies, weights: ({d: copies[d] for d in weights}, weights)),
    ),
    "a weight is wrong": (
        "average",
        average_with(lambda copies, weights: (copies, weights | {"dev1": 2})),
    ),
    "max for mean": ("mean_of", lambda values, _weights: torch.stack(values).max(0).values),
    "the sum runs in float32": (
        "mean_of",
        lambda values, weights: (
            sum(v * w for v, w in zip(values, weights, strict=True)).div(sum(weights)).to(values[0].dtype)
        ),
    ),
}


@pytest.mark.parametrize(("name", "mutant"), ORACLE_MUTANTS.values(), ids=ORACLE_MUTANTS)
def test_an_oracle_that_averages_otherwise_is_not_equal(name, mutant, with_absence, monkeypatch):
    monkeypatch.setattr(oracle, name, mutant)
    with pytest.raises(AssertionError, match=r"layer2\.0\.conv1\.weight"):
        assert_equals_oracle(with_absence, strategy="averaging")


def test_an_oracle_with_other_momentum_is_not_equal(with_absence):
    with pytest.raises(AssertionError, match="momentum"):
        assert_equals_oracle(with_absence, strategy="averaging", momentum="reset")


class Skipping(CrossLayerMean):
    """Forgets the copies that begin behind layer1."""

    def add(self, tensors, weight, **how):
        if "layer1.0.conv1.weight" in tensors:
            super().add(tensors, weight, **how)


class Heavier(CrossLayerMean):
    """Gives the copies that begin at layer1 a weight too much."""

    def add(self, tensors, weight, **how):
        super().add(tensors, weight + ("layer1.0.conv1.weight" in tensors), **how)


class Greatest(CrossLayerMean):
    """Takes the maximum for the mean."""

    def result(self):
        return {name: self.greatest[name] for name in super().result()}

    def add(self, tensors, weight, **how):
        super().add(tensors, weight, **how)
        held = getattr(self, "greatest", {})
        now = {name: torch.maximum(held.get(name, t), t).clone() for name, t in tensors.items()}
        self.greatest = held | now


@pytest.mark.parametrize("mutant", [Skipping, Heavier, Greatest])
def test_a_server_that_averages_wrongly_is_caught(mutant, tmp_path, monkeypatch):
    monkeypatch.setattr(server_model, "CrossLayerMean", mutant)
    fleet = run_fleet(tmp_path, strategy="averaging", rounds=2)
    with pytest.raises(AssertionError, match=r"layer2\.0\.conv1\.weight"):
        assert_equals_oracle(fleet, strategy="averaging")
