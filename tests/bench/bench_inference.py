"""What a gate costs and what an exit saves (issue 6, item 7): ratios in one run, printed as JSON.

python -m tests.bench.bench_inference [--width 64] [--repeats 200]

CIFAR ResNet-18 with random weights, exits after layer1, layer2 and layer3, batch 1, one thread. All ways of running
it take turns; milliseconds are medians, ratios are medians of the ratios within a round, so that a busy machine
weighs on both sides alike. Memory and start-up are those of child processes.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, compose, helper, numpy_helper
from torch import nn

from tests.bench.staged_resnet import pieces_of
from toolkit.bundle.manifest import Provenance
from toolkit.export.graph import Piece, to_onnx
from toolkit.export.pieces import ExportOptions, Trained, export_pieces
from toolkit.export.timing import in_turns, interleaved_ms
from toolkit.nn.exit_head import build_exit_head
from toolkit.nn.zoo import build_network
from toolkit.profile.board import machine_name
from toolkit.runtime import load
from toolkit.runtime.preprocess import normalise
from toolkit.runtime.samples import Samples
from toolkit.wire.job import ModelSpec

ROOT = Path(__file__).parents[2]
CLASSES = [f"class{i}" for i in range(10)]
MEAN, STD = 0.5, 0.25
LEAVES_AT_ONCE, NEVER_LEAVES = 1.0, 1e-9
GOALS = {
    "all_leave_at_exit1_over_segment1": 1.05,
    "none_leaves_over_monolithic": 1.08,
    "gate_us": 30,
    "onnxruntime_over_torch": 0.70,
    "memory_over_torch": 0.35,
    "memory_over_torch_whole": 0.35,
    "memory_over_torch_whole_int8": 0.35,
    "start_to_first_answer_s": 0.6,
    "start_to_first_answer_whole_s": 0.6,
}

MEMORY_ORT = """
import sys, numpy as np
from toolkit.runtime import load
model = load(sys.argv[1], variant=sys.argv[3])
x = np.load(sys.argv[2])
for sample in x: model(sample)
"""
MEMORY_BARE = """
import sys, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
sessions = [ort.InferenceSession(name, options, providers=['CPUExecutionProvider']) for name in sys.argv[3:]]
import ctypes; ctypes.CDLL(None).malloc_trim(0)
x = np.load(sys.argv[2])
for sample in x:
    h = sample[None]
    for session in sessions:
        wanted = [port.name for port in session.get_outputs()]
        h = session.run(['activations' if 'activations' in wanted else 'logits'], {session.get_inputs()[0].name: h})[0]
"""
MEMORY_TORCH = """
import sys, numpy as np, torch
from tests.bench.staged_resnet import pieces_of
torch.set_num_threads(1)
pieces = pieces_of(int(sys.argv[3]))[: int(sys.argv[4])]
x = torch.from_numpy(np.load(sys.argv[2]))
with torch.inference_mode():
    for sample in x:
        h = sample[None]
        for piece in pieces: h = piece(h)[0]
"""
RESIDENT = """
import json
status = dict(line.split(':', 1) for line in open('/proc/self/status') if line.startswith('Vm'))
print(json.dumps({k: int(status[k].split()[0]) / 1024 for k in ('VmRSS', 'VmHWM')}))
"""


def whole(pieces):
    """The same network as one piece, with no exit but its end."""
    stages = OrderedDict(child for piece in pieces for child in piece.stages.named_children())
    return Piece(nn.Sequential(stages), pieces[-1].exit_head, exit_name="final", ends=True).eval()


def export(pieces, folder, shape, x, *, int8=False):
    """Write pieces as a bundle."""
    provenance = Provenance(
        run="bench",
        device="bench",
        model="bench",
        cut=pieces[0].exit_name,
        round=0,
        created="2026-01-01T00:00:00+00:00",
        software={},
    )
    trained = Trained(tuple(pieces), shape, CLASSES, [MEAN] * shape[0], [STD] * shape[0], provenance)
    samples = Samples(tuple(map(str, range(len(x)))), x, None)
    export_pieces(trained, folder, data=samples, options=ExportOptions(int8=int8))
    return folder


def session(content):
    """A bare session, one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def prefixed(folder, n):
    """The bundle's graphs with names that do not collide, and no metadata to contradict each other."""
    models = []
    for i in range(n):
        model = compose.add_prefix(onnx.load(folder / f"segment{i + 1}.onnx"), f"s{i}_")
        del model.metadata_props[:]
        models.append(model)
    return models


