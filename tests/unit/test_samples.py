import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from toolkit.errors import DataError, DataNotFoundError, ShapeError
from toolkit.runtime.preprocess import n_far_outside, normalise
from toolkit.runtime.samples import (
    list_class_folders,
    open_npy,
    open_npz,
    read_batches,
    read_picture,
    read_samples,
    scale,
)

CLASSES = ["ant", "bee", "cat"]
SHAPE = (1, 2, 3)
X = np.arange(24, dtype=np.float32).reshape(4, *SHAPE) / 24


def save_picture(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).convert(mode).save(path)
    return path


def save_text(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def read(source, **options):
    return read_samples(source, **{"input_shape": SHAPE, "class_names": CLASSES, **options})


# normalisation


def test_normalisation_is_per_channel_and_leaves_the_raw_values_alone():
    raw = np.asarray([[[[1, 2]], [[10, 20]]]], np.float32)
    kept = raw.copy()
    np.testing.assert_array_equal(normalise(raw, [1, 10], [2, 5]), [[[[0, 0.5]], [[0, 2]]]])
    np.testing.assert_array_equal(raw, kept)
    assert normalise(raw, [1, 10], [2, 5]).dtype == np.float32
    with pytest.raises(ShapeError, match="1 means"):
        normalise(raw, [0], [1])


def test_values_far_outside_the_known_range_are_counted():
    x = np.asarray([[0.0, 1.0], [0.5, 1.9], [0, 255], [-3, 0]], np.float32)
    assert n_far_outside(x, 0, 1) == 2


# arrays


def test_bytes_are_scaled_and_floats_stay():
    np.testing.assert_allclose(scale(np.asarray([0, 51, 255], np.uint8)), [0, 0.2, 1], rtol=1e-6)
    np.testing.assert_array_equal(scale(np.asarray([3.0, 255.0])), [3, 255])
    with pytest.raises(DataError, match="type int64; expected uint8"):
        scale(np.asarray([1, 2], np.int64))


def test_npz_with_and_without_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=np.asarray([2, 0, 1, 1]))
    samples = read(tmp_path / "a.npz")
    np.testing.assert_array_equal(samples.x, X)
    assert samples.labels.tolist() == [2, 0, 1, 1]
    assert samples.names[1] == "a.npz[1]"
    assert read(tmp_path / "a.npz", class_names=None).labels is None
    np.savez_compressed(tmp_path / "b.npz", x=(X * 255).astype(np.uint8))
    assert read(tmp_path / "b.npz").labels is None
    assert read(tmp_path / "b.npz").x.max() <= 1


def test_labels_by_name_or_by_the_files_own_classes_meet_the_models_order(tmp_path):
    np.savez(tmp_path / "names.npz", x=X, y=np.asarray(["cat", "ant", "bee", "bee"]))
    np.savez(tmp_path / "own.npz", x=X, y=np.asarray([0, 1, 2, 2]), classes=np.asarray(["cat", "ant", "bee"]))
    for name in ("names.npz", "own.npz"):
        assert read(tmp_path / name).labels.tolist() == [2, 0, 1, 1]


def test_npy_holds_samples_or_one(tmp_path):
    np.save(tmp_path / "many.npy", np.asfortranarray(X))
    np.save(tmp_path / "one.npy", X[3])
    np.testing.assert_array_equal(read(tmp_path / "many.npy").x, X)
    np.testing.assert_array_equal(read(tmp_path / "one.npy").x, X[3:])


@pytest.mark.parametrize(
    "y", [np.asarray([0, 1]), np.zeros((4, 2), np.int64), np.zeros(4), np.asarray([0, 1, 2, 3])]
)
def test_labels_that_fit_nothing_are_refused(tmp_path, y):
    np.savez(tmp_path / "a.npz", x=X, y=y)
    with pytest.raises(DataError, match="'y' of"):
        read(tmp_path / "a.npz")


def test_batches_keep_order_and_the_last_may_be_smaller(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=np.asarray([2, 0, 1, 1]))
    batches = list(read_batches(tmp_path / "a.npz", input_shape=SHAPE, class_names=CLASSES, batch=3))
    assert [len(b.x) for b in batches] == [3, 1]
    np.testing.assert_array_equal(np.concatenate([b.x for b in batches]), X)
    assert np.concatenate([b.labels for b in batches]).tolist() == [2, 0, 1, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sample_with_no_number_in_it_is_named(tmp_path, bad):
    x = X.copy()
    x[2, 0, 0, 0] = bad
    np.savez(tmp_path / "a.npz", x=x)
    with pytest.raises(DataError, match=r"a\.npz\[2\] holds NaN or Inf in 1 of"):
        read(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=x.astype(np.float64) + 1e300)
    with pytest.raises(DataError, match="NaN or Inf"):
        read(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("shape", "hint"),
    [((4, 2, 3, 1), "channels first"), ((4, 6), r"reshape it to \(N, 1, 2, 3\)"), ((4, 3, 5, 5), "--fit")],
)
def test_a_wrong_shape_says_what_was_expected(tmp_path, shape, hint):
    np.savez(tmp_path / "a.npz", x=np.zeros(shape, np.float32))
    with pytest.raises(ShapeError, match=hint) as caught:
        read(tmp_path / "a.npz")
    assert caught.value.facts["expected"] == SHAPE
    assert caught.value.facts["got"] == shape[1:]


def test_objects_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.asarray([{"a": 1}], object))
    np.save(tmp_path / "a.npy", np.asarray([{"a": 1}], object))
    with pytest.raises(DataError, match="Python objects"):
        open_npz(tmp_path / "a.npz")
    with pytest.raises(DataError, match="Python objects"):
        open_npy(tmp_path / "a.npy")


