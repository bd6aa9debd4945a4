"""The exported file is the trained model (promises.md, O6), and says so honestly."""

import json
import logging
from datetime import UTC, datetime

import numpy as np
import onnx
import pytest
import torch

from toolkit.bundle.folder import open_bundle
from toolkit.errors import BundleError, CheckpointError, DataNotFoundError
from toolkit.export import pieces as export
from toolkit.export import quantize
from toolkit.export.chain import exits_of_bundle, load_chain
from toolkit.export.final_route import ServerWeights
from toolkit.export.kept_samples import read_kept, sample_ids
from toolkit.export.onnx import export_held
from toolkit.export.parity import check_parity
from toolkit.export.pieces import ExportOptions
from toolkit.nn.cut import take_suffix
from toolkit.nn.segment_record import HELD_OUT_FILE, RECORD_FILE, WEIGHTS_FILE, SegmentRecord, encode_record
from toolkit.nn.server_exits import build_server_exits, take_suffix_with
from toolkit.nn.steps import build_device_model, device_step
from toolkit.nn.weights import save_tensors
from toolkit.nn.zoo import build_network
from toolkit.runtime import load
from toolkit.runtime.cascade import Reply
from toolkit.runtime.preprocess import normalise
from toolkit.runtime.samples import Samples
from toolkit.wire.job import Job, ModelSpec

CLASSES = ["cross", "ring", "bar"]


def patterns(n, shape, seed):
    """Samples of three patterns, some clear and some nearly noise: easy ones to be sure of, hard ones to confuse."""
    rng = np.random.default_rng(seed)
    prototypes = np.random.default_rng(7).random((3, *shape))
    y = rng.integers(0, 3, n)
    clear = rng.random((n, *[1] * len(shape)))
    x = clear * prototypes[y] + (1 - clear) * rng.random((n, *shape))
    return x.astype(np.float32), y.astype(np.int64)


def held_folder(folder, *, model, cut, exit_head="pooled", n_held=300, all_exits=False):
    shape = tuple(model.input_shape)
    n_channels = shape[0]
    job = Job(
        run="run1",
        model=model,
        cut=cut,
        classes=CLASSES,
        mean=[0.5] * n_channels,
        std=[0.25] * n_channels,
        seed=3,
        rounds=2,
        batch_size=16,
        exit_head=exit_head,
        all_exits=all_exits,
    )
    device = build_device_model(
        model, cut=cut, exit_head=exit_head, optimizer=job.optimizer, seed=3, all_exits=all_exits
    )
    x, y = patterns(640, shape, 1)
    for step in range(40):
        rows = slice(step * 16, step * 16 + 16)
        batch = torch.from_numpy(normalise(x[rows], job.mean, job.std))
        device_step(device, batch, torch.from_numpy(y[rows]), seed=step)
    folder.mkdir()
    save_tensors(folder / WEIGHTS_FILE, device.modules.state_dict())
    record = SegmentRecord(
        device="dev1",
        job=job,
        round=2,
        exit_accuracy=0.5,
        n_eval=n_held,
        software={"torch": str(torch.__version__)},
    )
    (folder / RECORD_FILE).write_bytes(encode_record(record))
    x, y = patterns(n_held, shape, 2)
    np.savez(folder / HELD_OUT_FILE, x=x, y=y)
    device.segment.eval()
    device.exit_head.eval()
    with torch.no_grad():
        h = device.segment(torch.from_numpy(normalise(x, job.mean, job.std)))
        return x, y, h.numpy(), device.exit_head(h).numpy()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    spec = ModelSpec(name="resnet_small", input_shape=[1, 8, 8], n_classes=3, options={"width": 8})
    x, y, _, logits = held_folder(root / "held", model=spec, cut="layer1")
    report = export_held(root / "held", root / "bundle", now=lambda: datetime(2026, 1, 2, tzinfo=UTC))
    return root, report, x, y, logits


