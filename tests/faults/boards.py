"""Rows about the machine and its software: small boards, other versions, days without an end."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from tests.bench.bench_inference import export
from tests.bench.staged_resnet import pieces_of
from tests.e2e.processes import Running
from tests.faults.registry import row
from tests.faults.scene import ENDLESS, Scene, SkippedRowError
from tests.faults.sim.scenario import Scenario
from tests.faults.sim.world import World
from tests.tiny_bundles import write_tiny_bundle
from toolkit.profile.limits import PROC, _v1_parents, _v2_parents
from toolkit.profile.schema import BYTES_PER_MB, read_profile

ENTERS = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
"""Joins the group that its first argument names, and becomes the program of the others."""


@contextmanager
def memory_of(n_mb: int) -> Iterator[Path]:
    """A group of processes that may take so much memory together, caches and all; yields what to write an id to.

    Raises: SkippedRowError: this machine does not let us make one.
    """
    ways = [(parent, "memory.limit_in_bytes") for parent in [_v1_parents(PROC).get("memory")] if parent]
    ways += [(parent, "memory.max") for parent in _v2_parents(PROC)]
    for parent, limit in ways:
        group = parent / f"row-{os.getpid()}-{n_mb}"
        try:
            group.mkdir()
            (group / limit).write_text(str(n_mb * BYTES_PER_MB))
        except OSError:
            continue
        try:
            yield group / "cgroup.procs"
        finally:
            group.rmdir()
        return
    raise SkippedRowError("this machine allows no memory cgroup")


def peak_mb(running: Running, cap_s: float = 120.0) -> float:
    """Wait for the end of a process; returns the most memory that it held at once."""
    most, deadline_s = 0, time.monotonic() + cap_s
    while running.process.poll() is None:
        assert time.monotonic() < deadline_s, running.describe()
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        most = max(most, int(found[1]) if found else 0)
        time.sleep(0.002)
    assert running.process.returncode == 0, running.describe()
    return most * 1024 / BYTES_PER_MB


BASE_MB, TIMES_BUNDLE = 65, 3.9
"""docs/boards.md: what inference takes, beside what is taken for each byte of a bundle's ONNX files."""


@row(
    "R15",
    "small boards: training in 512 MB, inference in 256 MB, within 10 % of what is documented",
    quick=False,
)
def small_boards(scene: Scene) -> str:
    told = []
    port = scene.broker().address.port
    with memory_of(512) as entrance:
        model = ("--model", "resnet_small", "--input", "1x8x8", "--classes", 10, "--quick")
        hsee = ("-c", ENTERS, entrance, "-m", "toolkit.cli.entry")
        measured = scene.hsee.python(*hsee, "profile", *model, "-o", "board.toml")
        scene.ended_well(measured, cap_s=300.0)
        profile = read_profile(scene.folder / "board.toml")
        agent = scene.hsee.python(
            *(*hsee, "agent", "start", "--broker", f"127.0.0.1:{port}", "--id", "ant", "--data", "digits"),
            *("--home", "ant", "--part", "1/6", "--profile", "board.toml"),
        )
        coordinator = scene.coordinator(port, "--devices", 1, "--rounds", 5)
        most_mb = peak_mb(agent)
        scene.ended_well(coordinator)
        (plan,) = [event for event in coordinator.events if event["event"] == "plan"]
        (expected_mb,) = [cut.peak_memory_mb for cut in profile.cuts if cut.cut == plan["cuts"]["ant"]]
        told.append(within(most_mb, expected_mb, "training"))
    write_tiny_bundle(scene.folder / "small")
    (scene.folder / "small.csv").write_text("0.5,1.5,-0.5\n" * 200)
    pictures = np.random.default_rng(1).random((8, 3, 32, 32)).astype(np.float32)
    np.savez(scene.folder / "large.npz", x=pictures)
    export(pieces_of(64), scene.folder / "large", (3, 32, 32), pictures)  # ResNet-18, all of it
    with memory_of(256) as entrance:
        for bundle, samples in (("small", "small.csv"), ("large", "large.npz")):
            folder = scene.folder / bundle
            n_mb = sum(path.stat().st_size for path in folder.glob("*.onnx")) / BYTES_PER_MB
            words = ("-m", "toolkit.cli.entry", "infer", folder, scene.folder / samples)
            most_mb = peak_mb(scene.hsee.python("-c", ENTERS, entrance, *words))
            told.append(within(most_mb, BASE_MB + TIMES_BUNDLE * n_mb, f"inference with {n_mb:.0f} MB"))
    return "; ".join(told)