def npy_bytes(shape, data=b""):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize("shape", [(2**40,), (-1, -2), (2**62, 2**62), (3,), (0, 5)])
def test_a_header_that_claims_what_is_not_there_takes_no_memory(tmp_path, shape):
    content = npy_bytes(shape, b"1234")
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    for reader, name in ((open_npy, "a.npy"), (open_npz, "a.npz")):
        with pytest.raises(DataError, match="damaged"):
            reader(tmp_path / name)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros(100_000, np.float32))
    monkeypatch.setattr("toolkit.runtime.arrays.MAX_FILE_BYTES", 50_000)
    with pytest.raises(DataError, match="more than the 50000 allowed"):
        open_npz(tmp_path / "bomb.npz")


def test_every_truncation_of_an_npz_is_a_data_error(tmp_path):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=X)
    whole = buffer.getvalue()
    path = tmp_path / "a.npz"
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(DataError):
            open_npz(path)


# pictures


def test_grey_and_colour_pictures_are_channels_first_in_0_to_1(tmp_path):
    grey = read_picture(save_picture(tmp_path / "g.png", [[0, 51, 255]] * 2))
    assert grey.shape == (1, 2, 3)
    np.testing.assert_allclose(grey[0, 0], [0, 0.2, 1], rtol=1e-6)
    colour = read_picture(save_picture(tmp_path / "c.png", [[[255, 51, 0]] * 3] * 2))
    assert colour.shape == (3, 2, 3)
    np.testing.assert_allclose(colour[:, 0, 0], [1, 0.2, 0], rtol=1e-6)
    for mode, n_channels in (("P", 3), ("RGBA", 3), ("LA", 1), ("1", 1), ("CMYK", 3)):
        path = save_picture(tmp_path / f"{mode}.tif", [[[255, 51, 0]] * 3] * 2, mode)
        assert read_picture(path).shape == (n_channels, 2, 3)


def test_pictures_of_16_bits_use_their_whole_range(tmp_path):
    Image.fromarray(np.asarray([[0, 65535]], np.uint16)).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "deep.png"), [[[0, 1]]])


def test_pictures_are_made_to_fit_only_when_told(tmp_path):
    path = save_picture(tmp_path / "c.png", [[[200, 200, 200]] * 8] * 6)
    with pytest.raises(ShapeError, match="--fit"):
        read(path)
    fitted = read(path, fit=True).x
    assert fitted.shape == (1, *SHAPE)
    np.testing.assert_allclose(fitted, 200 / 255, rtol=1e-5)
    grey = save_picture(tmp_path / "g.png", [[100] * 8] * 6)
    np.testing.assert_allclose(read_picture(grey, fit=(3, 4, 4)), np.full((3, 4, 4), 100 / 255), rtol=1e-5)