def test_the_bundle_answers_what_the_trained_model_answers(exported):
    root, report, x, y, logits = exported
    answers = load(root / "bundle")(x)
    np.testing.assert_array_equal(answers.index, logits.argmax(1))
    accuracy = float((logits.argmax(1) == y).mean())
    assert 0.5 < accuracy < 1
    assert report.segments[0].accuracy == report.segments[0].torch_accuracy == accuracy
    assert report.segments[0].parity.n_samples == report.n_samples == 300
    assert report.segments[0].parity.max_difference <= 1e-4
    assert report.segments[0].n_sure == np.count_nonzero(~answers.unsure)
    right = answers.index == y
    assert report.segments[0].sure_accuracy == pytest.approx(float(right[~answers.unsure].mean()))
    assert 1 - report.segments[0].sure_accuracy <= (1 - accuracy) / 2


def test_activations_are_those_of_the_cut(tmp_path):
    spec = ModelSpec(name="mlp", input_shape=[6], n_classes=3, options={"width": 16})
    x, _, h, logits = held_folder(tmp_path / "held", model=spec, cut="hidden2")
    report = export_held(tmp_path / "held", tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    [segment] = bundle.manifest.segments
    assert (segment.first_stage, segment.last_stage) == ("hidden1", "hidden2")
    seen = []

    def unanswered(a):
        seen.append(a)
        return lambda: [Reply(None, 0.0)] * len(a)

    answers = load(tmp_path / "bundle", threshold=1e-9, offload=unanswered)(x)
    np.testing.assert_allclose(seen[0], h, atol=1e-4)
    np.testing.assert_array_equal(answers.index, logits.argmax(1))
    assert report.segments[0].parity.max_activation_difference == pytest.approx(
        np.abs(seen[0] - h).max(), abs=1e-5
    )


def test_a_convolutional_exit_and_colour(tmp_path):
    spec = ModelSpec(name="resnet18", input_shape=[3, 16, 16], n_classes=3, options={"width": 4})
    x, _, _, logits = held_folder(tmp_path / "held", model=spec, cut="layer2", exit_head="conv", n_held=40)
    report = export_held(tmp_path / "held", tmp_path / "bundle")
    np.testing.assert_array_equal(load(tmp_path / "bundle")(x).index, logits.argmax(1))
    assert "too few" in report.segments[0].threshold_origin


def test_the_manifest_says_where_all_comes_from(exported):
    root, report, x, _, _ = exported
    manifest = open_bundle(root / "bundle").manifest
    assert manifest.class_names == CLASSES
    assert manifest.input_shape == (1, 8, 8)
    assert manifest.preprocessing.value_range == (x.min(), x.max())
    made = manifest.provenance
    assert (made.run, made.device, made.cut, made.round) == ("run1", "dev1", "layer1", 2)
    assert made.created == "2026-01-02T00:00:00+00:00"
    assert made.software["export.torch"] == torch.__version__
    [segment] = manifest.segments
    assert segment.exit.policy.threshold == report.segments[0].threshold
    assert segment.exit.measured.accuracy == report.segments[0].accuracy
    assert manifest.files[report.segments[0].file].sha256 == report.segments[0].sha256
    assert manifest.files[report.segments[0].file].n_bytes == report.segments[0].n_bytes
    assert segment.opset == report.segments[0].opset


def test_the_file_is_readable_elsewhere_and_names_no_path_of_this_machine(exported):
    root, report, _, _, _ = exported
    path = root / "bundle" / report.segments[0].file
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [port.name for port in proto.graph.input] == ["image"]
    assert [port.name for port in proto.graph.output] == ["activations", "logits"]
    properties = {p.key: p.value for p in proto.metadata_props}
    assert json.loads(properties["names"]) == CLASSES
    assert json.loads(properties["imgsz"]) == [8, 8]
    assert json.loads(properties["mean"]) == [0.5]
    assert float(properties["hsee.accuracy"]) == pytest.approx(report.segments[0].accuracy, abs=1e-6)
    assert float(properties["hsee.threshold"]) == pytest.approx(report.segments[0].threshold, rel=1e-5)
    assert {"hsee.run_id", "hsee.exit", "hsee.cut", "hsee.version", "std"} <= set(properties)
    assert not any("BatchNorm" in node.op_type for node in proto.graph.node)
    content = path.read_bytes()
    for trace in (b".py", b"/toolkit/", b"site-packages"):
        assert trace not in content


def test_the_exporter_keeps_quiet(tmp_path, capfd, caplog, recwarn):
    spec = ModelSpec(name="mlp", input_shape=[6], n_classes=3, options={"width": 16})
    held_folder(tmp_path / "held", model=spec, cut="hidden1", n_held=20)
    export_held(tmp_path / "held", tmp_path / "bundle")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    # torch's handler holds the stderr of its import, which capfd does not see.
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_other_samples_may_be_given_and_labels_may_be_missing(exported, tmp_path):
    root, _, x, _, _ = exported
    given = Samples(tuple(map(str, range(50))), x[:50], None)
    report = export_held(root / "held", tmp_path / "bundle", data=given)
    assert (
        report.segments[0].accuracy
        is report.segments[0].torch_accuracy
        is report.segments[0].sure_accuracy
        is None
    )
    assert report.segments[0].parity.n_samples == 50
    assert report.segments[0].threshold == 0.5
    assert open_bundle(tmp_path / "bundle").manifest.segments[0].exit.measured is None


def test_samples_beyond_the_cap_are_picked_from_the_whole_source(exported, tmp_path, monkeypatch):
    root, _, x, y, _ = exported
    order = np.argsort(y, kind="stable")
    sorted_by_class = Samples(tuple(map(str, order)), x[order], y[order])
    monkeypatch.setattr(export, "MAX_SAMPLES", 30)
    picked = export._at_most(sorted_by_class, export.MAX_SAMPLES)
    assert np.bincount(picked.labels, minlength=3).min() >= 5
    assert export_held(root / "held", tmp_path / "bundle", data=sorted_by_class).n_samples == 30


def test_folders_that_hold_no_whole_segment(exported, tmp_path):
    root = exported[0]
    with pytest.raises(CheckpointError, match="holds no trained segment"):
        export_held(tmp_path, tmp_path / "bundle")
    broken = tmp_path / "held"
    broken.mkdir()
    for name in (RECORD_FILE, WEIGHTS_FILE):
        (broken / name).write_bytes((root / "held" / name).read_bytes())
    with pytest.raises(DataNotFoundError, match="held_out"):
        export_held(broken, tmp_path / "bundle")
    save_tensors(broken / WEIGHTS_FILE, {"segment.other": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="not of the model"):
        export_held(broken, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


# the coordinator's layers, int8, archive


@pytest.fixture(scope="module")
def server():
    """Another network's layers after every cut: the coordinator's, as a checkpoint names them."""
    spec = ModelSpec(name="mlp", input_shape=[6], n_classes=3, options={"width": 16})
    network = build_network(spec, seed=11).eval()
    suffix = take_suffix(network, "hidden1")
    return spec, network, ServerWeights(suffix.state_dict(), "the coordinator's layers of round 2")


def through(network, cut, h):
    with torch.no_grad():
        return take_suffix(network, cut)(torch.from_numpy(h)).numpy()


def test_the_final_routes_answers_are_kept_to_calibrate_against(server, tmp_path):
    spec, network, weights = server
    x, y, h, logits = held_folder(tmp_path / "held", model=spec, cut="hidden2")
    report = export_held(tmp_path / "held", tmp_path / "bundle", server=weights)
    kept = read_kept(open_bundle(tmp_path / "bundle"))
    expected = through(network, "hidden2", h)
    np.testing.assert_allclose(kept.reference, expected, atol=1e-5)
    np.testing.assert_allclose(kept.exits[0], logits, atol=1e-4)
    np.testing.assert_array_equal(kept.labels, y)
    np.testing.assert_array_equal(kept.ids, sample_ids(x))
    assert kept.reference_origin.endswith("through the coordinator's layers of round 2")
    assert report.reference_accuracy == (expected.argmax(1) == y).mean()
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.segments[0].n_macs == 6 * 16 + 16 * 16 + 16 * 3
    assert manifest.n_macs_beyond == 2 * 16 * 16 + 16 * 3


def test_a_full_bundle_is_the_device_and_then_the_coordinator(server, tmp_path):
    spec, network, weights = server
    x, _, h, logits = held_folder(tmp_path / "held", model=spec, cut="hidden2")
    options = ExportOptions(archive=True)
    report = export_held(tmp_path / "held", tmp_path / "bundle", server=weights, full=True, options=options)
    assert [s.exit for s in report.segments] == ["hidden2", "final"]
    assert [s.stages for s in report.segments] == [("hidden1", "hidden2"), ("hidden3", "hidden4")]
    assert max(s.parity.max_difference for s in report.segments) <= 1e-4
    to_the_end = load(report.archive, threshold=1e-9)(x)
    assert {a.exit for a in to_the_end} == {"final"}
    np.testing.assert_array_equal(to_the_end.index, through(network, "hidden2", h).argmax(1))
    at_once = load(tmp_path / "bundle", threshold=1.0)(x)
    assert {a.exit for a in at_once} == {"hidden2"}
    np.testing.assert_array_equal(at_once.index, logits.argmax(1))
    assert open_bundle(report.archive).digest == open_bundle(tmp_path / "bundle").digest
    with pytest.raises(CheckpointError, match="needs the coordinator's layers"):
        export_held(tmp_path / "held", tmp_path / "other", full=True)


def test_exits_that_the_server_trained_are_the_middle_of_a_full_bundle(server, tmp_path):
    spec, network, _ = server
    x, _, h, _ = held_folder(tmp_path / "held", model=spec, cut="hidden1")
    heads = build_server_exits(
        network, spec, ["hidden2", "hidden4"], exit_head="pooled", seed=5, behind="hidden1"
    )
    suffix = take_suffix_with(network, "hidden1", heads).eval()
    weights = ServerWeights(suffix.state_dict(), "the coordinator", exits=["hidden2", "hidden4"])
    report = export_held(tmp_path / "held", tmp_path / "bundle", server=weights, full=True)
    assert [(s.exit, s.stages) for s in report.segments] == [
        ("hidden1", ("hidden1",)),
        ("hidden2", ("hidden2",)),
        ("hidden4", ("hidden3", "hidden4")),
        ("final", ("classifier",)),
    ]
    assert max(s.parity.max_difference for s in report.segments) <= 1e-4
    with torch.no_grad():
        final, exits = suffix.with_exits(torch.from_numpy(h))
    by_exit = {**exits, "final": final}
    bundle = open_bundle(tmp_path / "bundle")
    chain = load_chain(bundle)
    _, *behind = exits_of_bundle(chain, bundle, x)
    for name, logits in zip(["hidden2", "hidden4", "final"], behind, strict=True):
        np.testing.assert_allclose(logits, by_exit[name].numpy(), atol=1e-4)
    # A deeper device takes those behind its own cut, and no others.
    held_folder(tmp_path / "deeper", model=spec, cut="hidden2", n_held=20)
    deeper = export_held(tmp_path / "deeper", tmp_path / "other", server=weights, full=True)
    assert [s.exit for s in deeper.segments] == ["hidden2", "hidden4", "final"]
    # Without --full nothing of the server's leaves it but the reference's logits.
    alone = export_held(tmp_path / "held", tmp_path / "alone", server=weights)
    assert [s.exit for s in alone.segments] == ["hidden1"]
    np.testing.assert_allclose(read_kept(open_bundle(tmp_path / "alone")).reference, final.numpy(), atol=1e-5)


def test_a_device_that_trained_exits_at_every_stage_has_a_cascade_of_its_own(tmp_path):
    spec = ModelSpec(name="mlp", input_shape=[6], n_classes=3, options={"width": 16})
    x, _, h, logits = held_folder(tmp_path / "held", model=spec, cut="hidden2", all_exits=True)
    report = export_held(tmp_path / "held", tmp_path / "bundle")
    assert [(s.exit, s.stages) for s in report.segments] == [
        ("hidden1", ("hidden1",)),
        ("hidden2", ("hidden2",)),
    ]
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.provenance.cut == "hidden2"
    np.testing.assert_allclose(exits_of_bundle(load_chain(bundle), bundle, x)[1], logits, atol=1e-4)
    seen = []

    def unanswered(a):
        seen.append(a)
        return lambda: [Reply(None, 0.0)] * len(a)

    load(tmp_path / "bundle", threshold=1e-9, offload=unanswered)(x)
    np.testing.assert_allclose(seen[0], h, atol=1e-4)


def test_another_networks_layers_are_refused(server, tmp_path):
    spec, _, weights = server
    held_folder(tmp_path / "held", model=spec, cut="hidden1", n_held=20)
    wrong = {name: tensor for name, tensor in weights.tensors.items() if "hidden3" not in name}
    with pytest.raises(CheckpointError, match="not those of mlp after hidden1"):
        export_held(tmp_path / "held", tmp_path / "bundle", server=ServerWeights(wrong, "somewhere"))
    assert not (tmp_path / "bundle").exists()


def test_int8_stands_beside_float32_and_what_runs_is_what_is_measured(exported, tmp_path, monkeypatch):
    root, _, x, y, _ = exported
    # This model is so small that float32 is faster; which is chosen is the matter of test_quantize.py.
    monkeypatch.setattr(quantize, "choose", lambda **_: ("int8", "because a test says so"))
    options = ExportOptions(int8=True)
    [segment] = export_held(root / "held", tmp_path / "bundle", options=options).segments
    bundle = open_bundle(tmp_path / "bundle")
    [record] = bundle.manifest.segments
    assert (record.default, record.default_reason) == ("int8", "because a test says so")
    assert [v.name for v in record.variants] == ["float32", "int8"]
    for variant in record.variants:
        answers = load(tmp_path / "bundle", variant=variant.name)(x)
        assert (answers.index == y).mean() == pytest.approx(variant.accuracy)
    assert segment.int8.n_bytes == bundle.manifest.files[record.file_of("int8")].n_bytes
    by_default = load(tmp_path / "bundle")(x)
    assert segment.accuracy == record.variants[1].accuracy == pytest.approx((by_default.index == y).mean())
    assert record.exit.measured.n_sure == np.count_nonzero(~by_default.unsure)
    np.testing.assert_array_equal(read_kept(bundle).exits[0].argmax(1), by_default.index)
    proto = onnx.load(tmp_path / "bundle" / record.file_of("int8"))
    assert {"hsee.exit", "names"} <= {p.key for p in proto.metadata_props}


# the check itself


def compared(**changes):
    logits = np.asarray([[1.0, 0.0], [0.0, 1.5e-4]], np.float32)
    h = np.asarray([[3.0], [4.0]], np.float32)
    same = {"torch_logits": logits, "onnx_logits": logits, "torch_activations": h, "onnx_activations": h}
    return check_parity(**{**same, **changes})


def test_equal_runs_pass_and_near_ties_are_counted():
    parity = compared()
    assert (parity.n_samples, parity.n_excluded, parity.max_difference) == (2, 1, 0)
    swapped = np.asarray([[1.0, 0.0], [0.9e-4, 0.7e-4]], np.float32)
    assert compared(onnx_logits=swapped).n_excluded == 1


@pytest.mark.parametrize("value", [1.0002, np.nan, np.inf])
def test_logits_that_differ_fail_naming_the_sample(value):
    with pytest.raises(BundleError, match="not the trained one: its logits differ") as caught:
        compared(onnx_logits=np.asarray([[1.0, 0.0], [0.0, value]], np.float32))
    assert caught.value.facts["sample"] == 1


def test_activations_are_held_to_the_same():
    with pytest.raises(BundleError, match="activations differ"):
        compared(onnx_activations=np.asarray([[3.0], [4.001]], np.float32))
    with pytest.raises(BundleError, match="activations differ"):
        compared(onnx_activations=np.asarray([[3.0], [np.nan]], np.float32))


def test_an_export_that_is_not_the_model_writes_no_bundle(exported, tmp_path, monkeypatch):
    root = exported[0]
    to_onnx = export.to_onnx

    def nudged(piece, input_shape, **names):
        with torch.no_grad():
            bias = piece.exit_head.fc.bias
            bias += 1e-3
            proto = to_onnx(piece, input_shape, **names)
            bias -= 1e-3
        return proto

    monkeypatch.setattr(export, "to_onnx", nudged)
    with pytest.raises(BundleError, match=r"logits differ by 0\.001"):
        export_held(root / "held", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
