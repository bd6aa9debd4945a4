"""Bundles small enough to reason about: logits are the input itself, or ten times it."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from toolkit.bundle.folder import write_bundle
from toolkit.bundle.manifest import Exit, Manifest, PolicyRecord, Port, Preprocessing, Provenance, Segment

CLASSES = ["ant", "bee", "cat"]


def scaling_onnx(factor, *, takes="image", width=3, batch="batch"):
    """Activations are the input, logits are ``factor`` times it."""
    nodes = [
        helper.make_node("Identity", [takes], ["activations"]),
        helper.make_node("Mul", [takes, "factor"], ["logits"]),
    ]
    ports = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, width])
        for name in (takes, "activations", "logits")
    }
    graph = helper.make_graph(
        nodes,
        "scaling",
        [ports[takes]],
        [ports["activations"], ports["logits"]],
        [onnx.numpy_helper.from_array(np.asarray([factor], np.float32), "factor")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def scaling_segment(number, *, takes="image", threshold=0.5, activations=True):
    return Segment(
        file=f"segment{number}.onnx",
        first_stage=f"stage{number}",
        last_stage=f"stage{number}",
        input=Port(name=takes, shape=(3,)),
        activations=Port(name="activations", shape=(3,)) if activations else None,
        exit=Exit(
            name=f"exit{number}",
            logits=Port(name="logits", shape=(3,)),
            policy=PolicyRecord(threshold=threshold, origin="a test"),
        ),
    )


def manifest_of(*segments, **changes):
    fields = {
        "class_names": CLASSES,
        "input_shape": (3,),
        "preprocessing": Preprocessing(mean=[0.0] * 3, std=[1.0] * 3, value_range=(-5.0, 5.0)),
        "segments": list(segments),
        "provenance": Provenance(
            run="run1",
            device="dev1",
            model="scaling",
            cut="stage1",
            round=1,
            created="2026-01-01T00:00:00+00:00",
            software={},
        ),
    }
    return Manifest(**{**fields, **changes})


def write_tiny_bundle(folder, *, factors=(1.0,), threshold=0.5, ends=False):
    """A cascade with an exit after each factor; ``ends``: the last segment has no activations to offload."""
    files, segments = {}, []
    for i, factor in enumerate(factors):
        takes = "image" if i == 0 else "activations_in"
        last = i == len(factors) - 1
        segments.append(
            scaling_segment(i + 1, takes=takes, threshold=threshold, activations=not (ends and last))
        )
        files[f"segment{i + 1}.onnx"] = scaling_onnx(factor, takes=takes)
    return write_bundle(folder, manifest_of(*segments), files)
