"""Measuring for real: children that train, that are limited, that die."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from toolkit.errors import CutError, ModelError, UsageError
from toolkit.profile.child import choose_measured
from toolkit.profile.inference import find_onnx
from toolkit.profile.measure import MeasureInterruptedError, measure, measure_server
from toolkit.profile.schema import CutRow, Limits, Profile, parse_profile, profile_text
from toolkit.wire.job import ModelSpec
from toolkit.wire.tensors import CODECS

SMALL = ModelSpec(name="resnet_small", input_shape=[1, 8, 8], n_classes=10)
LIMITS = Limits(cpu_percent=20, memory_mb=512)


@pytest.fixture(scope="module")
def free() -> Profile:
    return measure(SMALL, batch_size=32, exit_head="pooled", quick=True)


def test_every_cut_has_a_row_of_real_numbers(free: Profile):
    assert [row.cut for row in free.cuts] == ["stem", "layer1", "layer2"]
    assert not any(row.failed for row in free.cuts)
    assert parse_profile(profile_text(free)) == free
    assert free.provenance.kind == "measured"
    stem = free.cuts[0]
    # 3x3 convolution of 1 to 16 channels on 8x8, head of 16 to 10: 2 x MAC.
    assert stem.flop == 2 * (9 * 16 * 64 + 16 * 10)
    assert stem.n_parameters == 9 * 16 + 2 * 16 + 16 * 10 + 10
    assert stem.activation_bytes == 16 * 8 * 8 * 4
    assert all(row.peak_memory_mb > 100 for row in free.cuts)
    for row in free.cuts:
        # Backward takes more than forward, and less than thrice as much.
        assert 2 * row.flop < row.train_flop < 4 * row.flop
        assert set(row.hand_over_ms) == set(CODECS)
        assert set(row.step_ms_at) == {"16", "48"}
    assert free.conditions is not None
    assert free.conditions.copy_bytes_per_s is not None
    assert free.conditions.copy_bytes_per_s > 1e8


def test_the_same_command_stands_in_the_profile(free: Profile):
    assert free.provenance.command.startswith(
        "hsee profile --model resnet_small --input 1x8x8 --classes 10 --batch 32"
    )


def test_what_is_on_either_side_of_the_cut_adds_up(free: Profile):
    stem, last = free.cuts[0], free.cuts[-1]
    assert stem.flop < last.flop
    assert stem.suffix_flop > last.suffix_flop


def test_limits_make_the_board_slower_and_leave_no_group(free: Profile):
    began = time.perf_counter()
    slow = measure(SMALL, batch_size=32, quick=True, limits=LIMITS)
    assert time.perf_counter() - began < 60  # seven on a quiet machine
    assert slow.provenance.kind == "emulated"
    assert slow.board.memory_bytes == 512 * 2**20
    # A fifth of a core; twice is far below five and far above this machine's noise. In processor time: it may be busy.
    assert sum(r.step_ms_mean for r in slow.cuts) > 2 * sum(r.step_cpu_ms for r in free.cuts)
    groups = Path("/sys/fs/cgroup").rglob("hsee-*")  # others' live beside ours, where tests run side by side
    assert not [group for group in groups if not Path("/proc", group.name.removeprefix("hsee-")).exists()]


def test_cuts_that_are_not_asked_for_are_counted(free: Profile):
    rows = []
    made = measure(
        SMALL,
        batch_size=32,
        exit_head="pooled",
        cuts=["layer2", "stem"],
        quick=True,
        on_row=lambda row, n_rows: rows.append((row.cut, n_rows)),
    )
    assert rows == [("stem", 3), ("layer1", 3), ("layer2", 3)]
    assert [row.unmeasured for row in made.cuts] == [False, True, False]
    for row, measured in zip(made.cuts, free.cuts, strict=True):
        assert (row.train_flop, row.n_layers, row.n_parameters, row.activation_bytes) == (
            measured.train_flop,
            measured.n_layers,
            measured.n_parameters,
            measured.activation_bytes,
        )
    # Convolution and norm of the stem, and the head's linear layer; a block of layer1 is twice a convolution and norm.
    assert [row.n_layers for row in made.cuts[:2]] == [3, 7]
    assert "--cuts layer2,stem" in made.provenance.command
    with pytest.raises(CutError, match="Did you mean 'layer2'"):
        measure(SMALL, batch_size=32, cuts=["layer9"], quick=True)


def test_a_deep_model_is_measured_at_a_spread_of_its_cuts():
    cuts = [f"stage{i}" for i in range(1, 31)]
    chosen = choose_measured(cuts, [])
    assert len(chosen) == 8
    assert (chosen[0], chosen[-1]) == ("stage1", "stage30")
    assert choose_measured(cuts[:8], []) == tuple(cuts[:8])
    assert choose_measured(cuts, ["stage9", "stage2"]) == ("stage2", "stage9")


def test_the_servers_step_is_shorter_the_deeper_the_cut():
    measured = [measure_server(SMALL, batch_size=32) for _ in range(3)]
    assert list(measured[0]) == ["stem", "layer1", "layer2"]
    assert any(steps["stem"] > steps["layer2"] for steps in measured)


def test_a_child_killed_in_the_middle_costs_one_row():
    killed = []

    def kill_the_child(row: CutRow, _: int) -> None:
        if row.cut == "stem":
            (child,) = psutil.Process().children()
            child.send_signal(signal.SIGKILL)
            killed.append(child.pid)

    profile = measure(SMALL, batch_size=32, quick=True, on_row=kill_the_child)
    assert killed
    assert [bool(row.failed) for row in profile.cuts] == [False, True, False]
    assert "killed" in profile.cuts[1].failed
    assert parse_profile(profile_text(profile)) == profile


def test_a_cut_that_runs_out_of_memory_costs_its_own_row():
    # In a process of its own, whose children inherit the limit: this one keeps its memory.
    script = (
        "import resource, sys\n"
        "from toolkit.profile.measure import measure\n"
        "from toolkit.profile.schema import profile_text\n"
        "from toolkit.wire.job import ModelSpec\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (500 << 20, 500 << 20))\n"
        "model = ModelSpec(name='resnet_small', input_shape=[1, 16, 16], n_classes=10)\n"
        "sys.stdout.write(profile_text(measure(model, batch_size=1024, quick=True)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    stem, *deeper = parse_profile(done.stdout).cuts
    assert not stem.failed
    # In which allocation it runs out, and so in whose words it says so, is not always the same.
    assert all(row.failed for row in deeper)


def test_a_cut_beyond_its_cgroup_is_killed_alone():
    # The activations alone would fit, and are no reason to refuse; what training keeps of them does not.
    model = ModelSpec(name="resnet_small", input_shape=[1, 16, 16], n_classes=10)
    limits = Limits(cpu_percent=100, memory_mb=400)
    profile = measure(model, batch_size=3600, quick=True, limits=limits, cuts=["stem"])
    if profile.provenance.limits is None or profile.provenance.limits.mechanism == "factor":
        pytest.skip("this machine allows no cgroup")
    assert profile.cuts[0].failed == "killed, as the system does when memory runs out (limit 400 MB)"
    assert [row.unmeasured for row in profile.cuts[1:]] == [True, True]


def write_onnx(path: Path) -> Path:
    """A network of one product, (B, 4) to (B, 2)."""
    weights = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n])
        for name, n in (("image", 4), ("logits", 2))
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "w"], ["logits"])], "exit", ends[:1], ends[1:], [weights]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_board_too_small_to_train_times_exits_and_nothing_else(tmp_path: Path):
    good = write_onnx(tmp_path / "exit.onnx")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no network")
    began = []
    profile = measure(
        SMALL,
        batch_size=32,
        quick=True,
        limits=Limits(cpu_percent=50, memory_mb=256),
        onnx=find_onnx([tmp_path]),
        on_row=lambda row, n_rows: began.append((row.file, n_rows)),
    )
    assert profile.cuts == ()
    assert profile.inference_only
    assert profile.provenance.limits is not None
    assert profile.provenance.limits.mechanism != "none"
    assert began == [("damaged.onnx", 2), ("exit.onnx", 2)]
    bad, row = profile.inference
    assert "INVALID_PROTOBUF" in bad.failed or "rotobuf" in bad.failed
    assert row.sha256 == hashlib.sha256(good.read_bytes()).hexdigest()
    assert row.ms_p50 > 0
    assert 20 < row.peak_memory_mb < 200
    assert parse_profile(profile_text(profile)) == profile


def test_a_cut_that_cant_fit_is_refused_before_it_is_tried():
    # 200,000 samples of 16 KB of activations need gigabytes; the limit is half of one.
    profile = measure(
        ModelSpec(name="resnet_small", input_shape=[1, 16, 16], n_classes=10),
        batch_size=40_000,
        quick=True,
        limits=Limits(cpu_percent=100, memory_mb=512),
    )
    assert all(row.failed.startswith("refused: it needs at least") for row in profile.cuts)
    assert "and 512 MB are there" in profile.cuts[0].failed


def test_an_unknown_model_is_the_callers_error_not_a_crash():
    with pytest.raises(ModelError, match="Did you mean 'resnet_small'"):
        measure(ModelSpec(name="resnet_smal", input_shape=[1, 8, 8], n_classes=10), batch_size=32)


def test_a_name_that_no_file_could_have_is_refused_before_measuring():
    with pytest.raises(UsageError, match="can't be a profile's name"):
        measure(SMALL, batch_size=32, name="../small")


def test_ctrl_c_keeps_the_rows_and_ends_the_child():
    children = []

    def interrupt(_: CutRow, __: int) -> None:
        children.extend(psutil.Process().children())
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(MeasureInterruptedError) as caught:
        measure(SMALL, batch_size=32, quick=True, on_row=interrupt)
    profile = caught.value.profile
    assert profile.partial
    assert [row.cut for row in profile.cuts] == ["stem"]
    assert parse_profile(profile_text(profile)) == profile
    assert children
    assert not any(child.is_running() for child in children)
