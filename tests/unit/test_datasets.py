import hashlib
import importlib.util
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from toolkit.errors import DataError, DataNotFoundError, MissingPartError, ShapeError
from toolkit.nn.datasets import channel_moments, fingerprint, load_source, make_dataset


def write_picture(path: Path, *, size: tuple[int, int] = (6, 4), mode: str = "RGB", value: int = 255) -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)


def test_digits_are_the_published_set():
    digits = load_source("digits")
    assert digits.x.shape == (1797, 1, 8, 8)
    assert digits.x.dtype == np.float32
    assert digits.y.dtype == np.int64
    assert digits.classes == tuple("0123456789")
    assert (digits.x.min(), digits.x.max()) == (0.0, 1.0)
    raw = (digits.x * 16).astype(np.uint8).tobytes() + digits.y.astype(np.uint8).tobytes()
    expected = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    assert hashlib.sha256(raw).hexdigest() == expected
    assert digits.class_counts["3"] == 183


def test_importing_data_sources_loads_no_torch():
    code = (
        "import sys, toolkit.nn.partition; toolkit.nn.datasets.load_source('digits');"
        "print(sorted(m for m in ('torch', 'torchvision', 'onnxruntime', 'PIL') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_class_folders_become_classes_in_order_of_their_names(tmp_path):
    for name in ("cat", "ant"):
        write_picture(tmp_path / name / "1.png")
        write_picture(tmp_path / name / "2.png", value=51)
    (tmp_path / "empty").mkdir()
    data = load_source(f"folder:{tmp_path}")
    assert data.classes == ("ant", "cat")
    assert data.shape == (3, 4, 6)
    assert data.y.tolist() == [0, 0, 1, 1]
    assert data.x[1, 0].max() == pytest.approx(0.2)


def test_pictures_of_two_sizes_are_named(tmp_path):
    write_picture(tmp_path / "a" / "1.png")
    write_picture(tmp_path / "b" / "2.png", size=(8, 8), mode="L")
    with pytest.raises(
        ShapeError, match=r"a/1\.png is 6 x 4 in 3 channels, .*b/2\.png is 8 x 8 in 1 channel\."
    ):
        load_source(f"folder:{tmp_path}")


def test_npz_with_numbered_labels(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 3), np.float32), y=[7, 10, 7, 10], user=[1, 1, 5, 5])
    data = load_source(f"npz:{tmp_path / 'd.npz'}")
    assert data.classes == ("7", "10")
    assert data.y.tolist() == [0, 1, 0, 1]
    assert data.user is not None
    assert data.user.tolist() == [1, 1, 5, 5]


def test_npz_with_names_and_a_class_list_keeps_its_order(tmp_path):
    np.savez(
        tmp_path / "d.npz", x=np.full((3, 1, 2, 2), 255, np.uint8), y=["b", "a", "b"], classes=["b", "c", "a"]
    )
    data = load_source(f"npz:{tmp_path / 'd.npz'}")
    assert data.classes == ("b", "c", "a")
    assert data.y.tolist() == [0, 2, 0]
    assert data.x.max() == 1.0
    assert data.class_counts == {"b": 2, "c": 0, "a": 1}


def test_npz_of_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([{}, {}], dtype=object), y=[0, 1])
    with pytest.raises(DataError):
        load_source(f"npz:{tmp_path / 'd.npz'}")


@pytest.mark.parametrize(
    "text",
    [
        "label,user,f1,f2\nup,ann,1,2\ndown,bob,3,4\nup,ann,5,6\n",
        "user,f1,label,f2\nann,1,up,2\nbob,3,down,4\nann,5,up,6\n",
    ],
)
def test_csv_with_named_columns(tmp_path, text):
    (tmp_path / "d.csv").write_text(text)
    data = load_source(f"csv:{tmp_path / 'd.csv'}")
    assert data.classes == ("down", "up")
    assert data.x.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert data.y.tolist() == [1, 0, 1]
    assert data.user is not None
    assert data.user.tolist() == [0, 1, 0]


def test_csv_without_names_has_its_label_last(tmp_path):
    (tmp_path / "d.csv").write_text("1,2,up\n3,4,down\n")
    data = load_source(f"csv:{tmp_path / 'd.csv'}")
    assert data.x.tolist() == [[1, 2], [3, 4]]
    assert [data.classes[i] for i in data.y] == ["up", "down"]


def table():
    return np.arange(8, dtype=np.float32).reshape(4, 2), np.array([0, 1, 1, 0])


def as_dict():
    x, y = table()
    return {"x": x, "y": y, "classes": ["no", "yes"]}


def broken():
    message = "sensor unplugged"
    raise RuntimeError(message)


