"""The real coordinator and the real agents of one simulated run, whatever carries their messages."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from coordinator.fleet.events import RoundClosed, RunEvent
from coordinator.rounds.underway import Makes
from coordinator.server import Coordinator
from coordinator.store.run_folder import RunFolder
from device_agent.agent import Agent
from device_agent.local_data import LocalData
from device_agent.saved_place import saved_place
from device_agent.sending import Conduct
from device_agent.state import DeviceFolder
from toolkit.disk import write_atomically
from toolkit.errors import PlanError, RunError
from toolkit.link.base import Link
from toolkit.nn.compute import choose_compute
from toolkit.simulate.actors import PacedServerModel, PacedTrainer, go_back_to
from toolkit.simulate.data import FleetData
from toolkit.simulate.planning import data_facts, model_spec, planner_of, profile_texts
from toolkit.simulate.scenario import Scenario
from toolkit.simulate.times import (
    ActorClock,
    fleet_times,
)
from toolkit.wire.job import Job
from toolkit.wire.messages import MeasureRequest
from toolkit.wire.topics import Topics

TOPICS = Topics("simulated")
_METERS_FILE = "meters.json"


class Meters(msgspec.Struct, frozen=True, kw_only=True):
    """What a run has cost so far, as it stood when ``round`` was closed.

    Attributes:
        wall_s: virtual seconds since the run began.
        device_s: computing, by device; ``server_s`` likewise at the coordinator.
        up_bytes: published by each device; ``down_bytes``: received by it.
    """

    round: int = 0
    wall_s: float = 0.0
    server_s: float = 0.0
    device_s: dict[str, float] = {}
    up_bytes: dict[str, int] = {}
    down_bytes: dict[str, int] = {}


@dataclass(slots=True)
class Member:
    """One device: its clock, and once it has begun its agent and folder."""

    name: str
    data: LocalData
    clock: ActorClock = field(default_factory=ActorClock)
    agent: Agent | None = None
    folder: DeviceFolder | None = None


class SimulatedFleet:
    """Makes the parts of one run, and keeps its meters.

    Args:
        scenario: what is simulated.
        data: of the fleet.
        path: of the run folder; a run that stands there is gone on with.
        observe: takes each event of the run.
    """

    def __init__(
        self, scenario: Scenario, data: FleetData, path: Path, observe: Callable[[RunEvent], None]
    ) -> None:
        self.scenario = scenario
        self.settings = msgspec.structs.replace(scenario.run, devices=len(scenario.names))
        self.members = {name: Member(name, data.devices[name]) for name in scenario.names}
        self.path = path
        self.run = f"seed-{scenario.run.seed}"
        model = model_spec(self.settings, data_facts(scenario, data))
        self.times = fleet_times(scenario, model)
        self._profiles = profile_texts(scenario, model)
        self._observe = observe
        self.server_clock = ActorClock()
        kept = path / _METERS_FILE
        self._before = msgspec.json.decode(kept.read_bytes(), type=Meters) if kept.exists() else Meters()
        self.meters = self._before
        self.count_bytes: Callable[[], tuple[Mapping[str, int], Mapping[str, int]]] = _nothing_counted
        self.folder = RunFolder(path, self.run)
        for clock in (self.server_clock, *(m.clock for m in self.members.values())):
            clock.now_s = self.meters.wall_s

    def make_coordinator(self, link: Link, clock: Callable[[], float]) -> Coordinator:
        """Make the coordinator; devices go back to the round that it has committed."""
        kept = self.folder.checkpoints.kept()
        committed = kept[-1].round if kept else 0
        for name in self.members:
            go_back_to(self._device_path(name), committed)
        self._committed = committed
        return Coordinator(
            link,
            topics=TOPICS,
            folder=self.folder,
            settings=self.settings,
            clock=clock,
            observe=self._on_event,
            device=choose_compute(self.settings.compute),
            planner=planner_of(self.scenario),
            makes=Makes(
                model=partial(
                    PacedServerModel,
                    clock=self.server_clock,
                    step_s=self.times.server_step_s,
                    batch_size=self.settings.batch_size,
                    numerics=self.scenario.numerics,
                )
            ),
        )

    @property
    def n_moves(self) -> int:
        """Grows with all that is computed."""
        return self.server_clock.n_moves + sum(m.clock.n_moves for m in self.members.values())

    def is_lost(self, name: str) -> bool:
        """Whether a device was lost before what is simulated from here on."""
        drop = self.scenario.drops.get(name, 0)
        return bool(drop) and self._committed >= drop

    def make_agent(self, name: str, link: Link, clock: Callable[[], float], *, term: int) -> Agent:
        """Make a device's agent, as the process that it would be under this term of the coordinator."""
        member = self.members[name]
        member.agent = Agent(
            link,
            topics=TOPICS,
            device=name,
            boot_nonce=self.boot_nonce(name, term),
            data=member.data.summary(),
            profile=self._profiles[name],
            make_trainer=partial(self._make_trainer, member),
            saved_place=lambda _run: saved_place(self._device_path(name)),
            measure=_refuse_to_measure,
            clock=clock,
            say=lambda _: None,
            conduct=Conduct(accept_weights="coordinator"),  # whoever simulates owns every device
        )
        return member.agent

    def has_heard(self, name: str) -> bool:
        """Whether a device knows that the run is over; one whose process was never in it has nothing to hear."""
        agent = self.members[name].agent
        return agent is None or agent.over or not agent.cut

    def close(self) -> None:
        """Let every folder go."""
        self.folder.close()
        for member in self.members.values():
            if member.folder is not None:
                member.folder.close()

    def boot_nonce(self, name: str, term: int) -> bytes:
        """The nonce of a device's process under this term of the coordinator."""
        return hashlib.sha256(f"{self.run}/{name}/{term}".encode()).digest()[:16]

    def read_meters(self) -> Meters:
        """Read clocks and links."""
        before = self._before
        up, down = self.count_bytes()
        self.meters = Meters(
            round=self.meters.round,
            wall_s=self.server_clock.now_s,
            server_s=before.server_s + self.server_clock.busy_s,
            device_s={n: before.device_s.get(n, 0.0) + m.clock.busy_s for n, m in self.members.items()},
            up_bytes={n: before.up_bytes.get(n, 0) + up.get(n, 0) for n in self.members},
            down_bytes={n: before.down_bytes.get(n, 0) + down.get(n, 0) for n in self.members},
        )
        return self.meters

    def _on_event(self, event: RunEvent) -> None:
        if isinstance(event, RoundClosed):
            self.meters = msgspec.structs.replace(self.read_meters(), round=event.report.round)
            write_atomically(self.path / _METERS_FILE, msgspec.json.encode(self.meters))
        self._observe(event)

    def _make_trainer(self, member: Member, job: Job) -> PacedTrainer:
        step_s = self.times.devices[member.name].step_s
        if job.cut not in step_s:
            raise PlanError(
                f"The profile of device {member.name!r} has no step time after {job.cut!r}.",
                hint=f"It has: {', '.join(step_s)}.",
                device=member.name,
            )
        member.folder = DeviceFolder(self._device_path(member.name))
        return PacedTrainer(
            clock=member.clock,
            step_s=step_s[job.cut],
            drop_round=self.scenario.drops.get(member.name, 0),
            numerics=self.scenario.numerics,
            job=job,
            device=member.name,
            data=member.data,
            folder=member.folder,
            compute=self.settings.compute,
        )

    def _device_path(self, name: str) -> Path:
        return self.path / "devices" / name


def _nothing_counted() -> tuple[Mapping[str, int], Mapping[str, int]]:
    return {}, {}


def _refuse_to_measure(request: MeasureRequest) -> str:
    raise RunError(f"A simulated device can't measure itself for model {request.model.name!r}.")
