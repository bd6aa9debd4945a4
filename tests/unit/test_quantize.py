import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from toolkit.bundle.manifest import Exit, PolicyRecord, Port, Segment
from toolkit.errors import BundleError
from toolkit.export.quantize import choose, compare_int8, to_int8
from toolkit.runtime.segment import OnnxSegment

WIDTH = 64
FAST = {"ms": 1.0, "float_ms": 2.0, "n_samples": 1000, "target_drop": 1.0}


def two_layers():
    """A matrix product to activations, and one to three logits, with real weights."""
    rng = np.random.default_rng(0)
    first = rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
    second = rng.normal(0, WIDTH**-0.5, (WIDTH, 3)).astype(np.float32)
    port = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["image", "first"], ["product"]),
            helper.make_node("Relu", ["product"], ["activations"]),
            helper.make_node("MatMul", ["activations", "second"], ["logits"]),
        ],
        "two",
        [port("image", TensorProto.FLOAT, ["batch", WIDTH])],
        [
            port("activations", TensorProto.FLOAT, ["batch", WIDTH]),
            port("logits", TensorProto.FLOAT, ["batch", 3]),
        ],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString(), first, second


RECORD = Segment(
    file="segment1.onnx",
    first_stage="a",
    last_stage="b",
    input=Port(name="image", shape=(WIDTH,)),
    activations=Port(name="activations", shape=(WIDTH,)),
    exit=Exit(
        name="b", logits=Port(name="logits", shape=(3,)), policy=PolicyRecord(threshold=0.5, origin="a test")
    ),
)


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(1).normal(size=(600, WIDTH)).astype(np.float32)


def test_int8_is_int8_and_says_nearly_the_same(samples):
    content, first, second = two_layers()
    quantised = to_int8(content, samples[:100], input_name="image")
    model = onnx.load_from_string(quantised)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    weights = [i for i in model.graph.initializer if i.data_type == TensorProto.INT8 and len(i.dims) == 2]
    assert len(weights) == 2
    scales = [i for i in model.graph.initializer if "scale" in i.name and list(i.dims) == [WIDTH]]
    assert scales, "weights have a scale a channel"
    logits, h = OnnxSegment(quantised, RECORD, where="int8").run(
        samples, RECORD.exit.logits, RECORD.activations
    )
    expected_h = np.maximum(samples @ first, 0)
    assert np.abs(h - expected_h).mean() < 0.01 * expected_h.max()
    assert 0 < np.abs(logits - expected_h @ second).mean() < 0.05


def test_quantising_says_nothing(samples, caplog, capfd):
    to_int8(two_layers()[0], samples[:10], input_name="image")
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger().disabled


def test_what_cannot_be_quantised_is_a_bundle_error(samples):
    with pytest.raises(BundleError, match="can't quantise"):
        to_int8(two_layers()[0], samples[:10], input_name="picture")


def test_both_are_measured_on_the_same_samples(samples):
    content, first, second = two_layers()
    float_logits = np.maximum(samples @ first, 0) @ second
    labels = float_logits.argmax(1)
    labels[:60] = (labels[:60] + 1) % 3
    compared = compare_int8(content, RECORD, [], samples, labels, float_logits=float_logits, target_drop=5.0)
    int8 = compared.segment.run(samples, RECORD.exit.logits)[0].argmax(1)
    assert compared.accuracy == (int8 == labels).mean()
    assert compared.drop == pytest.approx(0.9 - compared.accuracy)
    assert compared.drop <= compared.drop_upper < 0.05
    assert compared.ms > 0
    assert compared.float_ms > 0
    assert compared.default == ("int8" if compared.ms < compared.float_ms else "float32")


def test_an_int8_that_answers_otherwise_is_no_default_however_fast(samples):
    content, first, second = two_layers()
    other_logits = -(np.maximum(samples @ first, 0) @ second)
    compared = compare_int8(content, RECORD, [], samples, None, float_logits=other_logits, target_drop=5.0)
    assert compared.accuracy is None
    assert compared.drop > 0.5
    assert compared.default == "float32"


def test_the_faster_that_keeps_the_accuracy_is_chosen():
    variant, reason = choose(**FAST, drop=0.001, upper=0.008)
    assert variant == "int8"
    assert "2.00 times as fast here" in reason
    assert "loses 0.10 points on 1000 samples, at most 0.80" in reason


def test_never_int8_because_it_is_int8():
    variant, reason = choose(**{**FAST, "ms": 2.0}, drop=0.0, upper=0.0)
    assert variant == "float32"
    assert "slower here (2.000 ms against 2.000 ms)" in reason


def test_a_drop_that_cannot_be_excluded_is_not_taken():
    variant, reason = choose(**FAST, drop=0.0, upper=0.012)
    assert variant == "float32"
    assert "but loses 0.00 points on 1000 samples, at most 1.20 by the 95 % bound (1 allowed)" in reason