def test_damaged_pictures_are_data_errors(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3))
    for suffix in ("png", "jpg", "bmp", "gif", "webp", "tif", "ppm"):
        whole = save_picture(tmp_path / f"whole.{suffix}", noise).read_bytes()
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=f"cut.{suffix} is damaged"):
            read_picture(path)
    save_text(tmp_path / "no.png", "this is no picture")
    with pytest.raises(DataError, match="damaged or not what its name says"):
        read_picture(tmp_path / "no.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match="is empty"):
        read_picture(tmp_path / "empty.png")


def test_a_picture_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    path = save_picture(tmp_path / "a.png", np.zeros((50, 50)))
    monkeypatch.setattr("toolkit.runtime.pictures.MAX_PIXELS", 2000)
    with pytest.raises(DataError, match="50 x 50 pixels"):
        read_picture(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(DataError, match="is refused"):
        read_picture(path)


def test_folders_of_pictures(tmp_path):
    for name in ("b.png", "a.PNG", ".hidden.png"):
        save_picture(tmp_path / "flat" / name, [[0, 1, 2]] * 2)
    save_text(tmp_path / "flat" / "notes.txt", "not a picture")
    samples = read(tmp_path / "flat")
    assert samples.names == ("a.PNG", "b.png")
    assert samples.labels is None
    (tmp_path / "empty" / "below").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no pictures, neither by themselves nor in class folders"):
        read(tmp_path / "empty")


def test_class_folders_give_labels_by_name(tmp_path):
    save_picture(tmp_path / "cat" / "1.png", [[0, 1, 2]] * 2)
    save_picture(tmp_path / "ant" / "2.png", [[0, 1, 2]] * 2)
    (tmp_path / "bee").mkdir()
    assert {name: len(files) for name, files in list_class_folders(tmp_path).items()} == {
        "ant": 1,
        "bee": 0,
        "cat": 1,
    }
    samples = read(tmp_path)
    assert samples.names == ("ant/2.png", "cat/1.png")
    assert samples.labels.tolist() == [0, 2]
    save_picture(tmp_path / "cow" / "3.png", [[0, 1, 2]] * 2)
    with pytest.raises(DataError, match=r"cow.*does not know.*--no-labels"):
        read(tmp_path)
    assert len(read(tmp_path, class_names=None).x) == 3


# csv


def test_csv_rows_are_flattened_samples(tmp_path):
    rows = "\n".join(",".join(map(str, sample.ravel())) for sample in X)
    samples = read(save_text(tmp_path / "a.csv", rows))
    np.testing.assert_allclose(samples.x, X, rtol=1e-6)
    assert samples.labels is None
    assert samples.names[0] == "a.csv row 1"


@pytest.mark.parametrize(
    "text",
    [
        "0,1,2,3,4,5,bee\n0,1,2,3,4,5,2\n",
        "\ufeffa,b,c,d,e,f,label\n0,1,2,3,4,5,bee\n\n0,1,2,3,4,5,cat",
        "label,a,b,c,d,e,f\nbee,0,1,2,3,4,5\n2,0,1,2,3,4,5\n",
        "a,b,c,label,user,d,e,f\n0,1,2,bee,7,3,4,5\n0,1,2,cat,7,3,4,5\n",
    ],
)
def test_csv_labels_stand_last_or_in_their_column(tmp_path, text):
    samples = read(save_text(tmp_path / "a.csv", text))
    assert samples.labels.tolist() == [1, 2]
    np.testing.assert_array_equal(samples.x[1].ravel(), range(6))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("0,1,2,3,4\n", "row 1 has 5 values; the model takes 6"),
        ("0,1,2,3,4,5\n0,1,2\n", "row 2 has 3 values"),
        ("0,1,2,3,4,5\n0,1,x,3,4,5\n", "row 2, column 3: 'x' is not a number"),
        (",1,2,3,4,5\n", "row 1, column 1: '' is not a number"),
        ("0,1,nan,3,4,5\n", "row 1 holds NaN"),
        ("0,1,2,3,4,5,cow\n", "'cow', which the model does not know"),
        ("a,b,c,d,e,f\n", "no samples"),
        ("0" * 5000, "line longer than"),
        ("0,1,2,3,4,5\n\0,1,2,3,4,5\n", "a.csv"),
    ],
)
def test_csv_that_is_wrong_says_where(tmp_path, text, complaint):
    with pytest.raises(DataError, match=complaint):
        read(save_text(tmp_path / "a.csv", text))


def test_binary_is_no_csv(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"0,1,2,3,4,5\n\xff\xfe\x00")
    with pytest.raises(DataError, match="can't be read as csv"):
        read(tmp_path / "a.csv")


def test_standard_input_is_answered_as_rows_arrive(monkeypatch):
    read_so_far = []

    class Sensor(io.StringIO):
        def readline(self, *args):
            line = super().readline(*args)
            read_so_far.append(line)
            return line

    monkeypatch.setattr("sys.stdin", Sensor("0,1,2,3,4,5\n" * 100))
    first = next(read_batches("-", input_shape=SHAPE, batch=1))
    assert first.names == ("standard input row 1",)
    assert len(read_so_far) == 1


# what is not there


def test_sources_that_are_not_there_or_of_no_kind(tmp_path):
    with pytest.raises(DataNotFoundError, match="does not exist"):
        read(tmp_path / "gone.npz")
    with pytest.raises(DataNotFoundError, match="does not exist"):
        read(tmp_path / "gone")
    with pytest.raises(DataError, match="holds no pictures"):
        read(tmp_path)
    with pytest.raises(DataError, match="of no kind"):
        read(save_text(tmp_path / "a.docx", "x"))
    np.savez(tmp_path / "z.npz", z=X)
    with pytest.raises(DataError, match="no array 'x'; it has: z"):
        read(tmp_path / "z.npz")
    np.savez(tmp_path / "empty.npz", x=X[:0])
    with pytest.raises(DataError, match="holds no samples"):
        read(tmp_path / "empty.npz")


@pytest.mark.parametrize("source", ["digits", "torchvision:cifar10", "python:my_data:make"])
def test_what_only_training_knows_is_said_to_be_so(source):
    with pytest.raises(DataError, match=f"{source} names data to train with") as caught:
        read(source)
    assert "camera:0" in caught.value.hint
