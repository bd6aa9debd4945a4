"""Strategies are pure: what they are shown, and what they decide."""

import sys
from collections import Counter

import numpy as np
import pytest

from coordinator.strategy.averaging import Averaging
from coordinator.strategy.base import DeviceProgress, PooledBatch, PoolView, RoundView, Strategy
from coordinator.strategy.catalogue import make_strategy
from coordinator.strategy.consolidated import MIN_SUB_BATCH, Consolidated
from coordinator.strategy.sequential import Sequential
from toolkit.errors import StrategyError


def progress(device, *, owed=4, applied=0, ready=0, copy=False, samples=0):
    return DeviceProgress(device, owed, applied, ready, samples, copy)


def view(*devices, round_=1, window=2, free=0):
    return RoundView(round_, 0, devices, window, free)


def test_sequential_waits_for_the_device_whose_turn_it_is():
    fixed = Sequential(order="fixed")
    assert fixed.next_device(view(progress("a"), progress("b", ready=2))) is None
    assert fixed.next_device(view(progress("a", ready=1), progress("b", ready=2))) == "a"
    assert fixed.next_device(view(progress("a", applied=4), progress("b", ready=2))) == "b"


def test_sequential_shuffles_the_order_from_round_to_round():
    devices = [progress(name, ready=1) for name in "abcdef"]
    first = [Sequential().next_device(view(*devices, round_=n)) for n in range(1, 30)]
    assert len(set(first)) > 3
    assert first == [Sequential().next_device(view(*devices, round_=n)) for n in range(1, 30)]


def test_averaging_takes_the_device_that_is_furthest_behind_while_there_is_room():
    strategy = Averaging()
    ahead, behind = progress("a", applied=2, ready=1, copy=True), progress("b", ready=1)
    assert strategy.next_device(view(ahead, behind, free=1)) == "a"  # its copy is here already
    assert strategy.next_device(view(progress("a"), behind, free=1)) == "b"
    assert strategy.next_device(view(progress("a"), progress("b"), free=1)) is None


def test_an_absent_device_does_not_hold_the_only_place():
    strategy = Averaging(resident_copies=1)
    absent = progress("a", applied=1, copy=True)
    assert strategy.next_device(view(absent, progress("b", ready=1))) is None  # b can still send
    assert strategy.next_device(view(absent, progress("b", ready=2))) == "b"  # its window is full
    assert strategy.next_device(view(absent, progress("b", owed=1, ready=1))) == "b"  # all it owes is here


def test_a_finished_copy_makes_room():
    done = progress("a", applied=4, copy=True)
    assert Averaging(resident_copies=1).next_device(view(done, progress("b", ready=1))) == "b"


def test_averaging_weighs_who_trained():
    devices = view(progress("a", applied=4, samples=100), progress("b"), progress("c", applied=1, samples=7))
    assert Averaging().weights(devices) == {"a": 1, "c": 1}
    assert Averaging(weights="samples").weights(devices) == {"a": 100, "c": 7}


def pool(**n_samples):
    batches = []
    for device, sizes in n_samples.items():
        cut, sizes = sizes
        batches += [PooledBatch(device, seq, cut, n) for seq, n in enumerate(sizes, start=1)]
    return PoolView(3, 0, 32, tuple(batches))


def test_consolidated_takes_every_sample_once_and_mixes_devices():
    view_ = pool(a=("stem", [32, 32, 5]), b=("stem", [32, 32]), c=("layer1", [32, 32, 32, 2]))
    steps = Consolidated().mixed_steps(view_)
    taken = Counter(
        (int(b), int(r))
        for step in steps
        for part in step
        for b, r in zip(part.batches, part.rows, strict=True)
    )
    assert set(taken.values()) == {1}
    assert len(taken) == sum(batch.n_samples for batch in view_.batches)
    assert len(steps) == round(len(taken) / 32)
    for step in steps:
        assert len({part.cut for part in step}) == len(step)
        for part in step:
            assert {view_.batches[b].cut for b in part.batches.tolist()} == {part.cut}
    mixed = [len({view_.batches[b].device for b in p.batches.tolist()}) for s in steps for p in s]
    assert max(mixed) == 2


def test_consolidated_gives_a_rare_cut_fewer_steps_not_smaller_parts():
    steps = Consolidated().mixed_steps(pool(a=("stem", [32] * 20), b=("layer1", [20])))
    rare = [len(part.rows) for step in steps for part in step if part.cut == "layer1"]
    assert rare == [10, 10]
    assert min(rare) >= MIN_SUB_BATCH
    assert len(steps) == 21


def test_consolidated_is_a_function_of_seed_and_round():
    def rows(round_):
        view_ = PoolView(round_, 0, 32, (PooledBatch("a", 1, "stem", 64),))
        return np.concatenate([part.rows for step in Consolidated().mixed_steps(view_) for part in step])

    assert np.array_equal(rows(1), rows(1))
    assert not np.array_equal(rows(1), rows(2))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("sequental", {}, "Did you mean 'sequential'?"),
        ("averaging", {"resident_copy": 1}, "Did you mean 'resident_copies'?"),
        ("averaging", {"momentum": "kep"}, "Did you mean 'keep'?"),
        ("averaging", {"resident_copies": -1}, "from 0"),
        ("averaging", {"resident_copies": True}, "whole number"),
        ("consolidated", {"step_batches": 0}, "above 0"),
        ("python:nowhere.to_be:Found", {}, "can't be imported"),
        ("python:collections:Counter", {}, "does not derive"),
        ("python:coordinator.strategy.base:Strategy", {}, "needs a name"),
    ],
)
def test_a_wrong_strategy_is_told(name, options, said):
    with pytest.raises(StrategyError) as caught:
        make_strategy(name, options)
    assert said in str(caught.value)


OWN = '''
from coordinator.strategy.base import Strategy

class Weighed(Strategy):
    """Every device's copy counts by the batches it trained on."""

    name = "weighed"
    mode = "copies"

    def __init__(self, *, factor: int = 1) -> None:
        self._factor = factor

    def weights(self, view):
        return {d.device: self._factor * d.n_applied for d in view.devices if d.n_applied}
'''


def test_a_user_s_own_strategy_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "own_strategy_of_a_user.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    strategy = make_strategy("python:own_strategy_of_a_user:Weighed", {"factor": 2})
    assert isinstance(strategy, Strategy)
    assert strategy.weights(view(progress("a", applied=3), progress("b"))) == {"a": 6}
    assert strategy.next_device(view(progress("a", applied=1, ready=1), progress("b", ready=1))) == "b"
    del sys.modules["own_strategy_of_a_user"]
