"""Row O4: hostile ONNX files are refused in their bytes, and what our exporters write is not."""

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.tiny_bundles import manifest_of, scaling_onnx, scaling_segment
from toolkit.bundle.folder import write_bundle
from toolkit.bundle.onnx_check import check_onnx
from toolkit.errors import BundleError
from toolkit.runtime.cascade import Cascade

N = TensorProto.FLOAT


def model(*nodes, weights=(), inputs=("x",), **changes):
    ports = [helper.make_tensor_value_info(name, N, ["batch", 3]) for name in inputs]
    graph = helper.make_graph(
        list(nodes), "g", ports, [helper.make_tensor_value_info("y", N, ["b", "c"])], list(weights)
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, **changes)


def tensor(values, name="w", dtype=np.float32):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def node(op, *inputs, out="y", **attributes):
    return helper.make_node(op, list(inputs), [out], **attributes)


def claiming(dims):
    made = TensorProto(name="w", data_type=N, dims=dims, raw_data=b"\0" * 8)
    return model(node("Add", "x", "w"), weights=[made])


def outside():
    made = tensor([1.0])
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="location", value="../secret")
    return model(node("Add", "x", "w"), weights=[made])


def functions():
    made = model(node("Add", "x", "x"))
    made.functions.append(
        helper.make_function(
            "own", "F", ["a"], ["b"], [node("Relu", "a", out="b")], [helper.make_opsetid("", 18)]
        )
    )
    return made


def large_input():
    ports = [helper.make_tensor_value_info(name, N, ["batch", 1 << 20, 1 << 20]) for name in ("x", "y")]
    graph = helper.make_graph([node("Relu", "x")], "g", ports[:1], ports[1:])
    return helper.make_model(graph)


branch = helper.make_graph([node("Relu", "x")], "b", [], [helper.make_tensor_value_info("y", N, None)])
ints = np.int64
BOMBS = {
    "a fill of constants": (
        model(node("ConstantOfShape", "w"), weights=[tensor([1 << 15, 1 << 15], dtype=ints)]),
        "ConstantOfShape computes from constants alone",
    ),
    "an outer sum of constants": (
        model(node("Add", "w", "v"), weights=[tensor(np.ones((9000, 1))), tensor(np.ones((1, 9000)), "v")]),
        "Add computes from constants alone",
    ),
    "through an identity": (
        model(
            node("Identity", "w", out="i"),
            node("Expand", "i", "v"),
            weights=[tensor([1.0]), tensor([1 << 30], "v", ints)],
        ),
        "Expand computes from constants alone",
    ),
    "constants doubled again and again": (
        model(
            *(node("Concat", f"c{i}", f"c{i}", out=f"c{i + 1}", axis=0) for i in range(30)),
            weights=[tensor([1.0], "c0")],
        ),
        "Concat computes from constants alone",
    ),
    "a sample made large": (
        model(node("Expand", "x", "v"), weights=[tensor([1 << 13, 1 << 13, 3], "v", ints)]),
        "Expand asks for 201326592 values",
    ),
    "by a constant node": (
        model(node("Constant", out="v", value=tensor([1, 1 << 30], dtype=ints)), node("Tile", "x", "v")),
        "Tile asks for 1073741824 values",
    ),
    "by a constant list": (
        model(node("Constant", out="v", value_ints=[1, 1 << 30]), node("Tile", "x", "v")),
        "Tile asks for",
    ),
    "padding": (model(node("MaxPool", "x", kernel_shape=[1], pads=[1 << 30, 1])), "'pads' asks for more"),
    "a graph within": (
        model(node("If", "x", then_branch=branch, else_branch=branch)),
        "a graph within its graph",
    ),
    "another domain": (model(node("Gelu", "x", domain="com.microsoft")), "operator com.microsoft.Gelu"),
    "an operator of chance": (model(node("RandomNormal", shape=[1 << 30])), "operator RandomNormal"),
    "an operator nobody knows": (model(node("Frobnicate", "x")), "operator Frobnicate"),
    "weights outside": (outside(), "lie outside the file"),
    "more than it brings": (claiming([1 << 20, 1 << 20]), "claims more than the file brings"),
    "less than nothing": (claiming([-1, -8]), "claims more than the file brings"),
    "functions": (functions(), "defines functions"),
    "a large input": (large_input(), "its input 'x' takes 1099511627776 values"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_anything_is_loaded(name, tmp_path):
    made, complaint = BOMBS[name]
    content = made.SerializeToString()
    with pytest.raises(BundleError, match=complaint) as caught:
        check_onnx(content, where="segment1.onnx")
    assert "refused unread" in caught.value.message
    bundle = write_bundle(tmp_path / "b", manifest_of(scaling_segment(1)), {"segment1.onnx": content})
    with pytest.raises(BundleError, match="refused unread"):
        Cascade(bundle)


def test_training_steps_and_sparse_weights_are_refused():
    made = model(node("Relu", "x"))
    made.training_info.add()
    with pytest.raises(BundleError, match="training steps"):
        check_onnx(made.SerializeToString(), where="x")
    made = model(node("Relu", "x"))
    made.graph.sparse_initializer.add()
    with pytest.raises(BundleError, match="sparse"):
        check_onnx(made.SerializeToString(), where="x")


@pytest.mark.parametrize(
    "made",
    [
        onnx.load_from_string(scaling_onnx(2.0)),
        model(node("Add", "x", "w"), weights=[tensor(np.ones(3))]),
        model(
            node("DequantizeLinear", "w", "s", out="d"),
            node("Mul", "x", "d"),
            weights=[tensor([1, 2, 3], dtype=np.int8), tensor(0.5, "s")],
        ),
        model(node("Shape", "x", out="s"), node("ConstantOfShape", "s", out="z"), node("Add", "x", "z")),
        model(node("Slice", "x", "a", "b"), weights=[tensor([0], "a", ints), tensor([2**63 - 1], "b", ints)]),
        model(node("Reshape", "x", "v"), weights=[tensor([0, -1], "v", ints)]),
    ],
    ids=["ours", "a bias", "quantised weights", "zeros as the batch is", "an open slice", "a reshape"],
)
def test_plain_models_pass(made):
    onnx.checker.check_model(made)
    grows = any(one.op_type == "ConstantOfShape" for one in made.graph.node)
    assert check_onnx(made.SerializeToString(), where="x") == grows


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_give_nothing_but_a_bundle_error(content):
    with contextlib.suppress(BundleError):
        check_onnx(content, where="x")


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_model_gives_nothing_but_a_bundle_error(data):
    content = bytearray(scaling_onnx(2.0))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    for damaged in (bytes(content), bytes(content[:cut])):
        with contextlib.suppress(BundleError):
            check_onnx(damaged, where="x")
