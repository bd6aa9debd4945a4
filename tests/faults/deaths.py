"""Rows in which a process or a whole fleet dies, is stopped, or comes back: real processes, real kills."""

from __future__ import annotations

import csv
import shutil
import signal
import time
from functools import partial
from itertools import product

from tests.e2e.processes import Running
from tests.faults.brokers import Restartable, embedded, served
from tests.faults.registry import row
from tests.faults.scene import ENDLESS, RUN, Scene, seconds_until
from tests.faults.stubs import device_name
from toolkit.failpoints import FAILPOINTS


@row("R1+R3+R7", "agent, broker and coordinator killed in one run, and all devices come back by themselves")
def kills(scene: Scene) -> str:
    broker = scene.broker()
    port = broker.address.port
    boards = {"ant": ("1/24", "small"), "bee": ("2/24", "strong")}
    agents = {d: scene.agent(port, d, part=part, board=board) for d, (part, board) in boards.items()}
    coordinator = scene.coordinator(port, "--devices", 2, "--rounds", ENDLESS)
    coordinator.wait_for_round(2)
    for _ in range(scene.scale):
        time.sleep(scene.random.uniform(0.0, 0.3))  # a moment of chance within a round
        agents["ant"].kill()
        coordinator.wait_for("Device ant is offline.")
        agents["ant"] = scene.agent(port, "ant", part="1/24", board="small")
        coordinator.wait_for("Device ant is back.")
        broker.restart()
        coordinator.wait_for("Lost the broker")
        coordinator.wait_for_round(coordinator.rounds()[-1] + 1)
        coordinator = stopped_then_killed(scene, coordinator)
    coordinator.wait_for_round(coordinator.rounds()[-1] + 4)
    scene.stopped_well(coordinator, *agents.values())
    judged = scene.judge()
    assert judged.n_rounds == coordinator.rounds()[-1]
    assert scene.record()["term"] == 1 + 2 * scene.scale
    with (scene.run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Every round stands once for each device, with nothing void.
    assert [(int(each["round"]), each["device"]) for each in rows] == list(
        product(range(1, judged.n_rounds + 1), ("ant", "bee"))
    )
    assert {each["n_void"] for each in rows} == {"0"}
    return str(judged)


def stopped_then_killed(scene: Scene, coordinator: Running) -> Running:
    """Stop a coordinator in order, kill the next one; returns the one after that, which repeats none."""
    scene.stopped_well(coordinator)
    assert coordinator.events[-1] == {
        "event": "ended",
        "status": "stopped",
        "detail": f"Stopped by hand; go on with: hsee run resume runs/{RUN}",
    }
    second = scene.resume()
    second.wait_for_round(coordinator.rounds()[-1] + 2)
    time.sleep(scene.random.uniform(0.0, 0.3))
    second.kill()
    third = scene.resume()
    third.wait_for('"event":"round"')
    # What was told is committed; one round may have been committed and not told.
    assert third.rounds()[0] - second.rounds()[-1] in (1, 2)
    return third


@row("R7", "coordinator killed with many devices; nobody re-provisions")
def coordinator_killed(scene: Scene) -> str:
    port = scene.broker().address.port
    n = 24 if scene.scale == 1 else 200
    stubs = [scene.stubs(port, n // 2, first=first) for first in (0, n // 2)]
    coordinator = scene.serve(port, devices=n, rounds=ENDLESS)
    took = []
    for _ in range(2 * scene.scale):
        scene.wait_for_rounds(coordinator, 1)
        time.sleep(scene.random.uniform(0.0, 0.2))
        coordinator.kill()
        began_s = time.monotonic()
        coordinator = scene.serve(port, devices=n, rounds=ENDLESS)
        coordinator.wait_for(" closed: ")
        took.append(time.monotonic() - began_s)
    scene.wait_for_rounds(coordinator, 4)
    scene.stopped_well(coordinator, *stubs)
    for one in stubs:
        assert scene.stubs_report(one, "ended")["errors"] == []
    return f"{n} devices, a round after {max(took):.1f} s at most; {scene.judge()}"


@row("R3", "broker restarted in order and by kill, persistence on and off")
def broker_restarted(scene: Scene) -> str:
    took = []
    text = ""
    for persistence in (False, True) if scene.scale > 1 else (False,):  # by day the other one is part of R4
        scene_of = scene.part("kept" if persistence else "forgotten")
        broker = scene_of.broker(persistence=persistence)
        port = broker.address.port
        n_restarts = 3 if scene.scale == 1 else 25
        stubs = scene_of.stubs(port, 8, pace=0.01, max_backoff=1.0)
        coordinator = scene_of.serve(port, devices=8, rounds=ENDLESS)
        scene_of.wait_for_rounds(coordinator, 1)
        for number in range(n_restarts):
            closed = scene_of.n_rounds(coordinator)
            if number % 2:
                broker.stop()
                broker.start()
            else:
                broker.restart()
            began_s = time.monotonic()
            scene_of.wait_for_rounds(coordinator, closed + 2, cap_s=90.0)
            took.append(time.monotonic() - began_s)
        scene_of.stopped_well(coordinator, stubs)
        text = str(scene_of.judge())
    assert max(took) < 3 * 30.0
    return f"traffic again after {max(took):.1f} s at most; {text}"


@row("R8", "one, half, then all devices leave for ever")
def devices_leave(scene: Scene) -> str:
    port = scene.broker().address.port
    groups = [
        scene.stubs(port, count, first=first, pace=0.02) for first, count in ((0, 10), (10, 9), (19, 1))
    ]
    coordinator = scene.serve(port, devices=20, rounds=ENDLESS, deadline=2.0)
    scene.wait_for_rounds(coordinator, 1)
    took = []
    for one in groups[:0:-1]:
        one.kill()
        began_s, closed = time.monotonic(), scene.n_rounds(coordinator)
        scene.wait_for_rounds(coordinator, closed + 2)
        took.append(time.monotonic() - began_s)
    scene.stopped_well(coordinator)
    judged = scene.judge()
    assert judged.n_void
    return f"two rounds after {max(took):.1f} s at most (deadline 2 s); {judged}"


@row("R17+R20", "an agent is stopped for a while and goes on; SIGTERM to all: saved, status 0")
def stopped_and_terminated(scene: Scene) -> str:
    port = scene.broker().address.port
    agents = {d: scene.agent(port, d, part=f"{n}/24") for n, d in enumerate(("ant", "bee"), start=1)}
    coordinator = scene.coordinator(port, "--devices", 2, "--rounds", ENDLESS)
    coordinator.wait_for_round(2)
    agents["ant"].signal(signal.SIGSTOP)
    time.sleep(3.0 if scene.scale == 1 else 60.0)
    agents["ant"].signal(signal.SIGCONT)
    coordinator.wait_for_round(coordinator.rounds()[-1] + 4)
    took = []
    for one in (agents["ant"], coordinator, agents["bee"]):
        began_s = time.monotonic()
        one.signal(signal.SIGTERM)
        scene.ended_well(one)
        took.append(time.monotonic() - began_s)
    assert (scene.folder / "ant" / "r1/devices/ant/training.safetensors").exists()
    assert max(took) < 3 * 5.0
    return f"agent {took[0]:.1f} s, coordinator {took[1]:.1f} s; {scene.judge()}"


@row("R23", "a second coordinator of one run: the lock refuses it; elsewhere the older loses by its term")
def two_coordinators(scene: Scene) -> str:
    port = scene.broker().address.port
    agent = scene.agent(port, "ant", part="1/12")
    first = scene.coordinator(port, "--devices", 1, "--rounds", ENDLESS)
    first.wait_for_round(2)
    second = scene.resume()
    assert second.end() == 1, second.describe()
    assert "Another coordinator is at work" in second.out + second.err
    (scene.folder / "elsewhere").mkdir()
    first.stand_still()  # or files change while they are copied
    shutil.copytree(
        scene.run, scene.folder / "elsewhere/r1", ignore=shutil.ignore_patterns("*.sock", "lock", "*.new")
    )
    first.signal(signal.SIGCONT)
    third = scene.hsee.start("run", "resume", "elsewhere/r1", "--json")
    took = seconds_until(third, '"event":"round"')
    assert first.end() != 0, first.describe()
    scene.stopped_well(third, agent)
    return f"the newer one leads after {took:.1f} s"


@row(
    "R10",
    "many devices join at once, Mosquitto with TLS and the embedded broker, and again after its restart",
)
def all_join_at_once(scene: Scene) -> str:
    n = N_BY_DAY if scene.scale == 1 else 200
    accounts = [*map(device_name, range(n)), f"coord-{RUN}"]
    with served(scene.folder, accounts) as broker:
        over_tls = _join_twice(scene.part("tls"), n, broker)
    with embedded(scene.folder, accounts) as broker:
        at_once = _join_twice(scene.part("embedded"), n, broker)
    return f"TLS: {over_tls}; embedded: {at_once}"


def _join_twice(scene: Scene, n: int, broker: Restartable) -> str:
    """Let all join, and again after a restart; returns what was seen."""
    coordinator = scene.serve(broker.port, devices=n, rounds=ENDLESS, round_steps=1, **broker.flags)
    stubs = scene.stubs(broker.port, n, pace=0.05, **broker.flags)
    joined = scene.stubs_report(stubs, "joined")
    assert joined["most_failed"] <= MOST_TRIES
    broker.restart()
    stubs.signal(signal.SIGUSR1)  # nobody can be let in by a broker that is not there
    closed, began_s = scene.n_rounds(coordinator), time.monotonic()
    scene.wait_for_rounds(coordinator, closed + 2, cap_s=120.0)
    back_s = time.monotonic() - began_s
    for one in (stubs, coordinator):
        one.process.send_signal(signal.SIGTERM)
    ended = scene.stubs_report(stubs, "ended")
    assert joined["seconds"] < 3 * 10.0
    assert ended["most_failed"] <= MOST_TRIES, ended
    return (
        f"{n} devices joined in {joined['seconds']:.1f} s, all back {back_s:.1f} s after the broker,"
        f" after {ended['most_failed']} failed tries at most"
    )


N_BY_DAY = 50
MOST_TRIES = 3
COORDINATOR_FAILPOINTS = [name for name in FAILPOINTS if name.startswith("coordinator.")]
DEVICE_FAILPOINTS = [name for name in FAILPOINTS if name.startswith("device.")]


@row("R7F", "the coordinator dies at its failpoints, one after the other, in one run")
def coordinator_failpoints(scene: Scene) -> str:
    port = scene.broker().address.port
    names = COORDINATOR_FAILPOINTS if scene.scale > 1 else scene.random.sample(COORDINATOR_FAILPOINTS, 4)
    serve = partial(scene.serve, port, devices=4, rounds=ENDLESS, strategy="averaging")
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
    scene.wait_for_rounds(coordinator, 2)
    scene.stopped_well(coordinator, stubs)
    judged = scene.judge()
    assert judged.n_rounds == scene.record()["rounds_closed"]
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
