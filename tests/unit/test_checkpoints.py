"""The coordinator's commits: whole or not there at all, and the one before is kept."""

import errno
import os
from pathlib import Path

import pytest
import torch

from coordinator.checkpoints import Checkpoints, CommittedState
from toolkit.errors import CheckpointError, MachineError
from toolkit.wire.job import Job, ModelSpec

JOB = Job(
    run="r1",
    model=ModelSpec(name="mlp", input_shape=[4], n_classes=2),
    cut="hidden1",
    classes=["a", "b"],
    mean=[0.0],
    std=[1.0],
    seed=0,
    rounds=9,
    batch_size=4,
)


def state(round_, **changes):
    facts = {
        "round": round_,
        "plan_version": 1,
        "jobs": {"ant": JOB},
        "lists": {"ant": (3, 1)},
        "activation_shapes": {"ant": [128]},
        "ledger_length": 10 * round_,
    }
    return CommittedState(**{**facts, **changes})


def tensors(round_):
    return {"w": torch.full((2, 3), float(round_)), "n": torch.tensor(round_)}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


def test_a_commit_comes_back_bit_for_bit(checkpoints, tmp_path):
    committed = tensors(1) | {"nan": torch.tensor([float("nan"), -0.0, 1e-45])}
    checkpoints.commit(state(1), committed)
    (kept,) = Checkpoints(tmp_path / "checkpoints").kept()
    assert kept.round == 1
    assert kept.state() == state(1)
    assert kept.state().cuts == {"ant": "hidden1"}
    back = kept.tensors()
    assert set(back) == set(committed)
    for name, tensor in committed.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_two_generations_are_kept_oldest_first(checkpoints):
    for round_ in range(12):
        checkpoints.commit(state(round_), tensors(round_))
    assert [kept.round for kept in checkpoints.kept()] == [10, 11]


def test_what_an_interrupted_commit_left_is_removed_and_the_rest_stays(checkpoints, tmp_path):
    checkpoints.commit(state(1), tensors(1))
    unfinished = tmp_path / "checkpoints" / "000002.new"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    assert [kept.round for kept in checkpoints.kept()] == [1]
    again = Checkpoints(tmp_path / "checkpoints")
    assert not unfinished.exists()
    again.commit(state(2), tensors(2))
    assert [kept.round for kept in again.kept()] == [1, 2]


def test_a_commit_that_fails_leaves_the_older_generations_whole(checkpoints, monkeypatch):
    checkpoints.commit(state(1), tensors(1))

    def refuse(_self, _target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        with pytest.raises(MachineError, match="000002 can't be written: No space left"):
            checkpoints.commit(state(2), tensors(2))
    (kept,) = checkpoints.kept()
    assert kept.state() == state(1)
    assert kept.tensors()["n"] == 1


@pytest.mark.parametrize("file", ["checkpoint.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda _: b""])
def test_a_cut_off_file_is_damage(checkpoints, tmp_path, file, damage):
    checkpoints.commit(state(1), tensors(1))
    path = tmp_path / "checkpoints" / "000001" / file
    path.write_bytes(damage(path.read_bytes()))
    (kept,) = checkpoints.kept()
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
        _ = (kept.state(), kept.tensors())


def test_a_newer_schema_is_named(checkpoints):
    checkpoints.commit(state(1, schema=2), tensors(1))
    with pytest.raises(CheckpointError, match="has schema 2; this version reads schema 1"):
        checkpoints.kept()[0].state()
