"""Tensors on disk: what was saved comes back bit for bit, and what is damaged is refused."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn

from tests.numerics.models import Drift
from tests.numerics.same import assert_same
from toolkit.disk import write_atomically
from toolkit.errors import CheckpointError, MachineError
from toolkit.nn.sgd import Sgd
from toolkit.nn.weights import (
    content_of,
    load_tensors,
    load_training_state,
    save_tensors,
    training_state,
)


def trained(seed, layers=(), *, steps=2):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), *(make() for make in layers), nn.Linear(4, 2))
    optimizer = Sgd(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    return module, optimizer


def test_every_kind_of_tensor_comes_back(tmp_path):
    tensors = {
        "a/b.c": torch.randn(2, 3),
        "count": torch.tensor(7),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "turned": torch.randn(3, 4).T,
        "empty": torch.zeros(0, 3),
    }
    save_tensors(tmp_path / "t.safetensors", tensors)
    back = load_tensors(tmp_path / "t.safetensors")
    assert torch.equal(back["odd"].view(torch.int32), tensors["odd"].view(torch.int32))
    del back["odd"], tensors["odd"]
    assert_same(back, tensors)


@pytest.mark.parametrize("layers", [(), (Drift,)], ids=["plain", "with buffers outside the state_dict"])
def test_training_goes_on_as_if_nothing_had_been(layers, tmp_path):
    module, optimizer = trained(0, layers)
    save_tensors(tmp_path / "t", training_state(module, optimizer))
    other, its_optimizer = trained(1, layers, steps=1)
    load_training_state(other, its_optimizer, load_tensors(tmp_path / "t"))
    assert_same(training_state(other, its_optimizer), training_state(module, optimizer))
    x = torch.randn(5, 3)
    for net, sgd in ((module, optimizer), (other, its_optimizer)):
        sgd.zero_grad()
        net(x).square().sum().backward()
        sgd.step()
    assert_same(training_state(other, its_optimizer), training_state(module, optimizer))


def test_a_parameter_without_saved_momentum_starts_anew():
    module, optimizer = trained(0)
    fresh, its_optimizer = trained(1, steps=0)
    load_training_state(module, optimizer, training_state(fresh, its_optimizer))
    assert_same(training_state(module, optimizer), fresh.state_dict())


def test_what_is_loaded_is_a_copy():
    module, optimizer = trained(0)
    state = {name: t.clone() for name, t in training_state(module, optimizer).items()}
    other, its_optimizer = trained(1)
    load_training_state(other, its_optimizer, state)
    before = {name: t.clone() for name, t in state.items()}
    other(torch.randn(5, 3)).sum().backward()
    its_optimizer.step()
    assert_same(state, before)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (nn.Sequential(nn.Linear(3, 4)), "7 tensors are in only one of the two, 1.bias among them"),
        (
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2), nn.Linear(2, 2)),
            "2 tensors are in only one of the two, 3.bias among them",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)),
            r"2\.weight has shape \[2, 4\] .* \[5, 4\]",
        ),
    ],
)
def test_weights_of_another_network_are_refused(other, said):
    module, optimizer = trained(0)
    its_optimizer = Sgd(other.parameters(), lr=1, momentum=0, weight_decay=0)
    with pytest.raises(CheckpointError, match=f"of another network: .*{said}"):
        load_training_state(other, its_optimizer, training_state(module, optimizer))


def test_layers_of_more_than_the_module_are_passed_over_where_that_is_meant():
    module, optimizer = trained(0)
    part, its_optimizer = trained(1)
    part = nn.Sequential(*list(part)[:2])
    state = training_state(module, optimizer)
    load_training_state(part, its_optimizer, state, of_more=True)
    assert_same(part.state_dict(), {n: t for n, t in module.state_dict().items() if not n.startswith("2.")})


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda content: content[:7],
        lambda content: content[:-1],
        lambda content: b"\xff" * 8 + content[8:],
        lambda _: (9 * 2**20).to_bytes(8, "little") + b" " * 9 * 2**20,
        lambda content: content[:8] + b"[" + content[9:],
        lambda _: b"\x80\x04K\x01." * 10,
    ],
    ids=["empty", "short", "cut off", "endless header", "long header", "no header", "a pickle"],
)
def test_a_damaged_file_is_refused_with_its_path(damage, tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.randn(4, 4)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=str(path)):
        load_tensors(path)


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    with pytest.raises(CheckpointError, match=r"missing\.safetensors can't be read"):
        load_tensors(tmp_path / "missing.safetensors")


def test_what_can_not_be_written_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t"
    write_atomically(path, b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(MachineError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_file_is_what_the_library_would_write_and_reads():
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.randn(2, 2, 2).half(),
        "n": torch.tensor(7),
        "none": torch.empty(0, 4),
        "turned": torch.randn(4, 3).t(),
        "yes": torch.tensor([True, False, True]),
        "z": torch.randn(7).bfloat16(),
    }
    content = content_of(tensors)
    read = safetensors.torch.load(content)
    assert read.keys() == tensors.keys()
    assert all(read[name].dtype == t.dtype and torch.equal(read[name], t) for name, t in tensors.items())
    plain = {name: tensor.contiguous() for name, tensor in tensors.items() if name not in ("a", "z")}
    n_header = int.from_bytes(content_of(plain)[:8], "little")
    named = json.loads(content_of(plain)[8 : 8 + n_header])["__metadata__"]
    assert content_of(plain) == safetensors.torch.save(plain, metadata=named)


def test_a_tensor_of_a_type_that_no_file_can_hold_is_told():
    with pytest.raises(CheckpointError, match=r"w is torch\.complex128, which no checkpoint can hold"):
        content_of({"w": torch.zeros(2, dtype=torch.complex128)})
