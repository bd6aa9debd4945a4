"""The coordinator's commits: whole or not there at all, and the one before is kept."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from coordinator.store.checkpoints import (
    MODEL_FILE,
    Checkpoints,
    CommittedState,
    OpenDevice,
    OpenRound,
    newest_generation,
)
from toolkit.errors import CheckpointError, MachineError
from toolkit.nn.weights import content_of
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


def files(round_, **more):
    tensors = {"w": torch.full((2, 3), float(round_)), "n": torch.tensor(round_), **more}
    return [(MODEL_FILE, content_of(tensors)), ("of-ant.safetensors", content_of({"m": torch.ones(round_)}))]


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


def test_a_commit_comes_back_bit_for_bit(checkpoints, tmp_path):
    odd = torch.tensor([float("nan"), -0.0, 1e-45])
    checkpoints.commit(state(1), files(1, odd=odd))
    (kept,) = Checkpoints(tmp_path / "checkpoints").kept()
    kept.check()
    assert (kept.number, kept.round) == (0, 1)
    assert kept.state() == state(1)
    assert kept.state().cuts == {"ant": "hidden1"}
    assert kept.names() == [MODEL_FILE, "of-ant.safetensors"]
    back = kept.tensors()
    assert set(back) == {"w", "n", "odd"}
    assert back["odd"].numpy().tobytes() == odd.numpy().tobytes()
    assert kept.read("of-ant.safetensors") == dict(files(1))["of-ant.safetensors"]


def test_the_digests_are_those_that_the_usual_tool_reads(checkpoints):
    checkpoints.commit(state(1), files(1))
    told = subprocess.run(
        ["sha256sum", "--check", "SHA256SUMS"],
        cwd=checkpoints.kept()[0].path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines() == [f"{name}: OK" for name in (*dict(files(1)), "checkpoint.json")]


def test_two_generations_are_kept_oldest_first(checkpoints):
    for round_ in range(12):
        checkpoints.commit(state(round_), files(round_))
    assert [kept.round for kept in checkpoints.kept()] == [10, 11]
    assert newest_generation(checkpoints.kept()[0].path.parent).round == 11


def test_a_round_may_be_committed_twice(checkpoints):
    """While it was open, and again after an interrupted end of a run."""
    for _ in range(3):
        checkpoints.commit(state(1), files(1))
    assert [(kept.number, kept.round) for kept in checkpoints.kept()] == [(1, 1), (2, 1)]


def test_generations_that_a_power_cut_brought_back_do_not_count(checkpoints, tmp_path):
    for round_ in (1, 2):
        checkpoints.commit(state(round_), files(round_))
    shutil.copytree(checkpoints.kept()[0].path, tmp_path / "old")
    checkpoints.commit(state(3), files(3))
    (tmp_path / "old").rename(tmp_path / "checkpoints" / "000000-round-1")
    assert [kept.round for kept in Checkpoints(tmp_path / "checkpoints").kept()] == [2, 3]


def test_what_an_interrupted_commit_left_is_removed_and_the_rest_stays(checkpoints, tmp_path):
    checkpoints.commit(state(1), files(1))
    unfinished = tmp_path / "checkpoints" / "000001-round-2.new"
    unfinished.mkdir()
    (unfinished / MODEL_FILE).write_bytes(b"half")
    assert [kept.round for kept in checkpoints.kept()] == [1]
    again = Checkpoints(tmp_path / "checkpoints")
    assert not unfinished.exists()
    again.commit(state(2), files(2))
    assert [kept.round for kept in again.kept()] == [1, 2]


def test_a_commit_that_fails_leaves_the_older_generations_whole(checkpoints, monkeypatch):
    checkpoints.commit(state(1), files(1))

    def refuse(_self, _target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refuse)
        with pytest.raises(MachineError, match="000001-round-2 can't be written: No space left"):
            checkpoints.commit(state(2), files(2))
    (kept,) = checkpoints.kept()
    kept.check()
    assert kept.state() == state(1)


@pytest.mark.parametrize("file", ["checkpoint.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda _: b""])
def test_a_cut_off_file_is_damage(checkpoints, file, damage):
    checkpoints.commit(state(1), files(1))
    (kept,) = checkpoints.kept()
    path = kept.path / file
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
        _ = (kept.state(), kept.tensors())
    with pytest.raises(CheckpointError, match=f"{file} is damaged"):
        kept.check()


def test_a_newer_schema_is_named(checkpoints):
    checkpoints.commit(state(1, schema=2), files(1))
    with pytest.raises(CheckpointError, match="has schema 2; this version reads schema 1"):
        checkpoints.kept()[0].state()


def test_the_watermark_of_an_open_round_is_behind_its_cursor():
    opened = OpenRound(
        round=3,
        spent_s=0.0,
        devices={"ant": OpenDevice(owed=(3, 1, 0), next=3), "bee": OpenDevice(owed=(2, 2, 0), next=1)},
    )
    committed = state(2, open=opened, n_owed={"ant": 4, "bee": 4})
    assert committed.watermark("ant") == (3, 2)
    assert committed.watermark("bee") == (2, 4)
    assert state(0).watermark("ant") == (0, 0)
