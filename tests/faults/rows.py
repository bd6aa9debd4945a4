"""The rows that need real processes. Each takes a scene, and returns what it saw in a few words."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from coordinator.checkpoints import Checkpoints
from tests.e2e.processes import ROOT
from tests.faults.cable import Cable
from tests.faults.scene import Scene, seconds_until
from tests.numerics.same import digest
from toolkit.errors import CheckpointError
from toolkit.failpoints import FAILPOINTS

Play = Callable[[Scene], str]


@dataclass(frozen=True)
class Row:
    """One row of the promises.

    Attributes:
        name: as in the list, with a letter where one has several parts.
        what: in a few words.
        play: raises AssertionError where it does not hold, SkippedRowError where it can't be judged here.
        quick: part of the quick tier too.
        in_suite: tests of the suite hold it as they are.
    """

    name: str
    what: str
    play: Play
    quick: bool
    in_suite: bool = False


ROWS: dict[str, Row] = {}


def row(name: str, what: str, *, quick: bool = True) -> Callable[[Play], Play]:
    """Enter a row."""

    def enter(play: Play) -> Play:
        ROWS[name] = Row(name, what, play, quick)
        return play

    return enter


@row("R1+R3+R7", "agent, coordinator and broker killed in one run, judged by ledger and tape")
def kills(scene: Scene) -> str:
    broker = scene.broker()
    port = broker.address.port
    rounds = 12 * scene.scale
    parts = {"ant": ("1/24", "small"), "bee": ("2/24", "strong")}
    agents = {d: scene.agent(port, d, part=part, board=board) for d, (part, board) in parts.items()}
    coordinator = scene.coordinator(port, "--devices", 2, "--rounds", rounds)
    coordinator.wait_for_round(2)
    for at in range(scene.scale):
        time.sleep(scene.random.uniform(0.0, 0.3))  # a moment of chance within a round
        agents["ant"].kill()
        agents["ant"] = scene.agent(port, "ant", part="1/24", board="small")
        time.sleep(scene.random.uniform(0.0, 0.3))
        coordinator.kill()
        coordinator = scene.resume()
        coordinator.wait_for_round(min(rounds, 4 + 8 * at))
        broker.restart()
    scene.ended_well(coordinator, *agents.values(), cap_s=110.0)
    judged = scene.judge()
    assert judged.n_rounds == rounds
    assert scene.record()["term"] == 1 + scene.scale
    return str(judged)


@row("R7", "coordinator killed with many devices; nobody re-provisions")
def coordinator_killed(scene: Scene) -> str:
    port = scene.broker().address.port
    n = 24 if scene.scale == 1 else 200
    stubs = [scene.stubs(port, n // 2, first=first) for first in (0, n // 2)]
    coordinator = scene.serve(port, devices=n, rounds=6)
    took = []
    for _ in range(2 * scene.scale):
        scene.wait_for_rounds(coordinator, 1)
        time.sleep(scene.random.uniform(0.0, 0.2))
        coordinator.kill()
        if scene.record()["rounds_closed"] >= 6:
            break
        began_s = time.monotonic()
        coordinator = scene.serve(port, devices=n, rounds=6)
        coordinator.wait_for(" closed: ")
        took.append(time.monotonic() - began_s)
    scene.ended_well(coordinator, *stubs)
    for one in stubs:
        assert scene.stubs_report(one, "ended")["errors"] == []
    return f"{n} devices, a round after {max(took):.1f} s at most; {scene.judge()}"


@row("R3", "broker restarted in order and by kill, persistence on and off")
def broker_restarted(scene: Scene) -> str:
    took = []
    text = ""
    for persistence in (False, True):
        scene_of = scene.part("kept" if persistence else "forgotten")
        broker = scene_of.broker(persistence=persistence)
        port = broker.address.port
        n_restarts = 3 if scene.scale == 1 else 25
        stubs = scene_of.stubs(port, 8, pace=0.01, max_backoff=1.0)
        coordinator = scene_of.serve(port, devices=8, rounds=4 * n_restarts)
        scene_of.wait_for_rounds(coordinator, 1)
        for number in range(n_restarts):
            closed = scene_of.n_rounds(coordinator)
            if number % 2:
                broker.stop()
                broker.start()
            else:
                broker.restart()
            began_s = time.monotonic()
            scene_of.wait_for_rounds(coordinator, min(closed + 2, 4 * n_restarts), cap_s=90.0)
            took.append(time.monotonic() - began_s)
        scene_of.ended_well(coordinator, stubs)
        text = str(scene_of.judge())
    assert max(took) < 3 * 30.0
    return f"traffic again after {max(took):.1f} s at most; {text}"


@row("R8", "one, half, then all devices leave for ever")
def devices_leave(scene: Scene) -> str:
    port = scene.broker().address.port
    groups = [
        scene.stubs(port, count, first=first, pace=0.02) for first, count in ((0, 10), (10, 9), (19, 1))
    ]
    coordinator = scene.serve(port, devices=20, rounds=100_000, deadline=2.0)
    scene.wait_for_rounds(coordinator, 1)
    took = []
    for one in groups[:0:-1]:
        one.kill()
        began_s, closed = time.monotonic(), scene.n_rounds(coordinator)
        scene.wait_for_rounds(coordinator, closed + 2)
        took.append(time.monotonic() - began_s)
    coordinator.process.send_signal(signal.SIGTERM)
    scene.ended_well(coordinator)
    judged = scene.judge()
    assert judged.n_void
    return f"two rounds after {max(took):.1f} s at most (deadline 2 s); {judged}"


@row("R20", "SIGTERM to agent and coordinator: saved, status 0")
def terminated(scene: Scene) -> str:
    port = scene.broker().address.port
    agent, other = (
        scene.agent(port, device, part=part) for device, part in (("ant", "1/24"), ("bee", "2/24"))
    )
    coordinator = scene.coordinator(port, "--devices", 2, "--rounds", 100_000)
    coordinator.wait_for_round(2)
    took = []
    for one in (agent, coordinator, other):
        began_s = time.monotonic()
        one.signal(signal.SIGTERM)
        scene.ended_well(one)
        took.append(time.monotonic() - began_s)
    assert (scene.folder / "ant" / "r1/devices/ant/training.safetensors").exists()
    assert max(took) < 3 * 5.0
    return f"agent {took[0]:.1f} s, coordinator {took[1]:.1f} s; {scene.judge()}"


@row("R17", "an agent is stopped for a while and goes on; a superseded one is fenced")
def stopped_and_continued(scene: Scene) -> str:
    port = scene.broker().address.port
    agents = {d: scene.agent(port, d, part=f"{n}/24") for n, d in enumerate(("ant", "bee"), start=1)}
    coordinator = scene.coordinator(port, "--devices", 2, "--rounds", 10 * scene.scale)
    coordinator.wait_for_round(2)
    agents["ant"].signal(signal.SIGSTOP)
    time.sleep(3.0 if scene.scale == 1 else 60.0)
    agents["ant"].signal(signal.SIGCONT)
    scene.ended_well(coordinator, *agents.values(), cap_s=110.0)
    return str(scene.judge())


@row("R23", "a second coordinator of one run: the lock refuses it; elsewhere the older loses by its term")
def two_coordinators(scene: Scene) -> str:
    port = scene.broker().address.port
    agent = scene.agent(port, "ant", part="1/12")
    first = scene.coordinator(port, "--devices", 1, "--rounds", 100_000)
    first.wait_for_round(2)
    second = scene.resume()
    assert second.end() == 1, second.describe()
    assert "Another coordinator is at work" in second.out + second.err
    (scene.folder / "elsewhere").mkdir()
    first.signal(signal.SIGSTOP)  # or files change while they are copied
    shutil.copytree(
        scene.run, scene.folder / "elsewhere/r1", ignore=shutil.ignore_patterns("*.sock", "lock", "*.new")
    )
    first.signal(signal.SIGCONT)
    third = scene.hsee.start("run", "resume", "elsewhere/r1", "--json")
    took = seconds_until(third, '"event":"round"')
    assert first.end() != 0, first.describe()
    for one in (third, agent):
        one.signal(signal.SIGTERM)
        scene.ended_well(one)
    return f"the newer one leads after {took:.1f} s"


@row("R10", "many devices join at once, and again after the broker's restart")
def all_join_at_once(scene: Scene) -> str:
    broker = scene.broker()
    port = broker.address.port
    n = 50 if scene.scale == 1 else 200
    coordinator = scene.serve(port, devices=n, rounds=100_000, round_steps=1)
    stubs = scene.stubs(port, n, pace=0.05)
    joined = scene.stubs_report(stubs, "joined")
    assert joined["most_failed"] <= 3
    broker.restart()
    closed, began_s = scene.n_rounds(coordinator), time.monotonic()
    scene.wait_for_rounds(coordinator, closed + 2, cap_s=120.0)
    back_s = time.monotonic() - began_s
    for one in (stubs, coordinator):
        one.process.send_signal(signal.SIGTERM)
    ended = scene.stubs_report(stubs, "ended")
    assert joined["seconds"] < 3 * 10.0
    assert ended["most_failed"] <= 3
    return f"{n} devices joined in {joined['seconds']:.1f} s, all back {back_s:.1f} s after the broker"


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


COORDINATOR_FAILPOINTS = [name for name in FAILPOINTS if name.startswith("coordinator.")]
DEVICE_FAILPOINTS = [name for name in FAILPOINTS if name.startswith("device.")]


@row("R7F", "the coordinator dies at its failpoints, one after the other, in one run")
def coordinator_failpoints(scene: Scene) -> str:
    port = scene.broker().address.port
    names = COORDINATOR_FAILPOINTS if scene.scale > 1 else scene.random.sample(COORDINATOR_FAILPOINTS, 4)
    rounds = 2 * len(names)
    serve = partial(scene.serve, port, devices=4, rounds=rounds, strategy="averaging")
    # The first round tells a joining fleet from one that comes back.
    stubs = scene.stubs(port, 4, max_backoff=1.0)
    coordinator = serve()
    scene.wait_for_rounds(coordinator, 1)
    coordinator.kill()
    for name in names:
        if name == "coordinator.incarnation_issued":  # needs a process that is new
            stubs.kill()
            stubs = scene.stubs(port, 4, max_backoff=1.0)
        scene.hit(serve(env={"HSEE_FAILPOINT": name}), name)
    coordinator = serve()
    scene.ended_well(coordinator, stubs)
    judged = scene.judge()
    assert judged.n_rounds == rounds
    return f"{', '.join(names)}; {judged}"


@row("R1F", "an agent dies at its failpoints, one after the other, in one run")
def device_failpoints(scene: Scene) -> str:
    port = scene.broker().address.port
    names = DEVICE_FAILPOINTS if scene.scale > 1 else scene.random.sample(DEVICE_FAILPOINTS, 2)
    coordinator = scene.coordinator(port, "--devices", 1, "--rounds", 4 + 2 * len(names))
    for name in names:
        scene.hit(scene.agent(port, "ant", part="1/24", HSEE_FAILPOINT=name), name)
    scene.ended_well(coordinator, scene.agent(port, "ant", part="1/24"))
    return f"{', '.join(names)}; {scene.judge()}"


@row("R6", "the network is gone for a while: noticed within two keep-alives, back in the open round")
def network_gone(scene: Scene) -> str:
    broker = scene.broker()
    keep_alive_s, gone_s = 1, 4.0 * scene.scale
    with Cable(broker.address.port) as cable:
        stubs = scene.stubs(cable.port, 2, pace=0.02, keep_alive=keep_alive_s, max_backoff=1.0)
        coordinator = scene.serve(broker.address.port, devices=2, rounds=100_000)
        scene.wait_for_rounds(coordinator, 2)
        cable.pull()
        noticed_s = seconds_until(coordinator, "is offline", 30.0)
        time.sleep(max(0.0, gone_s - noticed_s))
        cable.plug_in()
        back_s = seconds_until(coordinator, "is back", 60.0)
        scene.wait_for_rounds(coordinator, scene.n_rounds(coordinator) + 2)
        for one in (coordinator, stubs):
            one.signal(signal.SIGTERM)
            scene.ended_well(one)
    judged = scene.judge()
    assert noticed_s < 3 * 2 * keep_alive_s
    assert back_s < 30.0
    return (
        f"noticed after {noticed_s:.1f} s (keep-alive {keep_alive_s} s), back after {back_s:.1f} s; {judged}"
    )


@row("F3", "a long step never costs a keep-alive")
def long_step(scene: Scene) -> str:
    broker = scene.broker()
    step_s, keep_alive_s = (6.0, 2) if scene.scale == 1 else (60.0, 20)
    stubs = scene.stubs(broker.address.port, 1, pace=step_s, keep_alive=keep_alive_s)
    coordinator = scene.serve(broker.address.port, devices=1, rounds=1, round_steps=2)
    scene.ended_well(coordinator, stubs, cap_s=90.0 + 5 * step_s)
    assert "is offline" not in coordinator.out, coordinator.describe()
    assert scene.stubs_report(stubs, "ended")["most_failed"] == 0
    log = broker.log_path.read_text()
    assert "timeout" not in log, log
    return f"steps of {step_s:g} s on a keep-alive of {keep_alive_s} s; {scene.judge()}"


@row("R14", "bit rot in checkpoints: found, or nothing that is loaded changes")
def bit_rot(scene: Scene) -> str:
    port = scene.broker().address.port
    scene.ended_well(scene.serve(port, devices=2, rounds=3), scene.stubs(port, 2))
    generations = Checkpoints(scene.run / "checkpoints").kept()
    newest = generations[-1]
    whole = digest(newest.tensors()), newest.state()
    n_found = n_harmless = 0
    for path in sorted(newest.path.iterdir()):
        content = path.read_bytes()
        for _ in range(60 * scene.scale):
            at, bit = scene.random.randrange(len(content)), 1 << scene.random.randrange(8)
            path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
            try:
                newest.check()
                assert (digest(newest.tensors()), newest.state()) == whole, (
                    f"{path.name}, byte {at}, bit {bit}"
                )
                n_harmless += 1
            except CheckpointError:
                n_found += 1
        path.write_bytes(content)
    content = bytearray((newest.path / "model.safetensors").read_bytes())
    content[-5] ^= 4
    (newest.path / "model.safetensors").write_bytes(content)
    again = scene.serve(port, devices=2, rounds=4)
    again.wait_for("after round 2")
    scene.ended_well(again, scene.stubs(port, 2))
    return (
        f"{n_found} flips found, {n_harmless} without effect, the generation before is taken; {scene.judge()}"
    )


@row("R16", "clocks off by years")
def clocks_off(scene: Scene) -> str:
    port = scene.broker().address.port
    hook = scene.folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import os, time\nreal = time.time\ntime.time = lambda: real() + float(os.environ['CLOCK_OFF_S'])\n"
    )
    off = {"PYTHONPATH": f"{hook}:{ROOT}"}
    years_s = 10 * 365 * 86400
    agents = [
        scene.agent(port, device, part=f"{n}/24", CLOCK_OFF_S=str(sign * years_s), **off)
        for n, (device, sign) in enumerate((("ant", 1), ("bee", -1)), start=1)
    ]
    coordinator = scene.coordinator(port, "--devices", 2, "--rounds", 4, CLOCK_OFF_S=str(years_s / 2), **off)
    scene.ended_well(coordinator, *agents)
    judged = scene.judge()
    assert judged.n_void == 0
    return f"plus and minus ten years; {judged}"


def held_by_suite(name: str, what: str, *paths: str) -> None:
    """Enter a row that tests of the suite hold."""

    def play(scene: Scene) -> str:
        words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *(ROOT / path for path in paths))
        done = scene.hsee.python(*words, "--rootdir", ROOT)
        status = done.end(600.0)
        assert status == 0, done.describe()
        return done.out.strip().splitlines()[-1]

    ROWS[name] = Row(name, what, play, quick=True, in_suite=True)


@row("H1", "mutated bytes to every decoder")
def fuzzed(scene: Scene) -> str:
    seconds = 30 if scene.scale == 1 else 900
    done = scene.hsee.python(
        "-m", "tests.fuzz", "--seconds", seconds, "--seed", scene.random.randrange(2**32)
    )
    assert done.end(seconds + 120.0) == 0, done.describe()
    return done.out.strip()


held_by_suite("H2+H3+H5+H7", "hostile headers, bombs, no pickle, chunks; golden bytes", "tests/protocol")
held_by_suite("R18", "a cloned card: the newest process wins", "tests/e2e/test_faults.py")
held_by_suite(
    "P2", "a hostile coordinator changes nothing on a device", "tests/numerics/test_hostile_coordinator.py"
)
held_by_suite("C", "an agent held to the protocol, and agents that break it", "tests/conformance")
