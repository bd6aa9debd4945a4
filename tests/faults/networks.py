"""Rows in which the network or the broker's memory of its clients is not what it should be."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from tests.e2e.processes import Running, wait_until
from tests.faults import far
from tests.faults.cable import Cable
from tests.faults.registry import row
from tests.faults.scene import ENDLESS, RUN, Scene, SkippedRowError, seconds_until
from tests.faults.stubs import device_name
from tests.mosquitto import Mosquitto, find_mosquitto
from tests.served_broker import ServedBroker


@row("R6", "the network is gone for a while: noticed within two keep-alives, back in the open round")
def network_gone(scene: Scene) -> str:
    broker = scene.broker()
    keep_alive_s, gone_s = 2, 5.0 * scene.scale
    with Cable(broker.address.port) as cable:
        stubs = scene.stubs(cable.port, 2, pace=0.02, keep_alive=keep_alive_s, max_backoff=1.0)
        coordinator = scene.serve(broker.address.port, devices=2, rounds=ENDLESS)
        scene.wait_for_rounds(coordinator, 2)
        cable.pull()
        noticed_s = seconds_until(coordinator, "is offline", 30.0)
        time.sleep(max(0.0, gone_s - noticed_s))
        cable.plug_in()
        back_s = seconds_until(coordinator, "is back", 60.0)
        scene.wait_for_rounds(coordinator, scene.n_rounds(coordinator) + 2)
        scene.stopped_well(coordinator, stubs)
    judged = scene.judge()
    assert noticed_s < 3 * 2 * keep_alive_s
    assert back_s < 30.0
    return (
        f"noticed after {noticed_s:.1f} s (keep-alive {keep_alive_s} s), back after {back_s:.1f} s; {judged}"
    )


def restarted(broker: Mosquitto) -> None:
    """Stop a broker in order and start it: it has what it kept."""
    broker.stop()
    broker.start()


def wiped(broker: Mosquitto) -> None:
    """Stop a broker in order, and start it without what it kept."""
    broker.stop()
    (broker.log_path.parent / "mosquitto.db").unlink()
    broker.start()


@row("R4", "MQTT sessions kept, lost, wiped, and claimed present when they are not")
def sessions(scene: Scene) -> str:
    """One run: devices with clean and with kept sessions, and some whose broker claims one every time."""
    broker = scene.broker(persistence=True)
    port = broker.address.port
    with Cable(port) as honest, Cable(port, claims_sessions=True) as lying:
        flags = {"pace": 0.005, "max_backoff": 0.5}
        stubs = [
            scene.stubs(honest.port, 1, first=0, **flags),
            scene.stubs(honest.port, 1, first=1, sessions="kept", **flags),
            scene.stubs(lying.port, 1, first=2, **flags),
            scene.stubs(lying.port, 1, first=3, sessions="kept", **flags),
        ]
        losses: list[tuple[str, Callable[[], None]]] = [
            ("kept", honest.tear),
            ("kept on disk", partial(restarted, broker)),
            ("wiped", partial(wiped, broker)),
            ("lost", broker.restart),
            ("claimed", lying.tear),
        ]
        coordinator = scene.serve(port, devices=4, rounds=ENDLESS, sessions="kept")
        scene.wait_for_rounds(coordinator, 2)
        took = []
        for number in range(20 if scene.scale > 1 else len(losses)):
            _, lose = losses[number % len(losses)]
            time.sleep(scene.random.uniform(0.0, 0.1))
            lose()
            closed, began_s = scene.n_rounds(coordinator), time.monotonic()
            scene.wait_for_rounds(coordinator, closed + 2)
            took.append(time.monotonic() - began_s)
        scene.stopped_well(coordinator, *stubs)
    return f"{len(took)} of {len(took)} losses, two rounds after {max(took):.1f} s at most; {scene.judge()}"


@dataclass(frozen=True)
class Cell:
    """A link: its round trip, and what becomes of packets, each way."""

    rtt_ms: int
    loss: float
    double: float = 0.0
    reorder: float = 0.0

    def __str__(self) -> str:
        extra = ", doubled and reordered" if self.double else ""
        return f"{self.rtt_ms} ms, {self.loss:.0%}{extra}"


WORST_RTT_MS, WORST_LOSS = 600, 0.3
CELLS = [
    Cell(rtt_ms, loss, double, double)
    for rtt_ms in (0, 100, 300, WORST_RTT_MS)
    for loss in (0.0, 0.01, 0.05, 0.15, WORST_LOSS)
    for double in (0.0, 0.05)
]
QUICK_CELLS = [Cell(300, 0.05, 0.05, 0.05), Cell(WORST_RTT_MS, 0.01)]
ROUNDS = 2
MEASURED_S = 60.0
STALL_S = 240.0
"""Longest time in any cell without a round or a word; at 30 % loss TCP itself pauses for minutes."""


class FarFleet:
    """A broker with TLS near the coordinator, and devices that reach it over a link of some shape.

    Args:
        scene: a part of its own.
        number: of the link among those that are there at once.
        cell: the shape.
    """

    def __init__(self, scene: Scene, number: int, cell: Cell) -> None:
        self._scene = scene
        net = f"10.{203 + number // 64}.{scene.random.randrange(256)}"
        near, self._far = f"{net}.{4 * (number % 64) + 1}", f"{net}.{4 * (number % 64) + 2}"
        accounts = [device_name(0), device_name(1), f"coord-{RUN}"]
        self.served = ServedBroker(scene.folder / "broker", accounts, hosts=[self._far], bind="")
        self.served.start()
        carrier = scene.hsee.python(
            *("-m", "tests.faults.far", "--near", near, "--delay-ms", cell.rtt_ms / 2, "--loss", cell.loss),
            *("--double", cell.double, "--reorder", cell.reorder, "--seed", scene.random.randrange(2**32)),
        )
        wait_until(lambda: carrier.out.endswith("\n"), carrier.describe)
        if carrier.out.startswith(far.REFUSED):
            self.served.stop()
            raise SkippedRowError(carrier.out.strip())

    @property
    def port(self) -> int:
        return self.served.folder.record.port

    def serve(self, **flags: object) -> Running:
        """Start the coordinator, beside its broker."""
        return self._scene.serve(self.port, broker_folder=self.served.folder.path, devices=2, **flags)

    def stubs(self, **flags: object) -> Running:
        """Start the devices, far away."""
        return self._scene.stubs(self.port, 2, host=self._far, broker_folder=self.served.folder.path, **flags)

    def bare(self, seconds: float) -> float:
        """Publish from where the devices are, with nothing but paho; returns acknowledged messages a second."""
        words = ("--broker", f"{self._far}:{self.port}", "--broker-folder", self.served.folder.path)
        loops = [
            self._scene.hsee.python(
                *("-m", "tests.faults.bare", *words, "--run", RUN, "--device", device_name(number)),
                *("--seconds", seconds),
            )
            for number in range(2)
        ]
        self._scene.ended_well(*loops, cap_s=seconds + 120.0)
        return sum(float(one.out) for one in loops)


def cross(scene: Scene, number: int, cell: Cell) -> str:
    """Play a whole run over one link; returns what was seen."""
    part = scene.part(f"cell{number}")
    fleet = FarFleet(part, number, cell)
    try:
        began_s = time.monotonic()
        coordinator, stubs = fleet.serve(rounds=ROUNDS), fleet.stubs(max_backoff=2.0)
        for closed in range(1, ROUNDS + 1):
            part.wait_for_rounds(coordinator, closed, cap_s=STALL_S)
        part.ended_well(coordinator, stubs, cap_s=STALL_S)
        part.judge()
        assert part.stubs_report(stubs, "ended")["errors"] == []
    except AssertionError as exc:
        raise AssertionError(f"at {cell}: {exc}") from exc
    finally:
        fleet.served.stop()
    return f"{cell}: {time.monotonic() - began_s:.0f} s"


@row("R5", "a long, lossy link that doubles and reorders packets, with TLS: as promised in every cell")
def lossy(scene: Scene) -> str:
    need_far_links()
    cells = QUICK_CELLS if scene.scale == 1 else CELLS
    with ThreadPoolExecutor(6) as pool:
        told = list(pool.map(lambda pair: cross(scene, *pair), enumerate(cells)))
    return "; ".join(told)


@row("R5G", "goodput at 300 ms and 5 % loss, of a bare paho loop's", quick=False)
def goodput(scene: Scene) -> str:
    need_far_links()
    fleet = FarFleet(scene, 0, Cell(300, 0.05))
    try:
        bare = fleet.bare(MEASURED_S)
        coordinator, stubs = fleet.serve(rounds=ENDLESS, round_steps=64), fleet.stubs()
        scene.stubs_report(stubs, "joined")
        n_before, began_s = scene.n_applied(), time.monotonic()
        time.sleep(MEASURED_S)
        ours = (scene.n_applied() - n_before) / (time.monotonic() - began_s)
        scene.stopped_well(coordinator, stubs)
    finally:
        fleet.served.stop()
    judged = scene.judge()
    assert ours > bare / 2, (
        f"{ours:.1f} batches a second, {bare:.1f} messages of the same length by bare paho"
    )
    return f"{ours / bare:.2f} of a bare loop's {bare:.1f} messages a second; {judged}"


def need_far_links() -> None:
    """Skip the row where there can be none."""
    if find_mosquitto() is None:
        raise SkippedRowError("mosquitto is not installed")
    if not far.is_possible():
        raise SkippedRowError("far links need root, /dev/net/tun and the ip command")
