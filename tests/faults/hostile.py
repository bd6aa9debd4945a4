"""Rows in which somebody sends what nobody asked for, and those that tests of the suite hold as they are."""

from __future__ import annotations

import json
import os
import signal
import time
from statistics import median, quantiles

from tests.e2e.processes import ROOT, Running, wait_until
from tests.faults.registry import ROWS, Row, row
from tests.faults.scene import ENDLESS, RUN, Scene


@row("P1", "activations that are no numbers: refused, and the replay without them gives the same weights")
def poisoned(scene: Scene) -> str:
    port = scene.broker().address.port
    good = scene.stubs(port, 2)
    bad = scene.stubs(port, 1, first=2, poison=1e9)
    coordinator = scene.serve(port, devices=3, rounds=4, round_steps=6)
    scene.ended_well(coordinator, good)
    bad.end()
    judged = scene.judge()
    assert judged.n_refused >= 2
    return str(judged)


def held_by_suite(name: str, what: str, *paths: str, nightly: bool = False) -> None:
    """Enter a row that tests of the suite hold; a nightly one's are too slow for the suite."""

    def play(scene: Scene) -> str:
        words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *(ROOT / path for path in paths))
        done = scene.hsee.python(*words, "--rootdir", ROOT)
        status = done.end(600.0)
        assert status == 0, done.describe()
        return done.out.strip().splitlines()[-1]

    ROWS[name] = Row(name, what, play, quick=not nightly, in_suite=not nightly)


STEP_S = 0.01
"""Of a stub's step, in the row with the flooder."""
ENOUGH_STEPS = 1000
FUZZ_S = "HSEE_FUZZ_S"
"""In the environment: another time than the tier's."""


@row("H1", "mutated bytes to every decoder")
def fuzzed(scene: Scene) -> str:
    seconds, count = (60, 1_000_000) if scene.scale == 1 else (900, 10_000_000)
    seconds = int(os.environ.get(FUZZ_S, seconds))
    done = scene.hsee.python(
        *("-m", "tests.fuzz", "--seconds", seconds, "--count", count),
        *("--seed", scene.random.randrange(2**32)),
    )
    assert done.end(seconds + 120.0) == 0, done.describe()
    return done.out.strip()


held_by_suite("H2+H3+H5+H7", "hostile headers, bombs, no pickle, chunks; golden bytes", "tests/protocol")
held_by_suite("R18", "a cloned card: the newest process wins", "tests/e2e/test_faults.py")
held_by_suite(
    "P2", "a hostile coordinator changes nothing on a device", "tests/numerics/test_hostile_coordinator.py"
)
held_by_suite(
    "T1+T2",
    "who may say and hear what, and client ids, on both brokers",
    "tests/integration/test_apart.py",
)
held_by_suite(
    "T3+T4+T5",
    "revocation, certificates, insecure by accident, on what broker init writes",
    "tests/integration/test_access.py",
    "tests/integration/test_certificates.py",
)
held_by_suite(
    "T2+T5",
    "the embedded broker; nothing off this machine without TLS and a login",
    "tests/integration/test_broker_process.py",
    "tests/e2e/test_insecure_by_accident.py",
)
held_by_suite("T6", "10,000 replays change nothing", "tests/integration/test_replay_admission.py")
held_by_suite(
    "T6b",
    "10,000 stale and cross-device payloads over TLS, to processes; also with clocks off by years",
    "tests/faults/replay.py",
    nightly=True,
)
held_by_suite("T7", "join tokens twice, late, left over, of a false broker", "tests/integration/test_join.py")
held_by_suite("C", "an agent held to the protocol, and agents that break it", "tests/conformance")


@row("H6", "a device that floods: the others' steps take no longer")
def flooded(scene: Scene) -> str:
    """Quiet and loud times take turns, because a machine does not stay the same."""
    port = scene.broker().address.port
    stubs = [scene.stubs(port, 1, pace=STEP_S), scene.stubs(port, 3, first=1, pace=STEP_S)]
    coordinator = scene.serve(port, devices=4, rounds=ENDLESS, round_steps=32)
    scene.wait_for_rounds(coordinator, 3)
    flooder = scene.hsee.python("-m", "tests.faults.flooder", "--broker", f"127.0.0.1:{port}", "--run", RUN)
    coordinator.wait_for("Refused a message on")
    turns: dict[bool, list[list[float]]] = {False: [], True: []}
    for turn in range(4 * scene.scale):
        is_loud = turn % 2 == 0
        flooder.signal(signal.SIGCONT if is_loud else signal.SIGSTOP)
        intervals(stubs[1])
        time.sleep(2.0)
        turns[is_loud].append(intervals(stubs[1]))
    flooder.kill()
    scene.stopped_well(coordinator, *stubs)
    judged = scene.judge()
    n_said = coordinator.out.count("Refused a message on")
    assert n_said < 30, coordinator.describe()
    quiet, loud = ([step_s for steps in turns[is_loud] for step_s in steps] for is_loud in (False, True))
    quiet_s, loud_s = (quantiles(steps, n=100)[98] for steps in (quiet, loud))
    text = f"p99 step {loud_s * 1e3:.1f} ms under the flood, {quiet_s * 1e3:.1f} without: {loud_s / quiet_s - 1:+.0%}"
    if min(len(quiet), len(loud)) < ENOUGH_STEPS:
        # The last percent of few steps says nothing; and a flood that costs others does so in each of its turns,
        # what else the machine does in some.
        quiet_s, loud_s = max(map(median, turns[False])), min(map(median, turns[True]))
    assert loud_s < 3 * 1.2 * quiet_s, text
    return f"{text} (promised: at most +20 %), of {len(loud)} and {len(quiet)} steps; {judged}"


def intervals(stubs: Running) -> list[float]:
    """Ask a process of stubs for its times from step to step since it was asked last."""
    n_before = stubs.out.count('"intervals"')
    stubs.signal(signal.SIGUSR1)
    wait_until(lambda: stubs.out.count('"intervals"') > n_before and stubs.out.endswith("\n"), stubs.describe)
    told = [line for line in stubs.out.splitlines() if '"intervals"' in line]
    found: list[float] = json.loads(told[-1])["intervals"]
    return found
