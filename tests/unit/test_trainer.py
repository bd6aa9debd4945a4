"""The device's training: stopped and taken up again it is the same, bit for bit; a batch made again changes nothing."""

from collections import Counter

import numpy as np
import pytest
import torch

from device_agent.local_data import LocalData
from device_agent.state import DeviceFolder
from device_agent.trainer import EXTRA_ROUND, Trainer
from toolkit.errors import CheckpointError, MachineError, RunError, TrainingError
from toolkit.nn.datasets import fingerprint, make_dataset
from toolkit.nn.partition import split_held_out
from toolkit.nn.segment_record import read_record
from toolkit.nn.weights import load_tensors
from toolkit.wire.job import Job, ModelSpec, OptimizerSpec

CLASSES = ["ant", "bee", "cat"]
SHAPE = (1, 4, 4)


def job(**changes):
    facts = {
        "run": "r1",
        "model": ModelSpec(name="resnet_small", input_shape=list(SHAPE), n_classes=3, options={"width": 4}),
        "cut": "layer1",
        "classes": CLASSES,
        "mean": [0.5],
        "std": [2.0],
        "seed": 3,
        "rounds": 4,
        "batch_size": 4,
        "eval_samples": 5,
    }
    return Job(**{**facts, **changes})


def local(names=("ant", "bee"), *, n=30):
    generator = np.random.default_rng(5)
    labels = np.array([names[i % len(names)] for i in range(n)])
    x = generator.normal(size=(n, *SHAPE)) + (labels == names[0])[:, None, None, None]
    dataset = make_dataset(x, labels, name="made")
    train, held = split_held_out(dataset, 0.25, 0)
    return LocalData(train, held, fingerprint(dataset))


@pytest.fixture
def make_trainer(tmp_path):
    opened = []

    def make(place="a", data=None, **changes):
        folder = DeviceFolder(tmp_path / place)
        try:
            trainer = Trainer(
                job(**changes), device="dev", data=data or local(), folder=folder, compute="cpu"
            )
        except CheckpointError:
            folder.close()
            raise
        opened.append(folder)
        return trainer

    def stop(trainer):
        trainer.save()
        opened.pop().close()

    make.stop = stop
    yield make
    for folder in opened:
        folder.close()


def saved(tmp_path, place):
    return {
        name: tensor.numpy().tobytes()
        for name, tensor in load_tensors(tmp_path / place / "training.safetensors").items()
    }


def content(batch):
    return batch.h.tobytes(), batch.y.tobytes(), batch.exit_loss, batch.exit_correct, batch.segment_step


def train_rounds(trainer, rounds, *, on_step=lambda: None):
    batches = []
    for round_ in rounds:
        trainer.enter_round(round_, 0)
        while trainer.seq < trainer.n_train:
            batches.append(content(trainer.train_next()))
            on_step()
        trainer.finish_round()
    return batches


def test_the_list_of_a_round_is_what_the_recipe_says(make_trainer):
    trainer = make_trainer()
    # 15 a class, 4 held out of each: 22 to train on are 5 batches of 4 and one of 2.
    assert (trainer.n_train, trainer.n_eval, trainer.n_batches) == (6, 2, 8)
    trainer.enter_round(1, 0)
    sizes = [len(trainer.train_next().y) for _ in range(6)]
    assert sizes == [4, 4, 4, 4, 4, 2]
    # At most 5 held-out samples are sent, though 8 are kept.
    assert [len(trainer.make_again(seq).y) for seq in (7, 8)] == [4, 1]