def one_file(folder, n):
    """All segments in one graph with an output an exit, as early-exit models are published: it computes them all."""
    merged, *rest = prefixed(folder, n)
    for i, model in enumerate(rest, 1):
        merged = compose.merge_models(
            merged,
            model,
            io_map=[(f"s{i - 1}_activations", f"s{i}_activations_in")],
            outputs=[f"s{j}_logits" for j in range(i + 1)] + ([f"s{i}_activations"] if i < n - 1 else []),
        )
    return merged.SerializeToString()


def if_graph(folder, n):
    """One graph whose gates are ``If`` operators; the threshold is an input, the batch is one sample."""
    models = prefixed(folder, n)

    def branch(i):
        graph = models[i].graph
        nodes = list(graph.node)
        if i:
            nodes.insert(0, helper.make_node("Identity", [f"s{i - 1}_activations"], [f"s{i}_activations_in"]))
        initializers = list(graph.initializer)
        logits = f"s{i}_logits"
        if i == n - 1:
            return [*nodes, helper.make_node("Identity", [logits], [f"out{i}"])], initializers
        names = {
            k: f"s{i}_gate_{k}" for k in ("p", "floor", "safe", "log", "plogp", "sum", "entropy", "sure")
        }
        constants = {"tiny": np.float32(1e-38), "scale": np.float32(-1 / np.log(10))}
        initializers += [
            numpy_helper.from_array(np.asarray(v, np.float32), f"s{i}_gate_{k}") for k, v in constants.items()
        ]
        nodes += [
            helper.make_node("Softmax", [logits], [names["p"]], axis=-1),
            helper.make_node("Max", [names["p"], f"s{i}_gate_tiny"], [names["safe"]]),
            helper.make_node("Log", [names["safe"]], [names["log"]]),
            helper.make_node("Mul", [names["p"], names["log"]], [names["plogp"]]),
            helper.make_node("ReduceSum", [names["plogp"]], [names["sum"]], keepdims=0),
            helper.make_node("Mul", [names["sum"], f"s{i}_gate_scale"], [names["entropy"]]),
            helper.make_node("Less", [names["entropy"], "threshold"], [names["sure"]]),
        ]
        port = helper.make_tensor_value_info
        leave = helper.make_graph(
            [helper.make_node("Identity", [logits], [f"leave{i}"])],
            f"leave{i}",
            [],
            [port(f"leave{i}", TensorProto.FLOAT, None)],
        )
        inner, inner_initializers = branch(i + 1)
        go_on = helper.make_graph(
            inner, f"go_on{i}", [], [port(f"out{i + 1}", TensorProto.FLOAT, None)], inner_initializers
        )
        nodes.append(
            helper.make_node("If", [names["sure"]], [f"out{i}"], then_branch=leave, else_branch=go_on)
        )
        return nodes, initializers

    nodes, initializers = branch(0)
    inputs = [
        models[0].graph.input[0],
        helper.make_tensor_value_info("threshold", TensorProto.FLOAT, []),
    ]
    graph = helper.make_graph(
        nodes,
        "if",
        inputs,
        [helper.make_tensor_value_info("out0", TensorProto.FLOAT, None)],
        initializers,
    )
    made = helper.make_model(graph, opset_imports=models[0].opset_import, ir_version=models[0].ir_version)
    return made.SerializeToString()


