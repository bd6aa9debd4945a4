"""Limits on this process: how they are written, and what the kernel's files are asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.errors import UsageError
from toolkit.profile.limits import enter_limits, parse_limits, slowdown, sweep
from toolkit.profile.schema import Limits

PID = str(os.getpid())


@pytest.mark.parametrize("text", ["25%,512", "25,512", " 25 % , 512 "])
def test_limits_are_read(text: str):
    assert parse_limits(text) == Limits(cpu_percent=25, memory_mb=512)


@pytest.mark.parametrize(
    "text", ["", "25%", "25%,", ",512", "25%,512MB", "0%,512", "-5%,512", "nan,512", "inf,512", "25,0"]
)
def test_nonsense_limits_are_refused_with_an_example(text: str):
    with pytest.raises(UsageError, match="25%,512"):
        parse_limits(text)


def test_the_factor_is_what_the_threads_lack():
    assert slowdown(Limits(cpu_percent=25, memory_mb=512), threads=1) == 4
    assert slowdown(Limits(cpu_percent=150, memory_mb=512), threads=2) == pytest.approx(4 / 3)
    assert slowdown(Limits(cpu_percent=150, memory_mb=512), threads=1) == 1


def fake_proc(folder: Path, *, mounts: str, groups: str) -> Path:
    """A /proc with only what is read of it; plain folders stand for the kernel's."""
    own = folder / "proc" / "self"
    own.mkdir(parents=True)
    (own / "mountinfo").write_text(mounts)
    (own / "cgroup").write_text(groups)
    (own / "status").write_text("VmRSS:\t  204800 kB\n")
    (folder / "proc" / PID).mkdir()
    return folder / "proc"


def mount(folder: Path, kind: str, options: str) -> str:
    return f"30 25 0:26 / {folder} rw,relatime - {kind} cgroup {options}\n"


def entered(proc: Path, limits: Limits, watch: Path) -> dict[str, str]:
    """What a process wrote into its groups before it left them."""
    script = (
        "import sys, json, pathlib\n"
        "from toolkit.profile.limits import enter_limits, parse_limits\n"
        "how = enter_limits(parse_limits(sys.argv[2]), proc=pathlib.Path(sys.argv[1]))\n"
        "root = pathlib.Path(sys.argv[3])\n"
        "files = {p.name: p.read_text() for p in root.rglob('hsee-*/*')}\n"
        "print(json.dumps({'mechanism': how, **files}))\n"
    )
    text = f"{limits.cpu_percent:g}%,{limits.memory_mb}"
    done = subprocess.run(
        [sys.executable, "-c", script, str(proc), text, str(watch)],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_version_1_takes_a_group_below_its_own_in_each_controller(tmp_path: Path):
    cpu, memory = tmp_path / "cpu", tmp_path / "memory" / "job"
    cpu.mkdir()
    memory.mkdir(parents=True)
    proc = fake_proc(
        tmp_path,
        mounts=mount(cpu, "cgroup", "rw,cpu") + mount(memory.parent, "cgroup", "rw,memory"),
        groups="4:memory:/job\n1:cpu:/\n0::/\n",
    )
    files = entered(proc, Limits(cpu_percent=20, memory_mb=512), tmp_path)
    assert files["mechanism"] == "cgroup-v1"
    assert (files["cpu.cfs_period_us"], files["cpu.cfs_quota_us"]) == ("10000", "2000")
    assert files["memory.limit_in_bytes"] == str((512 - 200) * 2**20)


def test_version_1_keeps_the_kernels_least_quota(tmp_path: Path):
    proc = fake_proc(tmp_path, mounts=mount(tmp_path, "cgroup", "rw,cpu,memory"), groups="1:cpu,memory:/\n")
    files = entered(proc, Limits(cpu_percent=5, memory_mb=512), tmp_path)
    assert (files["cpu.cfs_period_us"], files["cpu.cfs_quota_us"]) == ("20000", "1000")
    assert "memory.limit_in_bytes" in files


def test_version_2_stands_beside_its_own_group_where_the_parent_hands_controllers_down(tmp_path: Path):
    slice_, own = tmp_path / "app.slice", tmp_path / "app.slice" / "me.scope"
    own.mkdir(parents=True)
    (own / "cgroup.subtree_control").write_text("\n")
    (slice_ / "cgroup.subtree_control").write_text("cpu memory pids\n")
    proc = fake_proc(tmp_path, mounts=mount(tmp_path, "cgroup2", "rw"), groups="0::/app.slice/me.scope\n")
    files = entered(proc, Limits(cpu_percent=150, memory_mb=512), slice_)
    assert files["mechanism"] == "cgroup-v2"
    assert files["cpu.max"] == "15000 10000"
    assert files["memory.max"] == str((512 - 200) * 2**20)


def test_without_controllers_only_the_factor_is_left(tmp_path: Path):
    (tmp_path / "cgroup.subtree_control").write_text("hugetlb\n")
    proc = fake_proc(tmp_path, mounts=mount(tmp_path, "cgroup2", "rw"), groups="0::/\n")
    assert enter_limits(Limits(cpu_percent=20, memory_mb=512), proc=proc) == "factor"
    assert not list(tmp_path.glob("hsee-*"))


def test_a_controller_that_refuses_leaves_no_group_in_the_other(tmp_path: Path):
    cpu = tmp_path / "cpu"
    cpu.mkdir()
    proc = fake_proc(
        tmp_path,
        mounts=mount(cpu, "cgroup", "rw,cpu") + mount(tmp_path / "none", "cgroup", "rw,memory"),
        groups="4:memory:/\n1:cpu:/\n",
    )
    assert enter_limits(Limits(cpu_percent=20, memory_mb=512), proc=proc) == "factor"
    assert not list(cpu.iterdir())


def test_groups_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path: Path):
    proc = fake_proc(tmp_path, mounts=mount(tmp_path, "cgroup", "rw,cpu,memory"), groups="1:cpu,memory:/\n")
    (proc / "4242").mkdir(exist_ok=True)
    dead, living, foreign = (tmp_path / name for name in ("hsee-999999999", "hsee-4242", "other"))
    for group in (dead, living, foreign):
        group.mkdir()
    sweep(proc=proc)
    assert not dead.exists()
    assert living.exists()
    assert foreign.exists()
