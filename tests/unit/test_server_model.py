"""The server's model: copies that may leave the memory, momentum between periods, mixed steps."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from coordinator.model.scratch import ScratchFile
from coordinator.model.server_model import ServerModel
from coordinator.store.checkpoints import Checkpoints
from coordinator.strategy.averaging import Averaging
from coordinator.strategy.base import PooledBatch, SubBatch
from coordinator.strategy.consolidated import Consolidated
from tests.unit.test_checkpoints import state as state_of
from toolkit.errors import CheckpointError, MachineError, TrainingError
from toolkit.nn.cut import take_suffix
from toolkit.nn.weights import bytes_of
from toolkit.nn.zoo import build_network
from toolkit.wire.job import ModelSpec, OptimizerSpec
from toolkit.wire.payloads import Batch

SPEC = ModelSpec(name="mlp", input_shape=[6], n_classes=3, options={"width": 8, "depth": 3})
CUTS = {"a": "hidden1", "b": "hidden2", "c": "hidden1", "d": "hidden2"}


DRIFTING = ModelSpec(name="python:tests.numerics.models:with_drift", input_shape=[6], n_classes=3)
DRIFTING_CUTS = {"a": "first", "b": "second", "c": "first", "d": "second"}


def make_model(tmp_path, strategy, *, momentum=0.9, spec=SPEC, cuts=CUTS):
    return ServerModel(
        spec,
        cuts=cuts,
        optimizer=OptimizerSpec(lr=0.1, momentum=momentum),
        rounds=4,
        seed=1,
        strategy=strategy,
        scratch=tmp_path / "scratch",
    )


def batch(number, n=8):
    rng = np.random.default_rng(number)
    h = rng.normal(size=(n, 8)).astype(np.float32)
    return Batch(
        kind="train", h=h, y=rng.integers(0, 3, n), exit_loss=0.0, exit_correct=0, segment_step=number
    )


def train(model, rounds=2, *, order=("a", "b", "c", "d"), absent=()):
    for round_ in range(1, rounds + 1):
        present = [d for d in order if d not in absent]
        for seq in (1, 2, 3):
            for device in present:
                model.apply(device, batch(hash_of(round_, device, seq)), round_=round_, seq=seq)
        model.aggregate(dict.fromkeys(present, 1))


def hash_of(*parts):
    return sum(ord(str(p)[0]) * 31**i for i, p in enumerate(parts))


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("momentum", ["average", "reset", "keep"])
def test_how_many_copies_are_resident_changes_nothing(momentum, tmp_path):
    states = []
    for n in (1, 3, 4):
        model = make_model(tmp_path / str(n), Averaging(resident_copies=n, momentum=momentum))
        train(model, rounds=3, absent=("c",))
        states.append(copy.deepcopy(model.state()))
    assert_equal(states[0], states[1])
    assert_equal(states[0], states[2])


def test_buffers_outside_the_state_dict_are_each_copys_own(tmp_path):
    """Whoever had a place before, in memory or parked: a copy begins a period with the buffers that theta has."""
    states, seen = [], []
    for n in (1, 3, 4):
        strategy = Averaging(resident_copies=n)
        model = make_model(tmp_path / str(n), strategy, spec=DRIFTING, cuts=DRIFTING_CUTS)
        train(model, rounds=2, absent=("c",))
        states.append(copy.deepcopy(model.state()))
        for device in ("d", "a"):
            model.apply(device, batch(1), round_=3, seq=1)
            drift = model._shelf.take(device).suffix.third[1]
            seen.append((drift.turns.item(), drift.seen.item()))
    assert_equal(states[0], states[1])
    assert_equal(states[0], states[2])
    assert {turns for turns, _ in seen} == {1j}
    assert len(set(seen)) == 2


def test_copies_that_do_not_fit_are_on_disk(tmp_path):
    model = make_model(tmp_path, Averaging(resident_copies=1))
    for device in CUTS:
        model.apply(device, batch(1), round_=1, seq=1)
    assert model.resident == {"d"}
    assert model.n_free_copies == 0
    assert len(list((tmp_path / "scratch").iterdir())) == 3


def test_the_order_of_arrival_changes_nothing(tmp_path):
    states = []
    for order in ("abcd", "dbca"):
        model = make_model(tmp_path, Averaging())
        train(model, order=order)
        states.append(model.state())
    assert_equal(*states)


def test_reset_leaves_no_momentum_and_average_leaves_the_mean(tmp_path):
    reset, average = (make_model(tmp_path, Averaging(momentum=m)) for m in ("reset", "average"))
    for model in (reset, average):
        train(model, rounds=1)
    assert not [name for name in reset.state() if name.startswith("momentum/")]
    weights = {n: t for n, t in average.state().items() if not n.startswith("momentum/")}
    assert_equal(reset.state(), weights)  # the first period begins the same
    assert len(average.state()) > len(weights)


def test_kept_momentum_goes_on_after_a_restart(tmp_path):
    through = make_model(tmp_path / "through", Averaging(momentum="keep"))
    train(through, rounds=1)
    first = make_model(tmp_path / "first", Averaging(momentum="keep"))
    train(first, rounds=1)
    second = make_model(tmp_path / "second", Averaging(momentum="keep"))
    second.load_state(first.state(), first.kept())
    forgetful = make_model(tmp_path / "forgetful", Averaging(momentum="keep"))
    forgetful.load_state(first.state())
    for model in (through, second, forgetful):
        train(model, rounds=1)
    assert_equal(through.state(), second.state())
    assert any(not torch.equal(t, forgetful.state()[n]) for n, t in through.state().items())


@pytest.mark.parametrize("of", [{}, {"spec": DRIFTING, "cuts": DRIFTING_CUTS}], ids=["mlp", "drifting"])
def test_a_commit_within_a_period_keeps_its_open_copies(of, tmp_path):
    """In memory or parked, they go on as if nothing had been."""
    through, first = (
        make_model(tmp_path / name, Averaging(resident_copies=2), **of) for name in ("through", "first")
    )
    for model in (through, first):
        train(model, rounds=1)
        for device in CUTS:
            model.apply(device, batch(1), round_=2, seq=1)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.commit(state_of(1), first.files())
    second = make_model(tmp_path / "second", Averaging(resident_copies=2), **of)
    second.load(checkpoints.kept()[0])
    for model in (through, second):
        for device in CUTS:
            model.apply(device, batch(2), round_=2, seq=2)
        model.aggregate(dict.fromkeys(CUTS, 1))
    assert_equal(through.state(), second.state())


def test_places_for_copies_are_built_once_and_taken_in_turn(tmp_path):
    model = make_model(tmp_path, Averaging(resident_copies=2))
    built, build = [], model._shelf._build
    model._shelf._build = lambda: built.append(build()) or built[-1]
    train(model, rounds=3)
    assert len(built) == 2


def test_tensors_that_wait_on_disk_are_read_one_at_a_time_and_as_they_were(tmp_path):
    tensors = {
        "turned": torch.randn(3, 4).T,
        "count": torch.tensor(7),
        "odd": torch.tensor([-0.0, 1e-45]),
        "empty": torch.zeros(0, 3),
        "flag": torch.tensor([True, False]),
        "half": torch.randn(3).to(torch.bfloat16),
    }
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    file = ScratchFile(tmp_path / "new" / "file", tensors)
    for tensor in tensors.values():
        tensor.zero_()
    assert list(file) == list(tensors)
    assert len(file) == 6
    for name, tensor in file.items():
        assert tensor.dtype == before[name].dtype
        assert bytes(bytes_of(tensor)) == bytes(bytes_of(before[name].contiguous()))
    (tmp_path / "new" / "file").write_bytes((tmp_path / "new" / "file").read_bytes()[:-1])
    assert torch.equal(file["count"], torch.tensor(7))
    with pytest.raises(CheckpointError, match="is cut short"):
        file["half"]


def test_a_disk_that_takes_no_copy_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="copy-a can't be written: Not a directory"):
        ScratchFile(tmp_path / "file" / "scratch" / "copy-a", {"w": torch.zeros(2)})


def test_copies_are_summed_by_device_id_wherever_they_are(tmp_path):
    """A sum of floats depends on its order."""
    model = make_model(tmp_path, Averaging(resident_copies=2))
    for device in "dbca":
        model.apply(device, batch(1), round_=1, seq=1)
    assert model.resident == {"c", "a"}
    assert [device for device, _ in model._shelf.states()] == list("abcd")


def test_a_copy_on_disk_that_is_gone_is_told(tmp_path):
    model = make_model(tmp_path, Averaging())
    shelf = model._shelf
    shelf.put("a", model.state())
    (tmp_path / "scratch/copy-a").unlink()
    with pytest.raises(CheckpointError, match=r"copy-a can't be read"):
        shelf.take("a")


def test_an_absent_device_starts_from_the_mean(tmp_path):
    model = make_model(tmp_path, Averaging(momentum="reset"))
    train(model, rounds=1, absent=("a",))
    theta = copy.deepcopy(model.state())
    held = model._shelf.take("a")
    assert_equal(dict(held.suffix.state_dict()), theta)


def test_a_mixed_step_is_the_sample_weighted_mean(tmp_path):
    model = make_model(tmp_path, Consolidated(), momentum=0.0)
    one, two = batch(1, 6), batch(2, 10)
    model.pool("a", one, seq=1)
    model.pool("b", two, seq=1)
    model.begin_mixing([PooledBatch("a", 1, "hidden1", 6), PooledBatch("b", 1, "hidden2", 10)])
    parts = [
        SubBatch("hidden1", np.zeros(6, np.int64), np.arange(6)),
        SubBatch("hidden2", np.ones(10, np.int64), np.arange(10)[::-1].copy()),
    ]
    network = build_network(SPEC, seed=1)
    losses = []
    for cut, own in (("hidden1", one), ("hidden2", two)):
        suffix = take_suffix(network, cut).train()
        h, y = torch.from_numpy(own.h), torch.from_numpy(own.y)
        if cut == "hidden2":
            h, y = h.flip(0), y.flip(0)
        losses.append(cross_entropy(suffix(h), y))
    total = losses[0] * (6 / 16) + losses[1] * (10 / 16)
    total.backward()
    got = model.apply_mixed(parts, round_=1, step=1)
    assert got == pytest.approx([loss.item() for loss in losses])
    for name, parameter in take_suffix(network, "hidden1").named_parameters():
        expected = parameter - 0.1 * (parameter.grad + 5e-4 * parameter)
        assert torch.allclose(model.state()[name], expected, atol=1e-6), name


def test_a_pool_beyond_its_cap_is_on_disk_and_gives_the_same(tmp_path, monkeypatch):
    states = []
    for cap in (10**9, 300):
        monkeypatch.setattr("coordinator.model.server_model.POOL_CAP_BYTES", cap)
        model = make_model(tmp_path / str(cap), Consolidated())
        batches = [PooledBatch("a", seq, "hidden1", 8) for seq in (1, 2, 3)]
        for own in batches:
            model.pool(own.device, batch(own.seq), seq=own.seq)
        model.begin_mixing(batches)
        part = SubBatch("hidden1", np.array([0, 1, 2, 1, 0, 2]), np.array([0, 3, 7, 2, 1, 5]))
        model.apply_mixed([part], round_=1, step=1)
        states.append(copy.deepcopy(model.state()))
        spilled = list((tmp_path / str(cap)).rglob("*.npy"))
        assert len(spilled) == (0 if cap > 300 else 2)
        model.end_round(1)
        assert not list((tmp_path / str(cap)).rglob("*.npy"))
    assert_equal(*states)


def test_a_loss_that_is_not_finite_names_where(tmp_path):
    model = make_model(tmp_path, Averaging())
    bad = batch(1)
    bad.h[:] = np.float32(3e38)
    with pytest.raises(TrainingError) as caught:
        model.apply("b", bad, round_=2, seq=5)
    assert caught.value.facts == {"device": "b", "round": 2, "step": 5}
