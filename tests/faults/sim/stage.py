"""One thing after the other in virtual time: processes that move, and what is looked at as they do."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random

from coordinator.server import Coordinator
from device_agent.agent import Agent
from tests.faults.sim.disk import VirtualDisk
from tests.faults.sim.models import BATCH_BYTES
from tests.faults.sim.net import SimBroker, SimLink
from tests.faults.sim.oracle import Tape
from tests.faults.sim.scenario import Scenario
from toolkit.wire.topics import Topics

TOPICS = Topics("sim")
RUN = "run1"
FOLDER = Path("/disk/run1")
TICK_S = 1.0
SERVER_STEP_S = 0.02
CHUNK_BYTES = 300
PROGRESS_S = 150.0
"""(f) while nothing befalls the fleet, the ledger grows within so long."""
FOR_EVER_S = 1e9
RESTART_S = 1.0
SETTLED_S = 45.0
"""(R23) of two coordinators that have both been connected for so long, one has given way."""


class CrashedError(BaseException):
    """The process that came past a failpoint is dead."""


@dataclass(frozen=True)
class Makers:
    """Who is put to the test; mutants replace one."""

    coordinator: type[Coordinator] = Coordinator
    agent: type[Agent] = Agent


@dataclass(eq=False)
class Process:
    """One living process: what moves, its own time, its link."""

    name: str
    mover: Coordinator | Agent
    link: SimLink
    now_s: float
    due_s: float = float("inf")
    stopped_until_s: float = 0.0

    def spend(self, seconds: float) -> None:
        self.now_s += seconds


class Stage(ABC):
    """Processes on a virtual clock, network and disk.

    Args:
        scenario: what befalls whom.
        makers: who is put to the test.
        clock_offsets: what each process's clock says beyond the time.

    Attributes:
        ended: how each agent's process ended that did so by itself.
        round_seconds: how long each round was open.
        held: what the processes held at the run's end, in items.
    """

    def __init__(
        self,
        scenario: Scenario,
        makers: Makers = Makers(),
        *,
        clock_offsets: Mapping[str, float] | None = None,
    ) -> None:
        self._clock_offsets = clock_offsets or {}
        self.ended: dict[str, str] = {}
        self.round_seconds: list[float] = [0.0]
        self.held: dict[str, int] = {}
        self._scenario = scenario
        self._makers = makers
        self._rng = Random(scenario.seed + 1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._n_events = 0
        self.now_s = 0.0
        self._history = sha256()
        self._hub = SimBroker(
            scenario.weather, self._rng, at=self._at, now=lambda: self.now_s, heard=self._heard
        )
        self._tape = Tape()
        self._disks: dict[str, VirtualDisk] = {}
        self._processes: dict[str, Process] = {}
        self._n_started: Counter[str] = Counter()
        self._fingerprints = dict.fromkeys(scenario.lists, 0)
        self._lists = dict(scenario.lists)
        self._over: set[str] = set()
        self._is_over = False
        self._n_endings_told = 0
        self._acting: Process | None = None
        self._places: Counter[str] = Counter()
        self._pending = list(scenario.failpoints)
        self._n_crashes = 0
        self._rotten = False
        self._n_rewound = 0
        self._rival_shares = False
        self._was_handed_over = False
        self._two_since = float("inf")
        self._progress: tuple[int, int, float] = (0, 0, 0.0)

    # Time

    def _go_on(self) -> None:
        while self._events and not self._everybody_is_over() and not self._tape.problems:
            self.now_s, _, act = heapq.heappop(self._events)
            if self.now_s > self._scenario.quiet_s + self._scenario.horizon_s:
                self._tape.problems.append("(f) the run does not end")
                return
            act()

    def _at(self, at_s: float, act: Callable[[], None]) -> None:
        self._n_events += 1
        heapq.heappush(self._events, (max(at_s, self.now_s), self._n_events, act))

    def _wake(self, process: Process, at_s: float) -> None:
        at_s = max(at_s, process.now_s, process.stopped_until_s)
        if at_s < process.due_s:
            process.due_s = at_s
            self._at(at_s, lambda: self._move(process, at_s))

    def _move(self, process: Process, at_s: float) -> None:
        if self._processes.get(process.name) is not process or at_s != process.due_s:
            return
        process.due_s = float("inf")
        process.now_s = max(process.now_s, at_s)
        self._acting = process
        before = process.now_s, self._n_events, process.link.n_heard
        try:
            process.mover.poll(0.0)
        except CrashedError:
            return
        except Exception as exc:  # noqa: BLE001 - whatever it is, its seed must be told
            self._failed(process, exc)
            return
        finally:
            self._acting = None
        self._look_at_progress()
        self._look_at_rivals()
        self._look_at_memory(process.mover)
        if process.mover.over:
            self._end(process)
            return
        busy = before != (process.now_s, self._n_events, process.link.n_heard)
        self._wake(process, process.now_s if busy else min(process.now_s + TICK_S, process.link.next_s))

    def _look_at_progress(self) -> None:
        """(f) an entry within a stated time once nothing befalls the fleet any more."""
        server = self._processes.get("coordinator")
        here = (self._n_started["coordinator"], 0)
        if server is not None:
            here = (self._n_started["coordinator"], server.mover._ledger.length)  # type: ignore[union-attr]
        if (*here,) != self._progress[:2] or self.now_s <= self._scenario.quiet_s or self._is_over:
            self._progress = (*here, self.now_s)
        elif self.now_s - self._progress[2] > PROGRESS_S:
            self._tape.problems.append(f"(f) no entry for {PROGRESS_S:g} s of quiet, at {self.now_s:.0f} s")

    def _look_at_rivals(self) -> None:
        """(R23) exactly one goes on."""
        two = [self._processes[name] for name in ("coordinator", "rival") if name in self._processes]
        if len(two) < 2 or not all(one.mover.is_connected for one in two):
            self._two_since = float("inf")
            return
        self._two_since = min(self._two_since, self.now_s)
        if self.now_s - self._two_since > SETTLED_S:
            self._tape.problems.append(f"(R23) two coordinators are at work since {self._two_since:.0f} s")

    def _look_at_memory(self, mover: Coordinator | Agent) -> None:
        """Rule 14: what was granted and is not used up stays within the budget, a single batch apart."""
        underway = mover._underway if isinstance(mover, Coordinator) else None
        if underway is None:
            return
        n_items = sum(
            len(held.waiting) if held.excused else max(held.limit - held.next, len(held.waiting))
            for held in underway.loop.devices.values()
        )
        if n_items > 1 and n_items * BATCH_BYTES > self._scenario.waiting_bytes:
            self._tape.problems.append(f"(14) {n_items} batches are granted at {self.now_s:.1f} s")

    def _disk(self, name: str) -> VirtualDisk:
        return self._disks.setdefault(name, VirtualDisk())

    def _heard(self, who: str, topic: str, payload: bytes) -> None:
        self._history.update(f"{self.now_s:.6f} {who} {topic} ".encode() + payload)

    def _everybody_is_over(self) -> bool:
        """Whether the run is, and every device that had a job in it; who came too late for one waits for the next."""
        return self._is_over and all(
            isinstance(process.mover, Agent) and not process.mover.cut for process in self._processes.values()
        )

    @abstractmethod
    def _failed(self, process: Process, exc: Exception) -> None:
        """A process can't go on."""

    @abstractmethod
    def _end(self, process: Process) -> None:
        """A process is over."""
