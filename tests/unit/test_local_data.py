"""What an agent makes of the data its settings name."""

import numpy as np
import pytest
from PIL import Image

from device_agent.local_data import load_local_data
from toolkit.config import Device
from toolkit.errors import DataError, DataNotFoundError, ShapeError, UsageError


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.npz"
    x = np.arange(60, dtype=np.float32).reshape(20, 3)
    np.savez(path, x=x, y=np.arange(20) % 2)
    return path


def test_training_and_held_out_samples_are_apart_and_what_is_told_holds_no_sample(table):
    data = load_local_data(Device(data=f"npz:{table}"))
    assert (len(data.train), len(data.held_out)) == (16, 4)
    together = np.concatenate([data.train.x, data.held_out.x])
    assert len(np.unique(together, axis=0)) == 20
    told = data.summary()
    assert (told.classes, told.input_shape, told.n_train, told.n_eval) == (["0", "1"], [3], 16, 4)
    np.testing.assert_allclose(told.mean, data.train.x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(told.var, data.train.x.var(0), rtol=1e-6)


def test_the_same_settings_give_the_same_data_and_other_data_another_fingerprint(table):
    first, again = (load_local_data(Device(data=f"npz:{table}")) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    np.testing.assert_array_equal(first.train.x, again.train.x)
    part = load_local_data(Device(data=f"npz:{table}", part="1/2"))
    assert part.fingerprint != first.fingerprint


def test_parts_do_not_overlap():
    parts = [load_local_data(Device(data="digits", part=f"{i}/2", data_seed=4)) for i in (1, 2)]
    assert sum(len(part.train) + len(part.held_out) for part in parts) == 1797


def pictures(folder, **sizes):
    for name, size in sizes.items():
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", size, number).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("make", "error", "text", "hint"),
    [
        (lambda _: "", UsageError, "No data source is named", "--data folder:PATH"),
        (lambda _: "digit", DataError, "no data source 'digit'", "Did you mean 'digits'?"),
        (lambda t: f"folder:{t / 'none'}", DataNotFoundError, "none", ""),
        (lambda t: f"npz:{t / 'none.npz'}", DataNotFoundError, r"none\.npz", ""),
        (lambda t: f"csv:{t}", DataNotFoundError, "can't be read: .*directory", "Check the path"),
        (
            lambda t: f"folder:{pictures(t / 'p', only=(8, 8))}",
            DataError,
            "one class only: 'only'",
            "another class",
        ),
        (lambda t: f"folder:{pictures(t / 'p', a=(8, 8), b=(9, 8))}", ShapeError, "9 x 8", "one size"),
    ],
)
def test_a_source_that_can_not_be_used_says_why(tmp_path, make, error, text, hint):
    with pytest.raises(error, match=text) as caught:
        load_local_data(Device(data=make(tmp_path)))
    assert hint in caught.value.hint


def test_a_damaged_picture_is_named(tmp_path):
    folder = pictures(tmp_path / "p", a=(8, 8), b=(8, 8))
    (folder / "b" / "9.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"9\.png"):
        load_local_data(Device(data=f"folder:{folder}"))


def test_an_empty_folder_is_told(tmp_path):
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="empty"):
        load_local_data(Device(data=f"folder:{tmp_path / 'empty'}"))


def test_three_samples_are_too_few(tmp_path):
    np.savez(tmp_path / "few.npz", x=np.zeros((3, 2), np.float32), y=[0, 1, 0])
    with pytest.raises(DataError, match=r"has 3 samples; a device needs at least 4") as caught:
        load_local_data(Device(data=f"npz:{tmp_path / 'few.npz'}"))
    assert caught.value.hint == "Add samples to it."


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"part": "4/3"}, "no part 4 of 3"),
        ({"part": "1/3", "partition": "dirichet:0.5"}, "no partition 'dirichet:0.5'"),
        ({"part": "1/3", "partition": "shards:x"}, "shards:x"),
        ({"part": "1/3", "partition": "user"}, "who made each sample"),
    ],
)
def test_a_division_that_can_not_be_made_says_why(changes, text):
    with pytest.raises(DataError, match=text) as caught:
        load_local_data(Device(data="digits", **changes))
    assert caught.value.hint
