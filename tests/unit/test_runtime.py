import msgspec
import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from tests.tiny_bundles import CLASSES, manifest_of, scaling_onnx, scaling_segment, write_tiny_bundle
from toolkit.bundle.folder import write_bundle
from toolkit.bundle.manifest import Preprocessing
from toolkit.cli.entry import main
from toolkit.errors import (
    BrokerUnreachableError,
    BundleError,
    DataError,
    ExitPolicyError,
    MachineError,
    ShapeError,
)
from toolkit.export.timing import in_turns
from toolkit.runtime import load
from toolkit.runtime.cascade import Cascade, Reply
from toolkit.runtime.exit_policy import normalised_entropy, probabilities
from toolkit.runtime.segment import OnnxSegment

SURE = [9, 0, 0]
SURE_AFTER_TEN = [0, 1, 0]
NEVER_SURE = [0, 0, 0.01]
X = np.asarray([NEVER_SURE, SURE, SURE_AFTER_TEN, SURE], np.float32)


@pytest.fixture
def batches(monkeypatch):
    """What each segment was given, by file."""
    seen = {}
    compute = OnnxSegment.compute

    def recorded(segment, x, names):
        seen.setdefault(segment.record.file, []).append(x.copy())
        return compute(segment, x, names)

    monkeypatch.setattr(OnnxSegment, "compute", recorded)
    return seen


def test_one_exit_answers_all_and_says_of_what_it_is_unsure(tmp_path):
    write_tiny_bundle(tmp_path / "b")
    answers = load(tmp_path / "b")(X)
    assert [a.label for a in answers] == ["cat", "ant", "bee", "ant"]
    assert [a.unsure for a in answers] == [True, False, True, False]
    assert {a.exit for a in answers} == {"exit1"}
    p = probabilities(X)
    np.testing.assert_allclose(answers.probability, p.max(1), rtol=1e-6)
    np.testing.assert_allclose(answers.entropy, normalised_entropy(p), rtol=1e-6)
    assert not answers.offloaded.any()
    assert not answers.fallback.any()
    assert (answers.ms > 0).all()


def test_only_unsure_samples_reach_the_next_segment(tmp_path, batches):
    write_tiny_bundle(tmp_path / "b", factors=(1.0, 10.0))
    answers = load(tmp_path / "b")(X)
    np.testing.assert_array_equal(batches["segment1.onnx"], [X])
    np.testing.assert_array_equal(batches["segment2.onnx"], [X[[0, 2]]])
    assert [a.exit for a in answers] == ["exit2", "exit1", "exit2", "exit1"]
    assert [a.label for a in answers] == ["cat", "ant", "bee", "ant"]
    assert [a.unsure for a in answers] == [True, False, False, False]


def test_an_exit_taken_is_work_not_done(tmp_path, batches):
    write_tiny_bundle(tmp_path / "b", factors=(1.0, 10.0))
    load(tmp_path / "b")(X[[1, 3]])
    assert list(batches) == ["segment1.onnx"]


def test_a_segment_without_an_exit_hands_all_on(tmp_path, batches):
    first = msgspec.structs.replace(scaling_segment(1), exit=None)
    second = scaling_segment(2, takes="h", activations=False)
    files = {"segment1.onnx": scaling_onnx(1.0), "segment2.onnx": scaling_onnx(10.0, takes="h")}
    write_bundle(tmp_path / "b", manifest_of(first, second), files)
    answers = load(tmp_path / "b")(X)
    np.testing.assert_array_equal(batches["segment2.onnx"], [X])
    assert [a.exit for a in answers] == ["exit2"] * 4


def test_the_batch_size_changes_no_answer(tmp_path):
    write_tiny_bundle(tmp_path / "b", factors=(1.0, 3.0, 10.0))
    model = load(tmp_path / "b")
    x = np.random.default_rng(3).normal(size=(64, 3)).astype(np.float32)
    whole = model(x)
    single = [model(sample)[0] for sample in x]
    assert [a.exit for a in whole] == [a.exit for a in single]
    assert len({a.exit for a in whole}) == 3
    assert [a.index for a in whole] == [a.index for a in single]
    np.testing.assert_allclose(whole.entropy, [a.entropy for a in single], atol=1e-6)


def test_raw_input_is_normalised_and_bytes_are_scaled(tmp_path, batches):
    manifest = manifest_of(
        scaling_segment(1),
        preprocessing=Preprocessing(mean=[1, 0, 0], std=[2, 1, 1], value_range=(0, 1)),
    )
    write_bundle(tmp_path / "b", manifest, {"segment1.onnx": scaling_onnx(1.0)})
    model = load(tmp_path / "b")
    model(np.asarray([[5, 0.5, 1]]))
    model(np.asarray([[255, 0, 51]], np.uint8))
    seen = np.concatenate(batches["segment1.onnx"])
    np.testing.assert_allclose(seen, [[2, 0.5, 1], [0, 0, 0.2]], rtol=1e-6)