def within(most_mb: float, expected_mb: float, what: str) -> str:
    """Hold a peak to its formula."""
    text = f"{what}: {most_mb:.0f} MB, {most_mb / expected_mb - 1.0:+.1%} of {expected_mb:.0f}"
    assert abs(most_mb / expected_mb - 1.0) <= 0.1, text
    return text


@row("R19", "versions N-1, N, N+1: a run, or a refusal that names both")
def versions(scene: Scene) -> str:
    """Versions 1 to 3, so that there is one before and one after; on a wire that all of them share (PROTOCOL.md 13)."""
    spoken = (1, 2, 3)
    port = scene.broker().address.port
    n_refused = 0
    for ours in spoken:
        part = scene.part(f"version{ours}")
        coordinator = part.serve(port, devices=1, rounds=2, speaks=ours)
        # First those that are refused: who comes when the run is over waits for another.
        stubs = {
            theirs: part.stubs(port, 1, first=theirs, speaks=theirs) for theirs in spoken if theirs != ours
        }
        part.ended_well(*stubs.values())
        stubs[ours] = part.stubs(port, 1, speaks=ours)
        part.ended_well(coordinator, stubs[ours])
        for theirs, one in stubs.items():
            errors = part.stubs_report(one, "ended")["errors"]
            if theirs == ours:
                assert errors == []
                continue
            n_refused += 1
            (error,) = errors
            assert error.startswith("RefusedError"), error
            assert f"speaks protocol {ours}; the device speaks [{theirs}]" in error, error
        part.judge()
    return f"{len(spoken)} pairs that fit ran, {n_refused} were refused in words; golden bytes: H2"


DAYS = 3
ROUND_S = 60.0
GROWTH_MB = 6.0


@row("R21", "days at a thousand times their pace: memory, files and queues do not grow", quick=False)
def days(scene: Scene) -> str:
    n_rounds = int(DAYS * 86400 / ROUND_S)
    port = scene.broker().address.port
    stubs = scene.stubs(port, 4)
    coordinator = scene.serve(port, devices=4, rounds=ENDLESS, round_steps=1)
    began_s = time.monotonic()
    seen = []
    for at in (n_rounds // 2, n_rounds):  # what a process takes once, it has taken by then
        scene.wait_for_rounds(coordinator, at, cap_s=1200.0)
        seen.append([holds(one) for one in (coordinator, stubs)] + [files_of(scene.run)])
    took_s = time.monotonic() - began_s
    scene.stopped_well(coordinator, stubs)
    (server, devices, files), (server_then, devices_then, files_then) = seen
    for name, before, after in (("coordinator", server, server_then), ("devices", devices, devices_then)):
        assert after["mb"] - before["mb"] < GROWTH_MB, f"{name}: {before} then {after}"
        assert after["files"] <= before["files"] + 2, f"{name}: {before} then {after}"
        assert after["threads"] == before["threads"], f"{name}: {before} then {after}"
    assert files_then == files, f"{files} then {files_then}"
    held = [queues_after(n) for n in (n_rounds // 10, n_rounds)]
    assert held[0] == held[1], f"{held[0]} then {held[1]}"
    return (
        f"{n_rounds} rounds in {took_s:.0f} s, {DAYS} days at a round a minute ({DAYS * 86400 / took_s:.0f} x):"
        f" coordinator {server['mb']:.0f} MB then {server_then['mb']:.0f}, four devices {devices['mb']:.0f} then"
        f" {devices_then['mb']:.0f}, {len(files)} files, {sum(held[0].values())} items in queues"
    )


def holds(running: Running) -> dict[str, float]:
    """What a process holds of its machine."""
    process = psutil.Process(running.process.pid)
    return {
        "mb": process.memory_info().rss / BYTES_PER_MB,
        "files": process.num_fds(),
        "threads": process.num_threads(),
    }


def files_of(run: Path) -> list[str]:
    """What there is in a run folder, with numbers left out."""
    return sorted({re.sub(r"\d+", "N", str(path.relative_to(run))) for path in run.rglob("*")})


def queues_after(rounds: int) -> dict[str, int]:
    """Lengths of all that the simulator's processes hold after so many rounds of a minute."""
    world = World(
        Scenario(
            seed=7,
            lists={"ant": (2, 1), "bee": (1, 0)},
            step_s={"ant": ROUND_S / 2, "bee": ROUND_S},
            rounds=rounds,
            deadline_s=3 * ROUND_S,
            checkpoint_every_s=60.0,
            horizon_s=4 * ROUND_S * rounds,
        )
    )
    history = world.run()
    assert not history.problems, history.problems
    assert world.held["loop.n_applied"] == 2, "not every device's batches were trained on"
    return world.held
