"""Sources that come row by row: windows, JSON lines, raw values, cameras; and what the processor took."""

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundles import write_tiny_bundle
from toolkit.cli.entry import main
from toolkit.errors import DataError, DataNotFoundError, MissingPartError, ShapeError
from toolkit.nn.datasets import load_source
from toolkit.runtime import report
from toolkit.runtime.csv_layout import CsvOptions
from toolkit.runtime.energy import EnergyMeter
from toolkit.runtime.rows import After, csv_rows, json_rows, raw_rows
from toolkit.runtime.samples import read_batches, read_samples

ROOT = Path(__file__).parents[2]


def windows(text, shape=(2, 3), classes=None, **how):
    return list(csv_rows(io.StringIO(text), "walk.csv", shape, classes, CsvOptions(**how)))


def test_time_steps_become_windows_of_channels_first():
    steps = [f"{10 * t},{10 * t + 1}" for t in range(7)]
    found = windows("\n".join(steps))
    assert [one.name for one in found] == ["walk.csv rows 1 to 3", "walk.csv rows 4 to 6"]
    np.testing.assert_array_equal(found[0].x, [[0, 10, 20], [1, 11, 21]])
    np.testing.assert_array_equal(found[1].x, [[30, 40, 50], [31, 41, 51]])


def test_windows_may_overlap():
    found = windows("\n".join(f"{t},{t}" for t in range(6)), stride=1)
    assert [one.x[0].tolist() for one in found] == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]


def test_a_window_is_of_one_label_and_one_user():
    rows = ["ax,ay,user,label"]
    for t, (user, label) in enumerate([("p", "walk")] * 4 + [("q", "walk")] * 3 + [("q", "sit")] * 4):
        rows.append(f"{t},{t},{user},{label}")
    found = windows("\n".join(rows), classes=["walk", "sit"], stride=1)
    assert [(one.x[0].tolist(), one.label) for one in found] == [
        ([0, 1, 2], 0),
        ([1, 2, 3], 0),
        ([4, 5, 6], 0),
        ([7, 8, 9], 1),
        ([8, 9, 10], 1),
    ]


WALKS = """trial,ax,ay,activity
1,0,0,walk
1,1,1,walk
1,2,2,walk
2,3,3,walk
2,4,4,walk
2,5,5,sit
2,6,6,sit
"""


def test_the_words_that_train_are_answered(tmp_path):
    (tmp_path / "walks.csv").write_text(WALKS)
    source = f"csv:{tmp_path / 'walks.csv'}?window=2&stride=1&label=activity&group=trial&columns=ay,ax"
    trained = load_source(source)
    answered = read_samples(source, input_shape=(2, 2), class_names=trained.classes)
    np.testing.assert_array_equal(answered.x, trained.x)
    np.testing.assert_array_equal(answered.labels, trained.y)
    assert len(answered.names) == 4


@pytest.mark.parametrize(
    ("query", "error", "said"),
    [
        ("?stride=2", DataError, "Give a window too"),
        ("?window=3&group=trail", DataError, "Did you mean 'trial'"),
        ("?window=2&label=activity", ShapeError, "has 2 rows; the model takes 6 a sample"),
        ("?window=x", DataError, "window is 'x', which is no number of rows"),
        ("?label=activity", ShapeError, "csv:FILE\\?columns=A,B names those to take"),
    ],
)
def test_a_layout_that_does_not_fit_is_told(tmp_path, query, error, said):
    (tmp_path / "walks.csv").write_text(WALKS)
    with pytest.raises(error, match=said):
        read_samples(f"csv:{tmp_path / 'walks.csv'}{query}", input_shape=(2, 3))


def test_columns_have_no_names_where_no_line_gives_them():
    with pytest.raises(DataError, match="no first line that names its columns"):
        windows("1,2,walk\n", label="activity")


def test_a_flattened_window_a_row_is_read_too():
    [one] = windows("1,2,3,4,5,6,walk", classes=["walk"])
    np.testing.assert_array_equal(one.x, [[1, 2, 3], [4, 5, 6]])
    assert one.label == 0
    with pytest.raises(ShapeError, match="or 2 a time step, 3 of them a sample"):
        windows("1,2,3,4\n1,2,3,4")