@pytest.mark.parametrize("stop_after", [1, 5, 6, 7, 12])
def test_training_taken_up_again_is_as_if_it_had_never_stopped(make_trainer, tmp_path, stop_after):
    whole = train_rounds(make_trainer("whole"), (1, 2, 3))
    trainer = make_trainer("parts")
    batches = []
    for round_ in (1, 2, 3):
        trainer.enter_round(round_, 0)
        while trainer.seq < trainer.n_train:
            batches.append(content(trainer.train_next()))
            if len(batches) == stop_after:
                make_trainer.stop(trainer)
                torch.rand(3)  # somebody else's draw must not matter
                trainer = make_trainer("parts")
                assert (trainer.round, trainer.n_steps) == (round_, stop_after)
        trainer.finish_round()
    assert batches == whole
    assert saved(tmp_path, "parts") == saved(tmp_path, "whole")


def test_made_again_is_the_same_batch_and_changes_nothing(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.enter_round(1, 0)
    first = [trainer.train_next() for _ in range(3)]
    trainer.save()
    before = saved(tmp_path, "a")
    generator = torch.get_rng_state()
    for seq in (1, 2, 3, 7, 8):
        again = trainer.make_again(seq)
        assert again.h.shape[1:] == first[0].h.shape[1:]
        if seq <= 3:
            assert again.remade
            assert again.kind == "train"
            np.testing.assert_array_equal(again.y, first[seq - 1].y)
        else:
            assert again.kind == "eval"
            assert not again.remade
    assert torch.equal(torch.get_rng_state(), generator)
    assert (trainer.seq, trainer.n_steps) == (3, 3)
    trainer.save()
    assert saved(tmp_path, "a") == before


def test_making_batches_again_in_between_does_not_show_in_what_is_trained(make_trainer, tmp_path):
    train_rounds(make_trainer("plain"), (1, 2))
    again = make_trainer("again")

    def disturb():
        again.make_again(max(1, again.seq - 1))
        again.make_again(again.n_train + 1)

    train_rounds(again, (1, 2), on_step=disturb)
    assert saved(tmp_path, "again") == saved(tmp_path, "plain")


def test_a_boards_labels_become_the_runs(make_trainer):
    data = local(("cat", "ant"))
    trainer = make_trainer(data=data)
    trainer.enter_round(1, 0)
    labels = np.concatenate([trainer.train_next().y for _ in range(trainer.n_train)])
    # On the board ant is 0 and cat is 1; in the run ant is 0 and cat is 2.
    own = Counter(data.train.classes[label] for label in data.train.y)
    assert Counter(labels.tolist()) == {CLASSES.index(name): n for name, n in own.items()}


def test_held_out_samples_are_kept_raw_in_the_runs_class_order(make_trainer, tmp_path):
    data = local(("cat", "ant"))
    make_trainer(data=data)
    with np.load(tmp_path / "a" / "held_out.npz", allow_pickle=False) as kept:
        np.testing.assert_array_equal(kept["x"], data.held_out.x)
        assert [CLASSES[label] for label in kept["y"]] == [
            data.held_out.classes[label] for label in data.held_out.y
        ]


def test_the_best_segment_is_held_ties_to_the_latest(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer()
    for round_, accuracy in enumerate([0.5, 0.25, 0.5, 0.4], start=1):
        monkeypatch.setattr(trainer, "_held_out_accuracy", lambda accuracy=accuracy: [accuracy])
        trainer.enter_round(round_, 0)
        while trainer.seq < trainer.n_train:
            trainer.train_next()
        assert trainer.finish_round() == accuracy
        assert trainer.finish_round() is None
    record = read_record(tmp_path / "a")
    assert (record.round, record.exit_accuracy, record.n_eval) == (3, 0.5, 8)
    held = load_tensors(tmp_path / "a" / "segment.safetensors")
    assert not [name for name in held if name.startswith("momentum/")]
    assert {name.partition(".")[0] for name in held} == {"segment", "exit_head"}


def test_a_device_that_comes_late_starts_at_the_open_rounds_next_batch(make_trainer):
    trainer = make_trainer()
    trainer.enter_round(3, 4)
    assert (trainer.round, trainer.seq) == (3, 4)
    trainer.train_next()
    assert trainer.n_steps == 1


def test_a_batch_is_trained_on_once_whatever_round_is_told(make_trainer):
    trainer = make_trainer()
    train_rounds(trainer, (1,))
    trainer.enter_round(2, 0)
    trainer.train_next()
    trainer.enter_round(1, 0)  # the coordinator went back
    assert trainer.seq == trainer.n_train
    trainer.enter_round(2, 0)
    assert trainer.seq == 1
    trainer.enter_round(3, 2)
    assert trainer.seq == 0  # it never left a batch out because somebody had it


def test_a_loss_that_is_not_finite_names_device_round_and_step(make_trainer):
    trainer = make_trainer(optimizer=OptimizerSpec(lr=1e30))
    trainer.enter_round(2, 0)
    trainer.train_next()
    with pytest.raises(TrainingError, match=r"device 'dev' is (nan|inf) in round 2, step 2") as caught:
        trainer.train_next()
    assert "run.lr" in caught.value.hint


def test_damaged_training_state_is_told(make_trainer, tmp_path):
    make_trainer.stop(make_trainer())
    path = tmp_path / "a" / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"training\.safetensors"):
        make_trainer()


def test_state_of_another_network_or_of_an_earlier_run_of_this_name_is_not_taken_up(make_trainer):
    make_trainer.stop(make_trainer())
    with pytest.raises(CheckpointError, match="of another network"):
        make_trainer(cut="layer2")
    trainer = make_trainer()
    train_rounds(trainer, (1,))
    make_trainer.stop(trainer)
    with pytest.raises(CheckpointError, match="holds what was trained for another run named 'r1'") as caught:
        make_trainer(seed=4)
    assert "name of its own" in caught.value.hint


def test_a_device_folder_is_one_process(tmp_path):
    folder = DeviceFolder(tmp_path / "dev")
    with pytest.raises(RunError, match="Another agent process of this device is at work"):
        DeviceFolder(tmp_path / "dev")
    folder.close()
    DeviceFolder(tmp_path / "dev").close()


def test_a_device_folder_that_can_not_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="Not a directory"):
        DeviceFolder(tmp_path / "file" / "dev")


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_training_is_saved_as_it_goes_and_no_more_often_than_it_is_told(make_trainer, tmp_path):
    trainer = make_trainer()
    clock = trainer._clock = Clock()
    trainer._saved_at = 0.0
    trainer.enter_round(1, 0)
    trainer.train_next()
    assert not (tmp_path / "a" / "training.safetensors").exists()
    clock.now = 61.0
    trainer.train_next()
    written = saved(tmp_path, "a")
    trainer.train_next()
    assert saved(tmp_path, "a") == written
    assert np.frombuffer(written["cursor"], np.int64).tolist() == [1, 2, 2, 0]


