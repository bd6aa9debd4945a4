"""Curves of accuracy, exits, bytes and compute against the threshold, over a fleet whose answers are made up."""

import numpy as np
import pytest

from toolkit.export.temperature import fit_temperature
from toolkit.runtime.exit_policy import accepts
from toolkit.simulate.evaluate import Answers, DeviceAnswers, EvaluatedRun
from toolkit.simulate.inference import trace_inference
from toolkit.simulate.results import keep_inference, kept_inference
from toolkit.wire.job import Job, ModelSpec
from toolkit.wire.tensors import activation_bytes

WIDTH, FEATURES, CLASSES = 8, 5, 3


def job(cut):
    return Job(
        run="made",
        model=ModelSpec(
            name="mlp", input_shape=[FEATURES], n_classes=CLASSES, options={"width": WIDTH, "depth": 3}
        ),
        cut=cut,
        classes=["a", "b", "c"],
        mean=[0.0] * FEATURES,
        std=[1.0] * FEATURES,
        seed=0,
        rounds=1,
        batch_size=8,
        codec="float16",
    )


def answers(rng, n, *, exit_sharpness, server_right=0.95):
    """An exit as often right as it is sure, and a server that errs on its own."""
    labels = rng.integers(0, CLASSES, n)
    easy = rng.random(n) < 0.6
    exits = rng.normal(0, 0.5, (n, CLASSES)).astype(np.float32)
    exits[np.arange(n), labels] += np.where(easy, exit_sharpness, 0)
    server = np.full((n, CLASSES), -2, np.float32)
    said = np.where(rng.random(n) < server_right, labels, (labels + 1) % CLASSES)
    server[np.arange(n), said] = 2
    return Answers({"exit": exits, "server": server}, labels)


def fleet(n_own=400, n_common=300, *, devices=("dev1", "dev2", "dev3"), common=True):
    rng = np.random.default_rng(0)
    cuts = {"dev1": "hidden1", "dev2": "hidden2", "dev3": "hidden1"}
    return EvaluatedRun(
        answers={
            d: DeviceAnswers(
                answers(rng, n_own, exit_sharpness=6 + i),
                answers(rng, n_common, exit_sharpness=6) if common else None,
            )
            for i, d in enumerate(devices)
        },
        jobs={d: job(cuts[d]) for d in devices},
        activation_shapes={d: [WIDTH] for d in devices},
        digests={},
        server_digest="",
    )


def test_a_point_is_what_the_devices_would_do_one_by_one():
    run = fleet()
    shallow, deep = trace_inference(run, target_drop=2.0)
    assert (shallow.cut, shallow.devices) == ("hidden1", ["dev1", "dev3"])
    assert (deep.cut, deep.devices) == ("hidden2", ["dev2"])
    own = run.answers["dev2"].own
    server = own.logits["server"].argmax(axis=1)
    temperature = fit_temperature(own.logits["exit"], own.labels)
    rates = []
    for point in deep.held_out[::9]:
        sure = accepts(own.logits["exit"], threshold=point.threshold, temperature=temperature)
        said = np.where(sure, own.logits["exit"].argmax(axis=1), server)
        assert point.exit_rate == pytest.approx(sure.mean())
        assert point.accuracy == pytest.approx((said == own.labels).mean())
        assert point.drop == pytest.approx(
            100 * ((server == own.labels).mean() - (said == own.labels).mean())
        )
        assert point.up_bytes == pytest.approx((1 - sure.mean()) * activation_bytes(WIDTH, "float16"))
        rates.append(point.exit_rate)
    assert rates == sorted(rates)
    assert rates[0] < 0.1
    assert rates[-1] > 0.9


def test_compute_is_counted_on_both_sides_of_the_cut():
    shallow, deep = trace_inference(fleet(), target_drop=2.0)
    exits = WIDTH * CLASSES
    assert shallow.held_out[0].device_macs == FEATURES * WIDTH + exits
    assert deep.held_out[0].device_macs == FEATURES * WIDTH + WIDTH * WIDTH + exits
    point = deep.held_out[50]
    behind = WIDTH * WIDTH + WIDTH * CLASSES
    assert point.server_macs == pytest.approx((1 - point.exit_rate) * behind)


def test_the_chosen_threshold_keeps_the_target_and_the_test_set_has_no_say():
    run = fleet()
    for found in trace_inference(run, target_drop=2.0):
        assert found.chosen is not None
        assert found.held_out[found.chosen].drop_upper <= 2.0 < found.held_out[found.chosen + 1].drop_upper
        assert found.held_out[found.chosen].exit_rate > 0.2
        assert [p.threshold for p in found.test] == [p.threshold for p in found.held_out]
        assert found.n_test == 300 * len(found.devices)
    alone = trace_inference(fleet(common=False), target_drop=2.0)
    assert all(f.test == [] and f.n_test == 0 and f.chosen is not None for f in alone)


def test_too_few_samples_are_told_and_nothing_is_promised():
    (found,) = trace_inference(fleet(n_own=100, devices=("dev2",)), target_drop=1.0)
    assert found.chosen is None
    assert found.why_none == "too few samples: 100, needs 299"


def test_curves_are_kept_and_read_again(tmp_path):
    curves = trace_inference(fleet(), target_drop=2.0)
    assert kept_inference(tmp_path) == []
    keep_inference(tmp_path, curves)
    assert kept_inference(tmp_path) == curves