def latencies(folder, pieces, x, repeats):
    """Seconds of one sample, a round each, by each way of running the same network."""
    n = len(pieces)
    h = normalise(x[:1], [MEAN] * 3, [STD] * 3)
    segment1 = session((folder / "segment1.onnx").read_bytes())
    monolithic = session(to_onnx(whole(pieces), (3, 32, 32)).SerializeToString())
    every, branching = session(one_file(folder, n)), session(if_graph(folder, n))
    at_once, never = (
        load(folder, threshold=threshold, variant="float32") for threshold in (LEAVES_AT_ONCE, NEVER_LEAVES)
    )
    assert at_once(x[:1])[0].exit == "layer1"
    assert never(x[:1])[0].exit == "final"
    outputs = [port.name for port in every.get_outputs()]
    logits = monolithic.run(["logits"], {"image": h})[0]
    thresholds = {"leave": np.float32(LEAVES_AT_ONCE), "stay": np.float32(NEVER_LEAVES)}

    def branched(which):
        return branching.run(["out0"], {"s0_image": h, "threshold": np.asarray(thresholds[which])})[0]

    np.testing.assert_allclose(every.run([f"s{n - 1}_logits"], {"s0_image": h})[0], logits, atol=1e-4)
    np.testing.assert_allclose(branched("stay"), logits, atol=1e-4)
    np.testing.assert_allclose(branched("leave"), segment1.run(["logits"], {"image": h})[0], atol=1e-4)
    torch_h, one = torch.from_numpy(h), whole(pieces)
    runs = {
        "segment 1, bare ONNX Runtime": lambda: segment1.run(["logits"], {"image": h}),
        "cascade, leaves at exit 1": lambda: at_once(x[:1]),
        "monolithic, bare ONNX Runtime": lambda: monolithic.run(["logits"], {"image": h}),
        "cascade, nothing leaves": lambda: never(x[:1]),
        "one file with all exits": lambda: every.run(outputs, {"s0_image": h}),
        "If graph, leaves at exit 1": lambda: branched("leave"),
        "If graph, nothing leaves": lambda: branched("stay"),
        "segment 1, torch eager": lambda: pieces[0](torch_h),
        "monolithic, torch eager": lambda: one(torch_h),
    }
    with torch.inference_mode():
        taken = in_turns(list(runs.values()), n_times=repeats)
    return dict(zip(runs, taken, strict=True))


def paired_ratio(seconds, one, other):
    """Median over the rounds of what one took against the other in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def gate_us(folder, repeats):
    """Microseconds a gate of a tiny cascade costs over bare calls of the same sessions; nothing leaves."""
    spec = ModelSpec(name="mlp", input_shape=[8], n_classes=10, options={"width": 16})
    stages = dict(build_network(spec, seed=0).stages.named_children())
    pieces = []
    for name in ("hidden1", "hidden2", "hidden3", "hidden4"):
        head = build_exit_head("pooled", activation_shape=(16,), n_classes=10, cut=name, seed=0)
        pieces.append(Piece(nn.Sequential(OrderedDict([(name, stages[name])])), head, exit_name=name).eval())
    x = np.random.default_rng(0).random((16, 8)).astype(np.float32)
    export(pieces, folder, (8,), x)
    model = load(folder, threshold=NEVER_LEAVES)
    sessions = [session((folder / f"segment{i + 1}.onnx").read_bytes()) for i in range(len(pieces))]
    last = len(sessions) - 1

    def bare():
        h = x[:1]
        for i, each in enumerate(sessions):
            name = "activations_in" if i else "image"
            wanted = ["logits", "activations"] if i < last else ["logits"]
            h = each.run(wanted, {name: h})[-1]

    whole_ms, bare_ms = interleaved_ms([lambda: model(x[:1]), bare], n_times=10 * repeats)
    return {
        "cascade_us": 1000 * whole_ms,
        "bare_us": 1000 * bare_ms,
        "gates": len(sessions),
        "us_a_gate": 1000 * (whole_ms - bare_ms) / len(sessions),
    }


def resident(code, *arguments):
    """MB resident of a child process after its work, and its peak."""
    done = subprocess.run(
        [sys.executable, "-c", code + RESIDENT, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return json.loads(done.stdout.splitlines()[-1])


def start_s(folder, samples):
    """Seconds from nothing until ``hsee infer`` has printed its answer to one sample: median of seven processes."""
    words = [sys.executable, "-m", "toolkit.cli.entry", "infer", str(folder), str(samples), "--count", "1"]
    times = []
    for _ in range(7):
        started = time.perf_counter()
        with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout.readline().startswith(b"x.npy[0]")
            times.append(time.perf_counter() - started)
            process.stdout.read()
        assert process.returncode == 0
    return statistics.median(times)


def memory_of(root, pieces, width):
    """Resident MB of the device's part and of the whole network, run in four ways."""
    x = root / "x.npy"
    told = {}
    for name, folder, n in (("segment 1", root / "device", 1), ("whole network", root / "full", len(pieces))):
        files = [folder / f"segment{i + 1}.onnx" for i in range(n)]
        told[name] = {
            "hsee_mb": resident(MEMORY_ORT, folder, x, "float32"),
            "hsee_int8_mb": resident(MEMORY_ORT, folder, x, "int8"),
            "bare_onnxruntime_mb": resident(MEMORY_BARE, folder, x, *files),
            "torch_mb": resident(MEMORY_TORCH, folder, x, width, n),
        }
    return told


