"""What is asked of memory before inference starts: the kernel's files, and what is said where too little is left."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_bundles import write_tiny_bundle
from toolkit.errors import MachineError
from toolkit.runtime import memory
from toolkit.runtime.memory import MB, check_load, error_of_import, free_bytes, prepare_start

ROOT = Path(__file__).parents[2]


def fake_proc(folder, *, available_mb=1000, swap_mb=0, groups="", mounts=""):
    """A /proc with only what is read of it; plain folders stand for the kernel's groups."""
    own = folder / "proc" / "self"
    own.mkdir(parents=True)
    (folder / "proc" / "meminfo").write_text(
        f"MemTotal: 99999999 kB\nMemAvailable: {available_mb * 1024} kB\nSwapFree: {swap_mb * 1024} kB\n"
    )
    (own / "cgroup").write_text(groups)
    (own / "mountinfo").write_text(mounts)
    return folder / "proc"


def v1(folder, *, limit_mb, used_mb, files_mb=0):
    group = folder / "memory" / "job"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{limit_mb * MB}\n")
    (group / "memory.usage_in_bytes").write_text(f"{used_mb * MB}\n")
    (group / "memory.stat").write_text(f"cache 1\ntotal_inactive_file {files_mb * MB}\ntotal_active_file 0\n")
    (group.parent / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # as the kernel writes none
    return {
        "groups": "4:memory:/job\n0::/\n",
        "mounts": f"30 25 0:26 / {group.parent} rw,relatime - cgroup cgroup rw,memory\n",
    }


def v2(folder, *, limit_mb, used_mb, outer_mb=None):
    outer = folder / "unified" / "outer"
    group = outer / "job"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{limit_mb * MB}\n")
    (group / "memory.current").write_text(f"{used_mb * MB}\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 0\nactive_file 0\n")
    (outer / "memory.max").write_text("max\n" if outer_mb is None else f"{outer_mb * MB}\n")
    (outer / "memory.current").write_text(f"{used_mb * MB}\n")
    return {
        "groups": "0::/outer/job\n",
        "mounts": f"30 25 0:26 / {folder / 'unified'} rw - cgroup2 cgroup rw\n",
    }


def test_what_is_left_is_the_least_of_all(tmp_path):
    assert free_bytes(proc=fake_proc(tmp_path / "a", available_mb=300, swap_mb=50)) == 350 * MB
    group = v1(tmp_path / "b", limit_mb=100, used_mb=70, files_mb=20)  # a file's pages can go
    assert free_bytes(proc=fake_proc(tmp_path / "b", **group)) == 50 * MB
    group = v2(tmp_path / "c", limit_mb=100, used_mb=70)
    assert free_bytes(proc=fake_proc(tmp_path / "c", swap_mb=5, **group)) == 35 * MB
    group = v2(tmp_path / "d", limit_mb=100, used_mb=70, outer_mb=80)
    assert free_bytes(proc=fake_proc(tmp_path / "d", **group)) == 10 * MB
    assert free_bytes(proc=tmp_path / "nowhere") is None


def test_no_room_to_start_is_told_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    group = v1(tmp_path, limit_mb=32, used_mb=16)
    with pytest.raises(MachineError, match="There are 16 MB of memory left for this process"):
        prepare_start(proc=fake_proc(tmp_path, **group))
    assert os.environ.pop("OPENBLAS_NUM_THREADS") == "1"


def test_a_bundle_that_cannot_be_loaded_is_refused_and_one_that_may_just_not_is_told(tmp_path):
    said = []
    sizes = [10 * MB, 30 * MB]  # 10 + 3 x 30 at least, 10 + 6 x 30 at most

    def check(name, available_mb):
        proc = fake_proc(tmp_path / name, available_mb=available_mb)
        check_load(sizes, where="cam.hsee", say=said.append, proc=proc)

    check("roomy", 200)
    assert said == []
    check("tight", 150)
    assert said[0].startswith(
        "note: Loading cam.hsee takes 100 to 190 MB for a moment, and there are 150 MB left"
    )
    with pytest.raises(MachineError, match="100 to 190 MB for a moment, and there are 90 MB left"):
        check("full", 90)
    check_load([MB], where="small.hsee", say=said.append, proc=fake_proc(tmp_path / "tiny", available_mb=1))
    assert len(said) == 1


@pytest.mark.parametrize(
    ("exc", "told"),
    [
        (ImportError("libopenblas.so: failed to map segment from shared object"), "failed to map segment"),
        (ImportError("A long text.\n\nOriginal error was: cannot allocate memory"), "cannot allocate"),
        (MemoryError(), "no memory"),
        (ImportError("cannot import name 'x'"), None),
    ],
)
def test_a_failed_import_is_a_lack_of_memory_only_where_it_says_so(exc, told):
    error = error_of_import(exc)
    assert (error is None) == (told is None)
    if told is not None:
        assert told in error.message
        assert error.exit_status == 6


@pytest.mark.parametrize("limit_mb", [64, 112])
def test_little_address_space_is_one_sentence_and_status_6(tmp_path, limit_mb):
    """Here OpenBLAS would end the process by itself, and the linker with a traceback."""
    bundle = write_tiny_bundle(tmp_path / "b")
    (tmp_path / "x.csv").write_text("9,0,0\n")
    done = subprocess.run(
        [sys.executable, "-m", "toolkit.cli.entry", "infer", str(bundle.folder), str(tmp_path / "x.csv")],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit_mb * MB, limit_mb * MB)),
    )
    assert done.returncode == 6, done.stderr
    assert done.stderr.startswith("error: This process may reserve ")
    assert "address space (ulimit -v)" in done.stderr


def test_asking_loads_nothing():
    code = (
        "import sys, toolkit.runtime.__main__; assert not {'numpy', 'msgspec', 'psutil'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert memory.START_BYTES < memory.START_ADDRESSES