def lines(text, shape=(2,), classes=None):
    return list(json_rows(io.StringIO(text), "in", shape, classes))


def test_json_lines():
    found = lines('[1, 2]\n{"x": [3, 4], "name": "b", "label": "bee"}\n\n', classes=["ant", "bee"])
    assert [(one.name, one.x.tolist(), one.label) for one in found] == [
        ("in line 1", [1, 2], None),
        ("b", [3, 4], 1),
    ]
    [nested] = lines("[[[1, 2], [3, 4]]]", shape=(1, 2, 2))
    assert nested.x.shape == (1, 2, 2)
    [flat] = lines("[1, 2, 3, 4]", shape=(1, 2, 2))
    assert flat.x.shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("text", "error", "complaint"),
    [
        ("{", DataError, "line 1 is no JSON"),
        ("[" * 3000, DataError, "line 1 is no JSON"),
        ("[1, [2]]", DataError, "no array of numbers"),
        ('["a", "b"]', DataError, "no array of numbers"),
        ('{"y": [1, 2]}', ShapeError, "1 values"),
        ("[1, 2, 3]", ShapeError, "3 values; the model takes 2"),
        ("null", ShapeError, "1 values"),
        ('{"x": [1, 2], "label": "cat"}', DataError, "does not know"),
        ("1" * 5000, DataError, "longer than"),
    ],
)
def test_lines_that_are_no_samples(text, error, complaint):
    with pytest.raises(error, match=complaint):
        lines(text, classes=["ant", "bee"])


def test_raw_values():
    x = np.arange(12, dtype=np.uint8).reshape(2, 3, 1, 2)
    found = list(raw_rows(io.BytesIO(x.tobytes()), "in", (3, 1, 2), "uint8"))
    np.testing.assert_allclose([one.x for one in found], x / 255, rtol=1e-6)
    found = list(raw_rows(io.BytesIO(np.moveaxis(x, 1, -1).tobytes()), "in", (3, 1, 2), "uint8-hwc"))
    np.testing.assert_allclose([one.x for one in found], x / 255, rtol=1e-6)
    floats = np.asarray([[1.5, -2]], "<f4").tobytes()
    [one] = raw_rows(io.BytesIO(floats), "in", (2,), "float32")
    assert one.x.tolist() == [1.5, -2]
    with pytest.raises(DataError, match="ends after 3 of the 8 bytes of sample 2"):
        list(raw_rows(io.BytesIO(floats + b"abc"), "in", (2,), "float32"))


def test_a_stream_that_was_begun_reads_as_a_whole():
    text = "abc\ndefgh\n"
    for n in range(8):
        stream = io.StringIO(text)
        begun = After(stream.readline(n), stream)
        assert "".join(iter(lambda: begun.readline(2), "")) == text  # noqa: B023
        stream = io.StringIO(text)
        begun = After(stream.readline(n), stream)
        assert [begun.readline(), begun.readline(), begun.readline()] == ["abc\n", "defgh\n", ""]


# standard input, as a process has it


