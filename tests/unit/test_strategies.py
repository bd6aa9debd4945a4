"""Strategies are pure: what they are shown, and what they decide."""

import sys
from collections import Counter

import numpy as np
import pytest
from msgspec.structs import replace

from coordinator.rounds.device_round import Delivery
from coordinator.rounds.loop import RoundLoop
from coordinator.rounds.windows import Windows
from coordinator.store.ledger import Applied, Void
from coordinator.strategy.asked import Asked
from coordinator.strategy.averaging import Averaging
from coordinator.strategy.base import (
    DeviceProgress,
    PooledBatch,
    PoolView,
    RoundView,
    Strategy,
    SubBatch,
)
from coordinator.strategy.catalogue import make_strategy
from coordinator.strategy.consolidated import MIN_SUB_BATCH, Consolidated
from coordinator.strategy.sequential import Sequential
from tests.unit.test_checkpoints import JOB
from toolkit.errors import StrategyError
from toolkit.wire.payloads import Batch


def progress(device, *, owed=4, applied=0, ready=0, copy=False, samples=0):
    return DeviceProgress(device, owed, applied, ready, samples, copy, window=2)


def view(*devices, round_=1, free=0):
    return RoundView(round_, 0, devices, free)


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
    for device, (cut, sizes) in n_samples.items():
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


class CountingTrainer:
    """What the loop asks of a model, written down."""

    def __init__(self):
        self.resident, self.n_free_copies, self.done = (), 1, []
        self.kept = {}

    def apply(self, device, _batch, *, round_, seq):
        self.done.append((round_, device, seq))
        return 1.0

    def pool(self, device, _batch, *, seq):
        self.done.append(("pooled", device, seq))

    def begin_mixing(self, batches):
        self.done.append(("mixing", [(b.device, b.seq) for b in batches]))

    def apply_mixed(self, parts, *, round_, step):
        self.done.append(("mixed", round_, step))
        return [2.0] * len(parts)

    def aggregate(self, weights):
        self.done.append(("aggregated", weights))

    def end_round(self, _round):
        self.done.append("ended")
        self.kept.clear()

    def hold_out(self, device, batch, *, seq):
        self.kept.setdefault(device, []).append((seq, batch))

    def held_out(self, device):
        return (batch for _, batch in self.kept.get(device, []))

    def n_correct(self, _device, batch):
        return {"server": len(batch.y)}


def make_loop(strategy, lists):
    trainer, entries = CountingTrainer(), []
    loop = RoundLoop(
        strategy,
        trainer,
        record=entries.append,
        jobs=dict.fromkeys(lists, replace(JOB, cut="stem", batch_size=8)),
        lists=lists,
        windows=Windows(dict.fromkeys(lists, (1, 1)), budget_bytes=4 * len(lists)),
    )
    loop.open(0.0)
    return loop, trainer, entries


def deliver(loop, device, seq):
    h, y = np.zeros((8, 1), np.float32), np.zeros(8, np.int64)
    batch = Batch(kind="train", h=h, y=y, exit_loss=1.0, exit_correct=1, segment_step=seq)
    loop.deliver(device, seq, Delivery(batch, "digest", 100))


def train_all(loop):
    n = 0
    while loop.train_one() is not None:
        n += 1
        assert n < 100
    return n


def test_a_pooled_round_trains_only_once_it_is_complete():
    loop, trainer, _ = make_loop(Consolidated(), {"a": (2, 0), "b": (1, 0)})
    deliver(loop, "b", 1)
    deliver(loop, "a", 1)
    assert train_all(loop) == 2
    assert not loop.complete
    deliver(loop, "a", 2)
    assert train_all(loop) == 1 + 3  # the last goes into the pool, and three steps follow
    assert loop.complete
    report = loop.close(1.0, "complete")
    assert trainer.done[3:5] == [("mixing", [("a", 1), ("a", 2), ("b", 1)]), ("mixed", 1, 1)]
    assert trainer.done[-1] == "ended"
    assert [d.server_loss for d in report.devices] == [2.0, 2.0]


@pytest.mark.parametrize("strategy", [Sequential(order="fixed"), Averaging(), Consolidated()])
def test_at_the_deadline_what_is_here_is_trained_on_and_the_rest_is_void(strategy):
    loop, trainer, entries = make_loop(strategy, {"a": (3, 0), "b": (2, 0)})
    deliver(loop, "a", 1)
    deliver(loop, "b", 1)
    deliver(loop, "b", 2)
    train_all(loop)
    loop.stop_waiting("deadline")
    train_all(loop)
    assert loop.complete
    assert not loop.wants("a", round_=1, seq=2)
    loop.welcome_back("a")  # too late: it is expected again in the next round
    assert loop.complete
    loop.close(9.0, "deadline")
    assert [(e.device, e.seq) for e in entries if isinstance(e, Applied)] == [("a", 1), ("b", 1), ("b", 2)]
    assert [(e.device, e.first, e.last, e.reason) for e in entries if isinstance(e, Void)] == [
        ("a", 2, 3, "deadline")
    ]
    if strategy.mode == "copies":
        assert ("aggregated", {"a": 1, "b": 1}) in trainer.done


