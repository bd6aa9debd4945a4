import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from tests.tiny_bundles import CLASSES, manifest_of, scaling_onnx, scaling_segment
from toolkit.bundle.archive import write_archive
from toolkit.bundle.folder import open_bundle, write_bundle
from toolkit.cli.app import app
from toolkit.errors import BundleError, DataError, PartialError
from toolkit.export.calibrate import CURVE_FILE, calibrate
from toolkit.export.curve_svg import curve_svg
from toolkit.export.drop_bound import binomial_upper_bound, drop_upper_bound, samples_needed
from toolkit.export.kept_samples import (
    CALIBRATION_FILE,
    KeptSamples,
    encode_kept,
    read_kept,
    sample_ids,
)
from toolkit.export.temperature import fit_temperature, mean_nll
from toolkit.export.threshold_curve import choose_point, thresholds
from toolkit.runtime import load
from toolkit.runtime.samples import Samples

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def softmax(logits):
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def honest_logits(n, *, seed=0, spread=3.0):
    """Logits whose softmax is the truth: labels are drawn from it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (n, 3)).astype(np.float32)
    labels = np.asarray([rng.choice(3, p=row) for row in softmax(logits.astype(np.float64))])
    return logits, labels.astype(np.int64)


def right_of(logits, labels):
    return logits.argmax(1) == labels


def one_exit_bundle(folder, n=2000, *, reference=None, labelled=True, keeps=True):
    """Logits are the samples themselves; ``reference`` is the final route's logits for them."""
    x, labels = honest_logits(n)
    kept = KeptSamples(
        sample_ids(x),
        (x,),
        labels if labelled else None,
        None if reference is None else reference(x, labels),
        "" if reference is None else "the final route: layers of a test",
    )
    files = {"segment1.onnx": scaling_onnx(1.0)}
    if keeps:
        files[CALIBRATION_FILE] = encode_kept(kept)
    segment = msgspec.structs.replace(scaling_segment(1), n_macs=100)
    return write_bundle(folder, manifest_of(segment, n_macs_beyond=900), files), x, labels


def oracle(_, labels):
    """A final route that is always right."""
    return 9 * np.eye(3, dtype=np.float32)[labels]


def samples(x, labels=None):
    return Samples(tuple(map(str, range(len(x)))), x, labels)


# the bound


def test_the_bound_is_kept_in_19_of_20_cases():
    """Its whole meaning: the true drop lies above the bound in at most 5 % of cases (5.5 with the draws' own noise)."""
    bound = lru_cache(None)(drop_upper_bound)
    rng = np.random.default_rng(0)
    for n in (120, 300, 1000):
        for p_won in (0, 0.002, 0.03):
            for drop in (0.01, 0.05):
                draws = rng.multinomial(n, [p_won + drop, p_won, 1 - 2 * p_won - drop], size=3000)
                missed = np.mean([bound(int(lost), int(won), n) < drop for lost, won, _ in draws])
                assert missed <= 0.055, (n, p_won, drop)


def test_bounds_that_are_known():
    assert drop_upper_bound(0, 0, 299) < 0.01 < drop_upper_bound(0, 0, 298)
    assert samples_needed(0.01) == 299
    assert binomial_upper_bound(0, 10) == pytest.approx(1 - 0.05**0.1)
    assert binomial_upper_bound(5, 20) == pytest.approx(0.4556, abs=1e-4)
    assert binomial_upper_bound(7, 7) == 1
    # With many of both it comes to the plain normal bound.
    wald = (530 - 160) / 3000 + 1.6449 * np.sqrt(530 + 160 - (530 - 160) ** 2 / 3000) / 3000
    assert drop_upper_bound(530, 160, 3000) == pytest.approx(wald, abs=2e-4)
    assert drop_upper_bound(0, 30, 300) < 1e-9


# temperature


def test_a_known_temperature_is_found():
    logits, labels = honest_logits(20_000)
    for true in (0.5, 1.0, 4.0):
        assert fit_temperature(true * logits, labels) == pytest.approx(true, rel=0.05)
    best = fit_temperature(logits, labels)
    assert mean_nll(logits, labels, best) <= min(
        mean_nll(logits, labels, t) for t in (best * 0.97, best * 1.03)
    )


