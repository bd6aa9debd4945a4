"""What a seed means: a fleet, its weather, and what befalls it."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Literal

from tests.faults.sim.models import BATCH_BYTES
from tests.faults.sim.net import CALM, Weather
from toolkit.failpoints import FAILPOINTS

Kind = Literal[
    "kill agent",
    "kill coordinator",
    "stop agent",
    "stop broker",
    "cut",
    "clone",
    "leave",
    "new data",
    "full disk",
    "rewind",
    "rival",
    "twins",
]


@dataclass(frozen=True)
class Fault:
    """Something happens at a time, to somebody, and is over after a while.

    Attributes:
        power: the machine is gone, not the process alone.
        rots: a bit of the newest checkpoint flips while the coordinator is away.
        shares: whoever is one too many has the other's account at the broker.
    """

    at_s: float
    kind: Kind
    who: str = ""
    for_s: float = 1.0
    power: bool = False
    rots: bool = False
    shares: bool = False


@dataclass(frozen=True)
class Failpoint:
    """The process dies where it comes past a place for the ``hit``-th time; the broker may be lost with it."""

    place: str
    hit: int = 1
    power: bool = False
    broker_too: bool = False


@dataclass(frozen=True)
class Scenario:
    """All that a history depends on, beside the code.

    Attributes:
        lists: device id to (training batches, held-out batches).
        step_s: of each device.
        unfit: device id to which of its places hold what nobody can train on: each so many.
        sync_every: rounds; 0 where segments are not made one.
        waiting_bytes: of activations that may wait at the coordinator.
        quiet_s: no new fault begins after it.
        horizon_s: the run is over so long after it.
    """

    seed: int
    lists: dict[str, tuple[int, int]]
    step_s: dict[str, float]
    strategy: str = "sequential"
    rounds: int = 3
    deadline_s: float = 60.0
    turn_s: float = 0.0
    absent_s: float = 86_400.0
    commit_every_s: float = 0.0
    checkpoint_every_s: float = 60.0
    weather: Weather = CALM
    faults: tuple[Fault, ...] = ()
    failpoints: tuple[Failpoint, ...] = ()
    gone: frozenset[str] = frozenset()
    horizon_s: float = 6000.0
    waiting_bytes: int = 2**28
    unfit: dict[str, int] = field(default_factory=dict)
    sync_every: int = 0

    @property
    def quiet_s(self) -> float:
        return max((fault.at_s + fault.for_s for fault in self.faults), default=0.0)


def scenario_of(seed: int) -> Scenario:
    """Draw a scenario."""
    rng = Random(seed)
    devices = ["ant", "bee", "cat", "dog"][: rng.choice((1, 2, 2, 3, 3, 4))]
    lists = {device: (rng.randint(1, 6), rng.randint(0, 2)) for device in devices}
    delay_s = rng.choice((0.001, 0.02, 0.15, 0.3))
    weather = Weather(
        delay_s=delay_s,
        jitter_s=delay_s * rng.choice((0.0, 1.0, 5.0)),
        p_loss=rng.choice((0.0, 0.0, 0.02, 0.1)),
        p_double=rng.choice((0.0, 0.05, 0.3)),
        keeps_sessions=rng.random() < 0.5,
        lies=rng.random() < 0.3,
        keeps_retained=rng.random() < 0.7,
    )
    faults = [_fault(rng, devices) for _ in range(rng.randint(0, 6))]
    gone = {fault.who for fault in faults if fault.kind == "leave"}
    if gone == set(devices):
        faults = [fault for fault in faults if fault.kind != "leave"]
        gone = set()
    failpoints = ()
    if rng.random() < 0.6:
        place = rng.choice(sorted(FAILPOINTS))
        failpoints = (Failpoint(place, rng.randint(1, 4), rng.random() < 0.5, rng.random() < 0.3),)
    more = Random(f"{seed} more")
    if more.random() < 0.4:
        faults.append(
            Fault(more.uniform(2.0, 40.0), more.choice(("rewind", "rival")), for_s=more.choice((0.5, 15.0)))
        )
    new = Random(f"{seed} new")
    if new.random() < 0.2:
        faults.append(
            Fault(
                new.uniform(2.0, 40.0),
                "twins",
                for_s=new.choice((0.5, 1.0, 1.01, 15.0)),
                shares=new.random() < 0.5,
            )
        )
    waiting_bytes = more.choice((2**28, 2**28, 6 * BATCH_BYTES, 3 * BATCH_BYTES))
    unfit = {more.choice(devices): more.choice((1, 2, 3))} if more.random() < 0.3 else {}
    sync_every = more.choice((0, 0, 1, 2))
    if new.random() < 0.1:  # enough of what is unfit to be parked for
        parked = new.choice(devices)
        lists[parked] = new.randint(14, 18), lists[parked][1]
        unfit = {parked: 1}
        waiting_bytes = 3 * BATCH_BYTES
    return Scenario(
        seed=seed,
        lists=lists,
        step_s={device: rng.choice((0.05, 0.3, 2.0)) for device in devices},
        strategy=rng.choice(("sequential", "sequential", "averaging", "consolidated")),
        rounds=rng.randint(2, 5),
        deadline_s=rng.choice((20.0, 60.0, 120.0)),
        turn_s=rng.choice((0.0, 3.0)),
        commit_every_s=rng.choice((0.0, 0.0, 0.5, 3.0)),
        checkpoint_every_s=rng.choice((1.0, 60.0)),
        weather=weather,
        faults=tuple(sorted(faults, key=lambda fault: fault.at_s)),
        failpoints=failpoints,
        gone=frozenset(gone),
        waiting_bytes=waiting_bytes,
        unfit=unfit,
        sync_every=sync_every,
    )


def _fault(rng: Random, devices: list[str]) -> Fault:
    kind: Kind = rng.choice(
        (
            "kill agent",
            "kill agent",
            "kill coordinator",
            "kill coordinator",
            "kill coordinator",
            "stop agent",
            "stop broker",
            "cut",
            "cut",
            "clone",
            "leave",
            "new data",
            "full disk",
        )
    )
    who = rng.choice([*devices, "coordinator"]) if kind in ("cut", "full disk") else rng.choice(devices)
    if kind in ("kill coordinator", "stop broker"):
        who = ""
    return Fault(
        at_s=rng.uniform(0.0, 40.0),
        kind=kind,
        who=who,
        for_s=rng.choice((0.1, 2.0, 15.0, 45.0)),
        power=rng.random() < 0.5,
        rots=rng.random() < 0.3,
    )
