"""Drawings of a run: what stands in them, and what is said where nothing can be drawn."""

import csv
import dataclasses
import json
import sys
import xml.etree.ElementTree as ET

import msgspec
import pytest
from typer.testing import CliRunner

from coordinator.store.run_record import METRICS
from toolkit.cli.app import app
from toolkit.errors import CheckpointError, MissingPartError, UsageError
from toolkit.plots.cut_map import Layer, draw_cut_map
from toolkit.plots.draw import draw_run
from toolkit.plots.learning import draw_learning
from toolkit.plots.routes import draw_routes
from toolkit.plots.style import ACCENT, drawing, floor_of
from toolkit.plots.threshold import draw_threshold
from toolkit.plots.told import read_runs
from toolkit.simulate.results import (
    Accuracy,
    CutInference,
    DeviceResult,
    InferencePoint,
    SeedResult,
    keep_inference,
    keep_result,
)
from toolkit.wire.job import Job, ModelSpec

CUTS = {"dev1": "hidden1", "dev2": "hidden2", "dev3": "hidden1"}


def point(at, exit_rate):
    return InferencePoint(
        threshold=at,
        exit_rate=exit_rate,
        accuracy=0.9 - exit_rate / 10,
        drop=10 * exit_rate,
        drop_upper=12 * exit_rate,
        device_macs=100,
        server_macs=(1 - exit_rate) * 900,
        up_bytes=(1 - exit_rate) * 64,
    )


def curve(cut, *, chosen=1):
    points = [point(0.01, 0.0), point(0.1, 0.4), point(1.0, 1.0)]
    return CutInference(
        cut=cut,
        devices=[name for name, own in CUTS.items() if own == cut],
        device_macs=100,
        server_macs=900,
        activation_bytes=64,
        n_held_out=40,
        held_out=points,
        n_test=80,
        test=points,
        target_drop=5.0,
        chosen=chosen,
        why_none="" if chosen is not None else "too few samples: 40, needs 59",
    )


def result(trained="sequential"):
    routes = ("whole",) if trained == "local" else ("exit", "server")
    return SeedResult(
        seed=0,
        trained=trained,
        rounds=2,
        wall_s=1.0,
        server_s=1.0,
        devices=[
            DeviceResult(
                device=name,
                cut="whole" if trained == "local" else cut,
                n_train=10,
                n_held_out=5,
                accuracy={route: Accuracy(0.5 + 0.1 * i, 0.4 + 0.1 * i) for i, route in enumerate(routes)},
                up_bytes=1,
                down_bytes=1,
                compute_s=1.0,
                digest="",
            )
            for name, cut in CUTS.items()
        ],
        server_digest="",
        times="",
        n_test=80,
    )


