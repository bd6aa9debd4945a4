"""Rows in which somebody sends what nobody asked for, and those that tests of the suite hold as they are."""

from __future__ import annotations

import os
import signal
import time

from tests.e2e.processes import ROOT
from tests.faults.registry import ROWS, Row, row
from tests.faults.scene import RUN, Scene


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
    "T3-T5",
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
    "10,000 stale and cross-device payloads over TLS, to processes",
    "tests/faults/replay.py",
    nightly=True,
)
held_by_suite("T7", "join tokens twice, late, left over, of a false broker", "tests/integration/test_join.py")
held_by_suite("C", "an agent held to the protocol, and agents that break it", "tests/conformance")


@row("H6", "a device that floods: the others' rounds take no longer")
def flooded(scene: Scene) -> str:
    port = scene.broker().address.port
    stubs = scene.stubs(port, 4, pace=0.002)
    coordinator = scene.serve(port, devices=4, rounds=100_000, round_steps=8)
    scene.wait_for_rounds(coordinator, 10)

    def rounds_a_second(seconds: float) -> float:
        before, began_s = scene.n_rounds(coordinator), time.monotonic()
        time.sleep(seconds)
        return (scene.n_rounds(coordinator) - before) / (time.monotonic() - began_s)

    quiet = rounds_a_second(4.0 * scene.scale)
    flooder = scene.hsee.python("-m", "tests.faults.flooder", "--broker", f"127.0.0.1:{port}", "--run", RUN)
    coordinator.wait_for("Refused a message on")
    loud = rounds_a_second(4.0 * scene.scale)
    flooder.kill()
    for one in (coordinator, stubs):
        one.signal(signal.SIGTERM)
        scene.ended_well(one)
    judged = scene.judge()
    n_said = coordinator.out.count("Refused a message on")
    assert n_said < 30, coordinator.describe()
    assert loud > quiet / 3, f"{quiet:.1f} rounds a second, {loud:.1f} under the flood"
    return f"a round takes {quiet / loud:.2f} of its time without the flood; {judged}"