def test_a_perfect_exit_ends_at_the_ranges_end():
    labels = np.asarray([0, 1, 2] * 10)
    assert fit_temperature(np.eye(3, dtype=np.float32)[labels], labels) == pytest.approx(0.05, rel=1e-3)


# the promise


def test_the_promise_holds_on_samples_that_were_not_seen(tmp_path):
    bundle, _, _ = one_exit_bundle(tmp_path / "b", reference=oracle)
    done = calibrate(bundle, None, target_drop=2.0, now=lambda: NOW)
    point = done.record.curve[done.record.chosen]
    assert point.drop <= point.drop_upper <= 2.0
    assert 0.2 < point.exit_rate < 1
    x, labels = honest_logits(20_000, seed=5)
    answers = load(tmp_path / "b")(x)
    lost = ~answers.unsure & (answers.index != labels)
    assert 100 * lost.mean() < 2.0
    assert (~answers.unsure).mean() == pytest.approx(point.exit_rate, abs=0.03)


def test_what_is_found_is_written_with_where_it_comes_from(tmp_path):
    bundle, x, labels = one_exit_bundle(tmp_path / "b", reference=oracle)
    done = calibrate(bundle, None, target_drop=2.0, machine="a test machine", now=lambda: NOW)
    opened = open_bundle(tmp_path / "b")
    assert opened.digest == done.bundle.digest != bundle.digest
    policy = opened.manifest.segments[0].exit.policy
    record = opened.manifest.calibration
    point = record.curve[record.chosen]
    assert policy.threshold == point.threshold
    assert policy.temperature == done.temperatures[0] == pytest.approx(1, abs=0.1)
    assert "calibrated 2026-01-02 on 2000 held-out samples of dev1" in policy.origin
    assert (record.reference, record.reference_accuracy) == ("the final route: layers of a test", 1.0)
    assert (record.machine, record.n_samples, len(record.curve)) == ("a test machine", 2000, 100)
    measured = opened.manifest.segments[0].exit.measured
    assert measured.accuracy == right_of(x, labels).mean()
    assert measured.n_sure == round(point.exit_rate * 2000)
    assert "Calibrated 2026-01-02" in opened.read("README.md").decode()
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_the_curve_counts_what_runs(tmp_path):
    bundle, x, labels = one_exit_bundle(tmp_path / "b", reference=oracle)
    curve = calibrate(bundle, None, target_drop=50, now=lambda: NOW).record.curve
    for point in curve:
        assert point.mean_macs == pytest.approx(100 + 900 * (1 - point.exit_rate))
        assert point.accuracy == pytest.approx(1 - point.drop / 100)
        assert point.mean_ms > 0
    assert curve[-1].accuracy == pytest.approx(right_of(x, labels).mean(), abs=0.01)
    assert [p.exit_rate for p in curve] == sorted(p.exit_rate for p in curve)


def test_without_the_final_route_the_server_is_taken_to_be_always_right(tmp_path):
    known, _, _ = one_exit_bundle(tmp_path / "known", reference=oracle)
    unknown, _, _ = one_exit_bundle(tmp_path / "unknown")
    one = calibrate(known, None, target_drop=2.0, now=lambda: NOW).record
    other = calibrate(unknown, None, target_drop=2.0, now=lambda: NOW).record
    assert "server's accuracy is unknown" in other.reference
    assert other.reference_accuracy is None
    assert {p.accuracy for p in other.curve} == {None}
    assert [p.drop_upper for p in other.curve] == [p.drop_upper for p in one.curve]


def test_without_labels_the_final_routes_answers_are_the_truth(tmp_path):
    bundle, _, _ = one_exit_bundle(tmp_path / "b", reference=oracle, labelled=False)
    record = calibrate(bundle, None, target_drop=2.0, now=lambda: NOW).record
    assert "no labels" in record.reference
    nothing, _, _ = one_exit_bundle(tmp_path / "n", labelled=False)
    with pytest.raises(DataError, match="nothing to compare"):
        calibrate(nothing, None, target_drop=2.0)


def test_a_bad_final_route_lets_all_leave(tmp_path):
    bundle, _, _ = one_exit_bundle(tmp_path / "b", reference=lambda _, y: oracle(_, (y + 1) % 3))
    record = calibrate(bundle, None, target_drop=1.0, now=lambda: NOW).record
    point = record.curve[record.chosen]
    assert point.exit_rate > 0.99
    assert point.drop < -50