def test_the_callers_policy_goes_before_the_bundles(tmp_path):
    write_tiny_bundle(tmp_path / "b")
    assert not load(tmp_path / "b", threshold=1.0)(X).unsure[2]
    assert load(tmp_path / "b", threshold=1e-9)(X).unsure.all()
    assert not load(tmp_path / "b", policy="max_softmax", threshold=0.3)(X).unsure.any()
    with pytest.raises(ExitPolicyError, match="threshold together"):
        load(tmp_path / "b", policy="margin")
    with pytest.raises(ExitPolicyError, match="threshold 2"):
        load(tmp_path / "b", threshold=2)


# offload


def at_once(*logits):
    """A coordinator that answers all, each in 5 ms."""
    return lambda _: (
        lambda: [Reply(None if one is None else np.asarray(one, np.float32), 5.0) for one in logits]
    )


def test_only_unsure_samples_are_offloaded_as_activations(tmp_path):
    asked = []

    def coordinator(h):
        asked.append(h)
        return lambda: [Reply(np.asarray([0, 0, 50], np.float32), 5000.0)] * len(h)

    bundle = write_tiny_bundle(tmp_path / "b", factors=(1.0, 10.0))
    answers = Cascade(bundle, offload=coordinator)(X)
    np.testing.assert_array_equal(asked, [X[[0]]])
    assert answers[0].exit == "coordinator"
    assert answers[0].label == "cat"
    assert answers[0].probability == pytest.approx(1)
    assert answers.offloaded.tolist() == [True, False, False, False]
    assert not answers.unsure.any()
    assert not answers.fallback.any()
    assert answers.ms[0] > 5000
    assert answers.ms[1:].max() < 5000


def unreachable(_):
    raise BrokerUnreachableError("The link was pulled.")


def pulled():
    raise BrokerUnreachableError("The link was pulled.")


@pytest.mark.parametrize(
    "coordinator",
    [
        unreachable,
        lambda _: pulled,
        at_once(None, None),
        at_once([0, 0], [0, 0]),
        at_once([0, 0, np.nan], [0, np.inf, 0]),
    ],
    ids=["unreachable", "pulled", "late", "wrong shape", "not finite"],
)
def test_no_usable_reply_leaves_the_exits_own_answer_marked(tmp_path, coordinator):
    bundle = write_tiny_bundle(tmp_path / "b")
    alone, answers = Cascade(bundle)(X), Cascade(bundle, offload=coordinator)(X)
    assert answers.fallback.tolist() == [True, False, True, False]
    assert answers.offloaded.tolist() == [True, False, True, False]
    assert answers.unsure.tolist() == [True, False, True, False]
    np.testing.assert_array_equal(answers.index, alone.index)
    np.testing.assert_array_equal(answers.exits, alone.exits)


def test_some_replies_may_come_and_others_not(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "b")
    answers = Cascade(bundle, offload=at_once(None, [50, 0, 0]))(X)
    assert [a.exit for a in answers] == ["exit1", "exit1", "coordinator", "exit1"]
    assert answers.fallback.tolist() == [True, False, False, False]
    assert answers[2].label == "ant"


def test_the_rest_of_the_batch_does_not_wait(tmp_path):
    waited = []

    def coordinator(h):
        return lambda: waited.append(len(h)) or [Reply(np.asarray([50, 0, 0], np.float32), 1.0)] * len(h)

    begun = Cascade(write_tiny_bundle(tmp_path / "b"), offload=coordinator).begin(X)
    assert waited == []
    assert begun.waiting.tolist() == [0, 2]
    assert [begun.answers[i].label for i in (1, 3)] == ["ant", "ant"]
    assert [a.label for a in begun.finish()] == ["ant"] * 4
    assert begun.finish() is begun.answers
    assert waited == [2]


def test_the_end_of_the_network_is_not_offloaded(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "b", factors=(1.0, 10.0), ends=True)
    answers = Cascade(bundle, offload=unreachable)(X)
    assert not answers.offloaded.any()
    assert answers[0].exit == "exit2"


# bad input