def infer(bundle, source, *words, stdin):
    done = subprocess.run(
        [sys.executable, "-m", "toolkit.runtime", str(bundle), source, "--json", *words],
        input=stdin,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    told = json.loads(done.stdout)
    return [sample["label"] for sample in told.get("samples", [])] or told["error"]["message"]


def test_standard_input_says_what_it_is_or_is_told(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "b").folder
    rows = [[9, 0, 0], [0, 0, 9]]
    labels = ["ant", "cat"]
    assert infer(bundle, "-", stdin=b"9,0,0\n0,0,9\n") == labels
    assert infer(bundle, "-", stdin=b"\n".join(json.dumps(row).encode() for row in rows)) == labels
    assert infer(bundle, "-", "--stdin", "float32", stdin=np.asarray(rows, "<f4").tobytes()) == labels
    assert "Standard input is no text" in infer(bundle, "-", stdin=b"\xff\xfe\x00")
    assert infer(bundle, "-", "--count", "1", stdin=b"9,0,0\n0,0,9\n") == ["ant"]


def test_json_files(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("[1, 2]\n[3, 4]\n")
    assert read_samples(path, input_shape=(2,)).x.tolist() == [[1, 2], [3, 4]]
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="damaged"):
        read_samples(path, input_shape=(2,))


# cameras


def test_no_opencv_is_told_with_its_fix(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cv2" else found(name))
    with pytest.raises(MissingPartError) as caught:
        next(read_batches("camera:0", input_shape=(3, 4, 4)))
    assert "pip install 'hsee[camera]'" in caught.value.hint


def test_a_video_is_answered_frame_by_frame(tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = str(tmp_path / "v.avi")
    video = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 16))
    for red in (0, 128, 255):
        frame = np.zeros((16, 32, 3), np.uint8)
        frame[..., 2] = red  # OpenCV's order is blue, green, red
        video.write(frame)
    video.release()
    [samples] = read_batches(f"camera:{path}", input_shape=(3, 8, 8), batch=10)
    assert samples.names == ("frame 1", "frame 2", "frame 3")
    assert samples.x.shape == (3, 3, 8, 8)
    np.testing.assert_allclose(samples.x[:, 0].mean(axis=(1, 2)), [0, 0.5, 1], atol=0.05)
    assert samples.x[:, 1:].max() < 0.1
    grey = read_samples(f"camera:{path}", input_shape=(1, 8, 8)).x
    assert grey[2].mean() == pytest.approx(0.299, abs=0.03)
    with pytest.raises(DataError, match="no camera gives"):
        read_samples(f"camera:{path}", input_shape=(9,))
    with pytest.raises(DataNotFoundError, match="does not exist"):
        read_samples("camera:nowhere.mp4", input_shape=(3, 8, 8))
    (tmp_path / "broken.avi").write_bytes(b"RIFF no video")
    with pytest.raises(DataNotFoundError, match="No frame comes"):
        read_samples(f"camera:{tmp_path / 'broken.avi'}", input_shape=(3, 8, 8))


# energy


def counters(folder, *values, top=1_000_000):
    for i, value in enumerate(values):
        package = folder / f"intel-rapl:{i}"
        package.mkdir(parents=True, exist_ok=True)
        (package / "energy_uj").write_text(f"{value}\n")
        (package / "max_energy_range_uj").write_text(f"{top}\n")
        (folder / f"intel-rapl:{i}:0").mkdir(exist_ok=True)  # a part of the package, not another one


def test_joules_of_all_packages_past_the_end_of_a_counter(tmp_path):
    counters(tmp_path, 900_000, 100)
    meter = EnergyMeter(tmp_path)
    counters(tmp_path, 400_000, 250_100)
    assert meter.joules() == pytest.approx(0.5 + 0.25)


def test_where_nobody_may_read_it_there_is_no_number(tmp_path):
    assert EnergyMeter(tmp_path).joules() is None
    counters(tmp_path, 5)
    meter = EnergyMeter(tmp_path)
    (tmp_path / "intel-rapl:0/energy_uj").unlink()
    assert meter.joules() is None


def test_the_summary_tells_joules_where_they_can_be_read(tmp_path, monkeypatch, capsys):
    bundle = write_tiny_bundle(tmp_path / "b").folder
    source = tmp_path / "x.csv"
    source.write_text("9,0,0\n9,0,0\n")
    monkeypatch.setattr(report.EnergyMeter, "joules", lambda _: 0.5)
    assert main(["infer", str(bundle), str(source), "-q"]) == 0
    assert "energy: 0.50 J, 0.25 J a sample" in capsys.readouterr().out


# from Python


def test_the_readme_s_three_lines(tmp_path, monkeypatch):
    write_tiny_bundle(tmp_path / "bundle")
    [block] = (ROOT / "README.md").read_text().split("```python\n")[1:]
    code = block.split("```")[0]
    assert len([line for line in code.splitlines() if line]) == 3
    monkeypatch.chdir(tmp_path)
    found = {"x": np.asarray([[9, 0, 0], [0, 0, 9]], np.float32)}
    exec(code, found)  # noqa: S102 - what the README tells people to type
    assert [answer.label for answer in found["answers"]] == ["ant", "cat"]