def test_given_samples_find_their_kept_reference_again(tmp_path):
    bundle, x, labels = one_exit_bundle(tmp_path / "b", reference=oracle)
    record = calibrate(
        bundle, samples(x[500:1500], labels[500:1500]), target_drop=2.0, now=lambda: NOW
    ).record
    assert (record.n_samples, record.reference_accuracy) == (1000, 1.0)
    strangers = honest_logits(1000, seed=9)
    record = calibrate(
        open_bundle(tmp_path / "b"), samples(*strangers), target_drop=2.0, now=lambda: NOW
    ).record
    assert "server's accuracy is unknown" in record.reference


def test_a_cascade_is_held_against_its_own_last_exit(tmp_path):
    n, (x, labels) = 1500, honest_logits(1500)
    segments = [
        msgspec.structs.replace(scaling_segment(1), n_macs=100),
        msgspec.structs.replace(scaling_segment(2, takes="h", activations=False), n_macs=1000),
    ]
    files = {"segment1.onnx": scaling_onnx(1.0), "segment2.onnx": scaling_onnx(5.0, takes="h")}
    bundle = write_bundle(tmp_path / "b", manifest_of(*segments), files)
    done = calibrate(bundle, samples(x, labels), target_drop=1.0, now=lambda: NOW)
    assert done.record.reference == "the last exit of the cascade"
    # Both exits answer alike, so all may leave at the first, and the second's temperature is five times the first's.
    assert done.record.curve[done.record.chosen].exit_rate > 0.99
    assert done.record.curve[0].mean_macs == pytest.approx(1100, abs=2)
    assert done.temperatures[1] == pytest.approx(5 * done.temperatures[0], rel=1e-3)
    assert {a.exit for a in load(tmp_path / "b")(x[:n])} == {"exit1"}


# honest about what can't be promised


def test_too_few_samples_are_told_with_the_number_needed(tmp_path):
    bundle, _, _ = one_exit_bundle(tmp_path / "b", n=298, reference=oracle)
    with pytest.raises(DataError, match=r"Too few samples: 298\..*at least 299") as caught:
        calibrate(bundle, None, target_drop=1.0)
    assert caught.value.facts == {"n_samples": 298, "needed": 299}
    assert open_bundle(tmp_path / "b").digest == bundle.digest


def test_where_nothing_can_be_promised_nothing_is_changed(tmp_path):
    rng = np.random.default_rng(1)
    x, labels = rng.normal(0, 1, (1000, 3)).astype(np.float32), rng.integers(0, 3, 1000)
    bundle, _, _ = one_exit_bundle(tmp_path / "b", keeps=False)
    with pytest.raises(PartialError, match="No threshold that lets samples leave"):
        calibrate(bundle, samples(x, labels), target_drop=1.0)
    assert open_bundle(tmp_path / "b").digest == bundle.digest


def test_the_walk_ends_at_the_first_bound_above_the_target(tmp_path):
    bundle, _, _ = one_exit_bundle(tmp_path / "b", reference=oracle)
    curve = calibrate(bundle, None, target_drop=2.0, now=lambda: NOW).record.curve
    broken = [*curve]
    broken[40] = msgspec.structs.replace(curve[40], exit_rate=0.4, drop_upper=3.0)
    broken[39] = msgspec.structs.replace(curve[39], exit_rate=0.3)
    assert choose_point(broken, 2.0) == 39
    assert choose_point(broken, 0.001) is None


@pytest.mark.parametrize("kind", ["entropy", "max_softmax", "margin"])
def test_the_grid_goes_from_strict_to_lax_within_the_policys_range(kind):
    grid = thresholds(kind)
    assert len(set(grid)) == 100
    assert 0 < grid.min() < grid.max() <= 1
    assert list(grid) == sorted(grid, reverse=kind != "entropy")


def test_bundles_that_cannot_be_calibrated(tmp_path):
    bundle, _, _ = one_exit_bundle(tmp_path / "b", keeps=False)
    with pytest.raises(BundleError, match="keeps no samples"):
        calibrate(bundle, None, target_drop=1.0)
    archive = write_archive(bundle, tmp_path / "b.hsee")
    with pytest.raises(BundleError, match="an archive, which is never changed"):
        calibrate(open_bundle(archive), None, target_drop=1.0)