def test_python_source(tmp_path, monkeypatch):
    (tmp_path / "my_source.py").write_text(Path(__file__).read_text())
    monkeypatch.syspath_prepend(tmp_path)
    assert load_source("python:my_source:table").classes == ("0", "1")
    assert load_source("python:my_source:as_dict").classes == ("no", "yes")
    with pytest.raises(DataError, match="sensor unplugged"):
        load_source("python:my_source:broken")
    with pytest.raises(DataNotFoundError, match="no_such"):
        load_source("python:my_source:no_such")


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("digit", DataError, "Did you mean 'digits'"),
        ("floder:x", DataError, "Did you mean 'folder'"),
        ("folder:", DataError, "folder:..."),
        ("folder:/no/such/folder", DataNotFoundError, "/no/such/folder"),
        ("npz:/no/such.npz", DataNotFoundError, "/no/such.npz"),
        ("csv:/no/such.csv", DataNotFoundError, "/no/such.csv"),
        ("torchvision:cifar", DataError, "Did you mean 'cifar10'"),
        ("torchvision:cifar10", DataError, "device.root"),
        ("torchvision:cifar10:tset", DataError, "torchvision:cifar10:test"),
    ],
)
def test_wrong_sources_say_what_and_what_next(text, error, said):
    with pytest.raises(error) as caught:
        load_source(text)
    assert said in str(caught.value)


@pytest.mark.skipif("torchvision" in sys.modules, reason="only where torchvision is not loaded")
def test_torchvision_missing_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingPartError) as caught:
        load_source("torchvision:mnist", root=tmp_path)
    assert caught.value.hint == "Install it with: pip install 'hsee[datasets]'"


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision_reads_pictures_also_beside_another_torch(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 20), ("t10k", 10)):
        pictures = np.full((n, 28, 28), 255, np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, n, 28, 28) + pictures.tobytes()
        )
        labels = (np.arange(n) % 10).astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + labels.tobytes())
    code = (
        "import sys, pathlib; from toolkit.nn.datasets import load_source;"
        "d = load_source('torchvision:mnist', root=pathlib.Path(sys.argv[1]));"
        "print(d.x.shape, d.x.max(), len(d.classes), d.y[:3].tolist());"
        "print(len(load_source('torchvision:mnist:test', root=pathlib.Path(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(20, 1, 28, 28) 1.0 10 [0, 1, 2]\n10"


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"x": np.zeros((0, 2)), "y": []}, DataError, "no samples"),
        ({"y": [1, 1, 1, 1]}, DataError, "one class only: '1'"),
        ({"x": [[1, 2], [3, np.nan], [5, 6], [np.inf, 8]]}, DataError, "the first is sample 1"),
        ({"x": [[1, 2], [3, -2e15], [5, 6], [7, 8]]}, DataError, "a value of magnitude 2e+15; at most 1e+15"),
        ({"y": [0, 1, 2, 0], "classes": ["a", "b"]}, DataError, "label 2 of sample 2"),
        ({"y": ["a", "b", "bb", "a"], "classes": ["a", "b"]}, DataError, "Did you mean 'b'"),
        ({"y": [0, 1, -1, 0], "classes": ["a", "b"]}, DataError, "count from 0 to 1"),
        ({"y": [0.5, 1, 1, 0]}, DataError, "no classes"),
        ({"y": [0, 1]}, ShapeError, "(4, 2) and y (2,)"),
        ({"user": [1, 2]}, ShapeError, "user has shape (2,)"),
        ({"classes": ["a", "a"]}, DataError, "stands twice"),
    ],
)
def test_bad_arrays_are_refused(changed, error, said):
    x, y = table()
    with pytest.raises(error) as caught:
        make_dataset(**({"x": x, "y": y, "name": "it"} | changed))
    assert said in str(caught.value)


def test_fingerprint_names_the_content():
    x, y = table()
    base = make_dataset(x, y, name="a")
    assert fingerprint(base) == fingerprint(make_dataset(x.copy(), y.copy(), name="other"))
    assert len(fingerprint(base)) == 32
    others = [
        make_dataset(x + 1, y, name="a"),
        make_dataset(x, 1 - y, name="a"),
        make_dataset(x, y, classes=["n", "y"], name="a"),
        make_dataset(x.reshape(4, 1, 2), y, name="a"),
    ]
    assert len({fingerprint(d) for d in [base, *others]}) == 5


def test_channel_moments_match_numpy_in_float64():
    x = np.random.default_rng(0).normal(3, 2, (50, 3, 4, 5)).astype(np.float32)
    mean, var = channel_moments(x)
    assert np.allclose(mean, x.astype(np.float64).mean(axis=(0, 2, 3)), rtol=1e-12)
    assert np.allclose(var, x.astype(np.float64).var(axis=(0, 2, 3)), rtol=1e-12)