def test_wrong_samples_say_what_was_expected(tmp_path):
    write_tiny_bundle(tmp_path / "b")
    model = load(tmp_path / "b")
    with pytest.raises(ShapeError, match=r"shape \(3,\).*given \(4,\)") as caught:
        model(np.zeros((2, 4), np.float32))
    assert caught.value.facts == {"expected": (3,), "got": (4,)}
    with pytest.raises(DataError, match="int64"):
        model(np.zeros((2, 3), np.int64))
    bad = X.copy()
    bad[2, 1] = np.nan
    with pytest.raises(DataError, match="Sample 2"):
        model(bad)
    with pytest.raises(DataError, match="it was given a list"):
        model([[1.0, 2.0, 3.0]])
    assert len(model(X[:0])) == 0


def test_logits_that_overflow_name_the_sample(tmp_path):
    write_tiny_bundle(tmp_path / "b", factors=(1.0, 1e30))
    x = np.asarray([SURE, [1e20, 1e20, 1e20]], np.float32)
    model = load(tmp_path / "b")
    with pytest.raises(DataError, match="sample 1 of the batch are not finite"):
        model(x)
    with pytest.raises(DataError, match="sample 0 of the batch are not finite"):
        model(x[1])
    assert model(x[0])[0].label == "ant"


def test_one_sample_is_offloaded_as_a_batch_is(tmp_path):
    bundle = write_tiny_bundle(tmp_path / "b")
    model = Cascade(bundle, offload=at_once([0, 50, 0]))
    begun = model.begin(X[0])
    assert begun.waiting.tolist() == [0]
    assert begun.answers[0].exit == "exit1"
    answer = begun.finish()[0]
    assert (answer.label, answer.exit, answer.unsure, answer.offloaded) == ("bee", "coordinator", False, True)
    sure = model.begin(X[1])
    assert sure.waiting.size == 0
    assert not sure.finish().offloaded.any()
    lost = Cascade(bundle, offload=unreachable)(X[0])[0]
    assert (lost.exit, lost.unsure, lost.fallback) == ("exit1", True, True)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"no model", "is no ONNX file"),
        (scaling_onnx(1.0)[:-20], "is no ONNX file"),
        (scaling_onnx(1.0).replace(b"Mul", b"Abs"), "can't load"),
        (scaling_onnx(1.0, takes="picture"), "no input 'image', only picture"),
        (scaling_onnx(1.0, width=4), r"shape \['batch', 4\], not a free batch axis and then \[3\]"),
        (scaling_onnx(1.0, batch=1), "not a free batch axis"),
    ],
)
def test_a_file_that_is_not_what_the_manifest_says(tmp_path, capfd, content, complaint):
    bundle = write_bundle(tmp_path / "b", manifest_of(scaling_segment(1)), {"segment1.onnx": content})
    with pytest.raises(BundleError, match=complaint) as caught:
        Cascade(bundle)
    assert caught.value.facts["file"] == "segment1.onnx"
    assert capfd.readouterr() == ("", "")


def test_a_gate_is_cheap(tmp_path):
    """Issue 6 allows 30 us a gate over the calls into ONNX Runtime, on a quiet machine; three times that fails here."""
    bundle = write_tiny_bundle(tmp_path / "b")
    model = Cascade(bundle)
    segment = OnnxSegment(bundle.read("segment1.onnx"), bundle.manifest.segments[0], where="segment1.onnx")
    logits = bundle.manifest.segments[0].exit.logits

    taken = in_turns([lambda: model(X[:1]), lambda: segment.run(X[:1], logits)], n_times=3000)
    gated_us, bare_us = (min(seconds) * 1e6 for seconds in taken)
    assert gated_us - bare_us < 3 * 30
    assert model.class_names == CLASSES


def test_no_memory_is_one_sentence_whenever_it_runs_out(tmp_path, monkeypatch, capsys):
    bundle = write_tiny_bundle(tmp_path / "b")
    source = tmp_path / "x.csv"
    source.write_text("9,0,0\n")

    def runs_out(*_, **__):
        raise MemoryError

    monkeypatch.setattr(OnnxSegment, "compute", runs_out)
    assert main(["infer", str(bundle.folder), str(source)]) == 6
    assert "not enough memory for this bundle and a batch" in capsys.readouterr().err
    monkeypatch.setattr("toolkit.cli.entry._run", runs_out)
    assert main(["infer", str(bundle.folder), str(source), "--json"]) == 6
    assert "too little free memory" in capsys.readouterr().out


def test_no_memory_to_load_is_not_the_bundles_fault(tmp_path, monkeypatch):
    bundle = write_tiny_bundle(tmp_path / "b")

    def runs_out(*_, **__):
        raise ort_errors.RuntimeException("bfc_arena.cc: Failed to allocate memory for requested buffer")

    monkeypatch.setattr("onnxruntime.InferenceSession", runs_out)
    with pytest.raises(MachineError, match=r"not enough memory to load .*segment1\.onnx"):
        Cascade(bundle)