def test_kept_samples_that_do_not_fit_are_refused(tmp_path):
    x, labels = honest_logits(10)
    wrong = encode_kept(KeptSamples(sample_ids(x), (x[:, :2],), labels, None))
    files = {"segment1.onnx": scaling_onnx(1.0), CALIBRATION_FILE: wrong}
    bundle = write_bundle(tmp_path / "b", manifest_of(scaling_segment(1)), files)
    with pytest.raises(BundleError, match="'exit0' is missing, or of another type or shape"):
        read_kept(bundle)


def test_the_drawing_is_plain_svg_that_runs_nothing(tmp_path):
    bundle, _, _ = one_exit_bundle(tmp_path / "b", reference=oracle)
    done = calibrate(bundle, None, target_drop=2.0, now=lambda: NOW)
    svg = done.bundle.read(CURVE_FILE).decode()
    tags = {element.tag.partition("}")[2] for element in ET.fromstring(svg).iter()}  # noqa: S314 - ours
    assert {"polyline", "polygon", "circle", "text"} <= tags
    assert not {"script", "image", "foreignObject", "a"} & tags
    assert "allowed: 2" in svg
    assert svg.count("http") == 1


def test_whoever_opens_the_file_alone_reads_the_threshold_that_holds(tmp_path):
    bundle, _, _ = one_exit_bundle(tmp_path / "b", reference=oracle)
    before = bundle.read("segment1.onnx")
    done = calibrate(bundle, None, target_drop=2.0, now=lambda: NOW)
    exit_ = done.bundle.manifest.segments[0].exit
    after = onnx.load_from_string(done.bundle.read("segment1.onnx"))
    properties = {entry.key: entry.value for entry in after.metadata_props}
    assert float(properties["hsee.threshold"]) == pytest.approx(exit_.policy.threshold, rel=1e-5)
    assert float(properties["hsee.temperature"]) == pytest.approx(exit_.policy.temperature, rel=1e-5)
    assert (properties["hsee.exit"], properties["hsee.policy"]) == (exit_.name, "entropy")
    again = calibrate(done.bundle, None, target_drop=5.0, now=lambda: NOW)
    entries = onnx.load_from_string(again.bundle.read("segment1.onnx")).metadata_props
    assert len(entries) == len(properties)  # replaced, not added
    del after.metadata_props[:]
    assert after.SerializeToString() == before


@pytest.mark.parametrize("target", [0.3, 1.0, 2.0, 60.0])
def test_the_drawings_axis_has_round_numbers_and_holds_what_matters(tmp_path, target):
    bundle, _, _ = one_exit_bundle(tmp_path / "b", reference=oracle)
    record = msgspec.structs.replace(calibrate(bundle, None, target_drop=60.0).record, target_drop=target)
    root = ET.fromstring(curve_svg(record))  # noqa: S314 - ours
    labels = [
        float(text.text)
        for text in root.iter("{http://www.w3.org/2000/svg}text")
        if text.get("text-anchor") == "end"
    ]
    steps = {round(b - a, 9) for a, b in pairwise(labels)}
    assert len(steps) == 1
    assert f"{steps.pop():e}"[0] in "125"
    assert 4 <= len(labels) <= 10
    assert labels[0] <= 0 < target <= labels[-1]


# the command


def test_calibrating_needs_no_torch():
    code = (
        "import sys, toolkit.cli.calibrate_commands, toolkit.export.calibrate, toolkit.profile.board\n"
        "sys.exit(bool({'torch', 'onnx', 'safetensors', 'paho'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_the_command_calibrates_and_tells(tmp_path):
    _, x, labels = one_exit_bundle(tmp_path / "b", reference=oracle)
    np.savez(tmp_path / "held.npz", x=x, y=labels, classes=np.asarray(CLASSES))
    words = ["calibrate", str(tmp_path / "b"), "--target-drop", "2"]
    plain = CliRunner().invoke(app, words)
    assert plain.exit_code == 0, plain.output
    assert "chosen" in plain.output
    assert "against the final route: layers of a test (100.0%)" in plain.output
    told = CliRunner().invoke(app, [*words, "--data", f"npz:{tmp_path / 'held.npz'}", "--archive", "--json"])
    facts = json.loads(told.output)
    assert facts["success"] is True
    assert facts["calibration"]["data"] == "samples of held.npz"
    assert facts["digest"] == open_bundle(tmp_path / "b").digest
    assert facts["digest"] == open_bundle(tmp_path / "b.hsee").digest