class Greedy(Averaging):
    """Weighs a device that never came."""

    def weights(self, view):
        return {d.device: 1 for d in view.devices}


def test_a_strategy_that_weighs_an_absent_device_is_told():
    loop, _, _ = make_loop(Greedy(), {"a": (1, 0), "b": (1, 0)})
    deliver(loop, "a", 1)
    train_all(loop)
    loop.excuse("b", "offline")
    with pytest.raises(StrategyError, match="weighs 'b'"):
        loop.close(1.0, "complete")


POOL = PoolView(1, 0, 8, (PooledBatch("a", 1, "stem", 8), PooledBatch("b", 1, "layer1", 4)))
READY = view(progress("a", ready=1), progress("b", applied=2))


def part(cut="stem", batches=(0,), rows=(0,)):
    return SubBatch(cut, np.array(batches), np.array(rows))


def answering(**answers):
    """A strategy whose decisions are these, or that raises them."""

    class Answering(Strategy):
        name = "answering"

    def decision(answer):
        def decide(_self, _view):
            if isinstance(answer, Exception):
                raise answer
            return answer

        return decide

    for name, answer in answers.items():
        setattr(Answering, name, decision(answer))
    return Asked(Answering())


@pytest.mark.parametrize(
    ("decision", "answer", "told"),
    [
        ("next_device", "nobody", "chose 'nobody', which has no batch here"),
        ("next_device", "b", "chose 'b', which has no batch here"),
        ("next_device", ["a"], r"chose \['a'\]"),
        ("next_device", KeyError("cap"), "failed in next_device, round 1: KeyError: 'cap'"),
        ("turn", "c", "waits for 'c', which is no device of the round"),
        ("weights", None, "weighs with a NoneType"),
        ("weights", {"a": 1}, "weighs 'a' with 1 in round 1"),
        ("weights", {"b": 0}, "weighs 'b' with 0"),
        ("weights", {"b": 0.5}, "weighs 'b' with 0.5"),
        ("mixed_steps", None, "composed no steps of sub-batches"),
        ("mixed_steps", [["stem"]], "composed no steps of sub-batches"),
        ("mixed_steps", [[part(batches=(2,))]], "names samples that the pool does not have there"),
        ("mixed_steps", [[part(batches=(-1,))]], "names samples that the pool does not have there"),
        ("mixed_steps", [[part(batches=(1,))]], "names samples that the pool does not have there"),
        ("mixed_steps", [[part(rows=(8,))]], "step 1 of round 1: a sub-batch at cut 'stem' names samples"),
        ("mixed_steps", [[part(rows=(0, 1))]], "names 1 batches and 2 rows"),
        ("mixed_steps", [[part(batches=(), rows=())]], "names 0 batches"),
        (
            "mixed_steps",
            [[part()], [part(), part(rows=(1,))]],
            "step 2 of round 1: a cut has two sub-batches",
        ),
    ],
)
def test_a_strategy_that_fails_or_makes_no_sense_is_told(decision, answer, told):
    asked = answering(**{decision: answer})
    with pytest.raises(StrategyError, match=told):
        getattr(asked, decision)(POOL if decision == "mixed_steps" else READY)


def test_what_a_strategy_may_answer_is_carried_out():
    assert answering(next_device="a").next_device(READY) == "a"
    assert answering(next_device=None).next_device(READY) is None
    assert answering(turn="b").turn(READY) == "b"
    assert answering(weights={"b": 3}).weights(READY) == {"b": 3}
    step = [part(), part("layer1", (1, 1), (0, 3))]
    assert answering(mixed_steps=[step, []]).mixed_steps(POOL) == [step]


OWN_STRATEGIES = """
from coordinator.strategy.base import Strategy

class Sized(Strategy):
    name = "sized"
    def __init__(self, *, size: int, of: int = 4):
        self.share = of // size
"""


@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        (OWN_STRATEGIES, {}, "needs the option 'size'"),
        (OWN_STRATEGIES, {"size": 0}, "can't be made: ZeroDivisionError"),
        (OWN_STRATEGIES, {"size": 1, "off": 2}, "has no option 'off'"),
        ("class Sized(:", {}, "can't be imported: SyntaxError"),
        ("1 / 0", {}, "can't be imported: ZeroDivisionError"),
    ],
)
def test_an_own_strategy_that_cant_be_made_is_told(tmp_path, monkeypatch, text, options, told):
    name = f"own_{abs(hash(told))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StrategyError, match=told):
        make_strategy(f"python:{name}:Sized", options)