def test_a_damaged_save_brings_back_the_one_before(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.enter_round(1, 0)
    trainer.train_next()
    trainer.save()
    before = saved(tmp_path, "a")
    trainer.train_next()
    make_trainer.stop(trainer)
    path = tmp_path / "a" / "training.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    again = make_trainer()
    assert (again.round, again.seq, again.n_steps) == (1, 1, 1)
    make_trainer.stop(again)
    assert saved(tmp_path, "a") == before
    for name in ("training.safetensors", "training.before.safetensors"):
        (tmp_path / "a" / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"training\.safetensors is not a whole"):
        make_trainer()


def test_extra_steps_have_keys_of_their_own(make_trainer, tmp_path):
    """The same as a device's that stepped as often; what the round owes is untouched."""
    alone, other = make_trainer("a"), make_trainer("b")
    for trainer in (alone, other):
        trainer.enter_round(1, 0)
        trainer.train_next()
        trainer.train_extra()
        trainer.train_extra()
        trainer.save()
    assert saved(tmp_path, "a") == saved(tmp_path, "b")
    assert (alone.round, alone.seq, alone.n_steps, alone.n_extra) == (1, 1, 1, 2)
    assert not np.array_equal(alone._recipe(1, 1).indices, alone._recipe(EXTRA_ROUND, 1).indices)