def over_torch(memory, name, which):
    """Resident memory of one way over that of torch."""
    return memory[name][which]["VmRSS"] / memory[name]["torch_mb"]["VmRSS"]


def main():
    """Measure all and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pieces = pieces_of(options.width)
    x = np.random.default_rng(1).random((32, 3, 32, 32)).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        full = export(pieces, root / "full", (3, 32, 32), x, int8=True)
        device = export(pieces[:1], root / "device", (3, 32, 32), x, int8=True)
        np.save(root / "x.npy", x[:20])
        seconds = latencies(full, pieces, x, options.repeats)
        gate = gate_us(root / "tiny", options.repeats)
        memory = memory_of(root, pieces, options.width)
        start = {"segment 1": start_s(device, root / "x.npy"), "whole network": start_s(full, root / "x.npy")}
    figures = {
        "all_leave_at_exit1_over_segment1": paired_ratio(
            seconds, "cascade, leaves at exit 1", "segment 1, bare ONNX Runtime"
        ),
        "none_leaves_over_monolithic": paired_ratio(
            seconds, "cascade, nothing leaves", "monolithic, bare ONNX Runtime"
        ),
        "gate_us": gate["us_a_gate"],
        "onnxruntime_over_torch": paired_ratio(
            seconds, "monolithic, bare ONNX Runtime", "monolithic, torch eager"
        ),
        "memory_over_torch": over_torch(memory, "segment 1", "hsee_mb"),
        "memory_over_torch_whole": over_torch(memory, "whole network", "hsee_mb"),
        "memory_over_torch_whole_int8": over_torch(memory, "whole network", "hsee_int8_mb"),
        "memory_over_torch_whole_bare": over_torch(memory, "whole network", "bare_onnxruntime_mb"),
        "start_to_first_answer_s": start["segment 1"],
        "start_to_first_answer_whole_s": start["whole network"],
    }
    report = {
        "goals": {
            name: {"goal": goal, "measured": figures[name], "met": figures[name] <= goal}
            for name, goal in GOALS.items()
        },
        "memory_over_torch_whole_bare": figures["memory_over_torch_whole_bare"],
        "ms": {name: 1000 * statistics.median(taken) for name, taken in seconds.items()},
        "over_monolithic": {
            name: paired_ratio(seconds, name, "monolithic, bare ONNX Runtime") for name in seconds
        },
        "gate": gate,
        "memory": memory,
        "start_s": start,
        "width": options.width,
        "repeats": options.repeats,
        "machine": machine_name(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("onnxruntime", "torch", "numpy")},
        },
    }
    print(json.dumps(report, indent=2))  # noqa: T201 - this is what a bench is for


if __name__ == "__main__":
    main()