def write_run(folder, *, model="mlp", simulated=True):
    """Two rounds of three devices; dev3 was measured by nobody in the second."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metrics.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, METRICS)
        rows.writeheader()
        for round_ in (1, 2):
            for number, (device, cut) in enumerate(CUTS.items(), start=1):
                measured = not (round_ == 2 and device == "dev3")
                values = {
                    "exit_accuracy": 0.1 * number * round_,
                    "server_accuracy": 0.2 * round_,
                    "exit_loss_nats": 2 / round_,
                    "server_loss_nats": 1 / round_,
                }
                rows.writerow(
                    {
                        "round": round_,
                        "device": device,
                        "cut": cut,
                        **(values if measured else dict.fromkeys(values, "")),
                        "n_steps": 4,
                        "n_void": 0,
                        "n_eval": 5,
                        "up_bytes": 2_500_000,
                        "seconds": 1.5,
                    }
                )
    spec = ModelSpec(name=model, input_shape=[6], n_classes=3, options={"width": 16, "depth": 3})
    jobs = {
        device: Job(
            run="made",
            model=spec,
            cut=cut,
            classes=["a", "b", "c"],
            mean=[0.0] * 6,
            std=[1.0] * 6,
            seed=0,
            rounds=2,
            batch_size=8,
        )
        for device, cut in CUTS.items()
    }
    generation = folder / "checkpoints" / "000007-round-2"
    generation.mkdir(parents=True)
    state = {"round": 2, "jobs": jobs, "activation_shapes": {device: [16] for device in CUTS}}
    (generation / "checkpoint.json").write_bytes(msgspec.json.encode(state))
    if simulated:
        keep_result(folder, result())
        keep_inference(folder, [curve("hidden1"), curve("hidden2", chosen=None)])
    return folder


def lines(axes):
    """What lines with data are drawn: (x, y)."""
    return [
        (list(line.get_xdata()), [round(y, 6) for y in line.get_ydata()])
        for line in axes.get_lines()
        if len(line.get_xdata())
    ]


def test_layers_are_as_wide_as_their_flop_and_edges_as_thick_as_their_bytes():
    layers = [Layer("a", 600, 400), Layer("b", 200, 100), Layer("c", 200, 50), Layer("classifier", 0, 12)]
    with drawing():
        from matplotlib.patches import FancyBboxPatch, Rectangle

        figure = draw_cut_map(
            layers, {f"dev{n}": "a" if n < 4 else "c" for n in range(12)}, name="run", model="m"
        )
        (axes,) = figure.axes
        blocks = [p.get_width() for p in axes.patches if isinstance(p, FancyBboxPatch)]
        edges = [p.get_height() for p in axes.patches if isinstance(p, Rectangle)]
        dots = [tuple(line.get_xydata()[0]) for line in axes.get_lines() if line.get_marker() == "o"]
        texts = [text.get_text() for text in axes.texts]
    assert blocks[0] == pytest.approx(3 * blocks[1]) == pytest.approx(3 * blocks[2])
    assert 0 < blocks[3] < blocks[1]
    assert edges[0] == pytest.approx(4 * edges[1]) == pytest.approx(8 * edges[2])
    assert len(set(dots)) == 12
    assert [sum(x < blocks[0] + 10 for x, _ in dots), sum(x > blocks[0] + 10 for x, _ in dots)] == [4, 8]
    assert {"dev0", "dev3", "8 devices", "400 B", "60%"} <= set(texts)
    assert "dev4" not in texts


@pytest.mark.parametrize("n", [1, 6, 7, 67, 5000])
def test_markers_of_a_cut_stay_apart_and_above_the_layers(n):
    layers = [Layer("a", 1, 4), Layer("b", 1, 4), Layer("classifier", 1, 4)]
    with drawing():
        figure = draw_cut_map(layers, {f"dev{i}": "a" for i in range(n)}, name="run", model="m")
        (axes,) = figure.axes
        dots = [tuple(line.get_xydata()[0]) for line in axes.get_lines() if line.get_marker() == "o"]
        texts = [text.get_text() for text in axes.texts]
        (left, right), (_, top) = axes.get_xlim(), axes.get_ylim()
    assert len(set(dots)) == min(n, 90)
    assert all(left < x < right and 1 < y < top for x, y in dots)
    if n > 90:
        assert f"{n} devices, 90 drawn" in texts


def test_learning_curves_are_medians_over_the_devices_of_a_cut(tmp_path):
    runs = read_runs(write_run(tmp_path / "run"))
    with drawing():
        accuracy, loss = draw_learning(runs, ["hidden1", "hidden2"]).axes
        # server and exit of hidden1 (dev1 and dev3, which was not measured in round 2), then of hidden2
        assert lines(accuracy) == [
            ([1, 2], [0.2, 0.4]),
            ([1, 2], [0.2, 0.2]),
            ([1, 2], [0.2, 0.4]),
            ([1, 2], [0.2, 0.4]),
        ]
        assert lines(loss)[0] == ([1, 2], [1.0, 0.5])


def test_a_curve_that_was_not_measured_in_every_round_shows_where_it_was(tmp_path):
    (run,) = read_runs(write_run(tmp_path / "run"))
    rounds = [
        msgspec.structs.replace(told, server_accuracy=None) if told.round == 1 else told
        for told in run.rounds
    ]
    with drawing():
        accuracy, loss = draw_learning([dataclasses.replace(run, rounds=rounds)], ["hidden1"]).axes
        assert [line.get_marker() for line in accuracy.get_lines()] == ["o", "None"]
        assert [line.get_marker() for line in loss.get_lines()] == ["None", "None"]
        assert accuracy.get_xlim() == loss.get_xlim()
        assert accuracy.get_xlim()[0] <= 1


def test_an_axis_of_shares_begins_at_full_ten_percent_below_the_lowest():
    assert floor_of([0.93, 0.66]) == 0.6
    assert floor_of([0.6, 0.99]) == 0.5
    assert floor_of([0.02]) == 0.0
    assert floor_of([1.0]) == 0.9


def test_a_row_a_device_and_of_several_seeds_a_row_a_cut(tmp_path):
    with drawing():
        runs = read_runs(write_run(tmp_path / "run"))
        own, common = draw_routes(runs, ["hidden1", "hidden2"]).axes
        labels = [tick.get_text() for tick in own.get_yticklabels()]
        assert labels == ["dev1  ·  hidden1", "dev3  ·  hidden1", "dev2  ·  hidden2"]
        assert ([0.5], [0]) in [(x, y) for x, y in lines(own) if len(x) == 1]
        assert ([0.4], [2]) in [(x, y) for x, y in lines(common) if len(x) == 1]
        assert own.get_xlim() == common.get_xlim()
        assert own.get_xlim()[0] < 0.4
        told = [(text.get_text(), text.xy, text.get_ha()) for text in own.texts[:2]]
        assert told == [("50%", (0.5, 0), "right"), ("60%", (0.6, 0), "left")]
        for seed in (0, 1):
            write_run(tmp_path / "seeds" / f"seed-{seed}")
        runs = read_runs(tmp_path / "seeds")
        own, _ = draw_routes(runs, ["hidden1", "hidden2"]).axes
        assert [tick.get_text() for tick in own.get_yticklabels()] == [
            "cut after hidden1",
            "cut after hidden2",
        ]
        exits, servers = [y for x, y in lines(own) if len(x) == 4]  # two devices of two seeds
        assert min(exits) > 0 > max(servers)


def test_the_chosen_threshold_is_marked_and_a_missing_one_is_told():
    with drawing():
        figure = draw_threshold(
            [curve("hidden2", chosen=None), curve("hidden1")], ["hidden1", "hidden2"], "run"
        )
        top_chosen, top_none, low_chosen, low_none = figure.axes
        marks = [
            [list(line.get_xdata()) for line in axes.get_lines() if line.get_color() == ACCENT]
            for axes in figure.axes
        ]
        assert marks == [[[0.1, 0.1], [0.1]], [], [[0.1, 0.1]], []]
        assert top_chosen.get_title(loc="left") == "cut after hidden1"
        assert "no threshold: too few samples: 40, needs 59" in [t.get_text() for t in top_none.texts]
        rates, sent, macs = lines(low_none)[:3]
        assert rates[1] == [0.0, 0.4, 1.0]
        assert sent[1] == [1.0, 0.6, 0.0]
        assert macs[1] == [1.0, 0.64, 0.1]
        assert low_chosen.get_ylim() == low_none.get_ylim()
        assert top_chosen.get_ylim()[0] == 0.7  # the lowest answer is 80 % right
        assert low_chosen.get_title(loc="left") == "100 % = 64 B up, 1 kMAC a sample"
        assert "chosen threshold" in [text.get_text() for text in figure.legends[0].get_texts()]
        none = draw_threshold([curve("hidden2", chosen=None)], ["hidden2"], "run")
        assert "chosen threshold" not in [text.get_text() for text in none.legends[0].get_texts()]


def test_a_run_folder_becomes_four_drawings_the_same_every_time(tmp_path):
    folder = write_run(tmp_path / "run")
    drawn = draw_run(folder)
    assert [file.name for file in drawn.files] == [
        "cut-map.svg",
        "learning.svg",
        "accuracy.svg",
        "threshold.svg",
    ]
    assert drawn.files[0].parent == folder / "pictures"
    assert drawn.left_out == ()
    for file in drawn.files:
        assert ET.parse(file).getroot().tag.endswith("svg")  # noqa: S314 - ours
    again = draw_run(folder, tmp_path / "again")
    assert [f.read_bytes() for f in again.files] == [f.read_bytes() for f in drawn.files]
    (png, *_) = draw_run(folder, tmp_path / "png", file_format="png").files
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_real_run_has_no_thresholds_and_a_baseline_no_rounds(tmp_path):
    real = draw_run(write_run(tmp_path / "real", simulated=False))
    assert [file.stem for file in real.files] == ["cut-map", "learning", "accuracy"]
    (tmp_path / "baseline").mkdir()
    keep_result(tmp_path / "baseline", result("local"))
    assert [file.stem for file in draw_run(tmp_path / "baseline").files] == ["accuracy"]


def test_each_seed_has_its_thresholds(tmp_path):
    for seed in (0, 1, 10):
        write_run(tmp_path / f"seed-{seed}")
    assert [file.stem for file in draw_run(tmp_path).files][-3:] == [
        "threshold-seed-0",
        "threshold-seed-1",
        "threshold-seed-10",
    ]


def test_a_model_that_is_not_here_leaves_out_the_map_and_says_so(tmp_path):
    drawn = draw_run(write_run(tmp_path / "run", model="python:no_such_package:make"))
    assert "cut-map" not in [file.stem for file in drawn.files]
    assert "no cut map" in drawn.left_out[0]
    assert "no_such_package" in drawn.left_out[0]


def test_what_is_no_run_or_damaged_is_told(tmp_path):
    with pytest.raises(UsageError, match="no run folder"):
        draw_run(tmp_path)
    folder = write_run(tmp_path / "run")
    (folder / "inference.json").write_text('[{"cut": 3}]')
    with pytest.raises(CheckpointError, match="damaged"):
        draw_run(folder)
    (folder / "inference.json").unlink()
    (folder / "checkpoints" / "000007-round-2" / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"checkpoint\.json can't be read"):
        draw_run(folder)


def test_without_matplotlib_the_command_shows_the_rest(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else sys)
    told = CliRunner().invoke(app, ["run", "show", str(folder)])
    assert told.exit_code == 0, told.output
    assert "dev2" in told.output
    assert "pip install 'hsee[plots]'" in told.output
    asked = CliRunner().invoke(app, ["run", "show", str(folder), "--pictures", str(tmp_path / "out")])
    assert isinstance(asked.exception, MissingPartError)


def test_the_command_tells_and_draws(tmp_path):
    folder = write_run(tmp_path / "run")
    told = CliRunner().invoke(app, ["run", "show", str(folder), "--json", "--format", "png"])
    assert told.exit_code == 0, told.output
    facts = json.loads(told.output)
    assert facts["runs"][0]["rounds"] == 2
    assert facts["devices"][1]["server_accuracy"] == 0.4
    assert facts["devices"][2]["exit_accuracy"] is None
    assert facts["pictures"][0].endswith("/cut-map.png")
    wrong = CliRunner().invoke(app, ["run", "show", str(folder), "--format", "gif"])
    assert isinstance(wrong.exception, UsageError)
