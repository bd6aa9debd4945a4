"""The production coordinator and agents over a virtual clock, network and disk: one seed, one history."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from coordinator.events import RoundClosed, RunEvent
from coordinator.ledger import Entry, read_ledger
from coordinator.run_folder import RunFolder
from coordinator.server import Coordinator
from device_agent.agent import Agent
from device_agent.sending import Conduct
from device_agent.state import DeviceFolder
from tests.faults.sim.disk import VirtualDisk
from tests.faults.sim.models import BATCH_BYTES, FILE, ChainCourse, ChainModel, ChainPlanner
from tests.faults.sim.net import SimBroker, SimLink
from tests.faults.sim.oracle import Tape, judge, model_in
from tests.faults.sim.scenario import Failpoint, Fault, Scenario
from toolkit.config import Run
from toolkit.errors import FencedError, HseeError, MachineError, RunError
from toolkit.failpoints import watched
from toolkit.wire.messages import DataSummary
from toolkit.wire.topics import Topics
from toolkit.wire.words import BridgeWord, DeviceWord, encode_word

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


@dataclass
class History:
    """What came of a scenario."""

    seed: int
    problems: list[str]
    digest: str
    places: Counter[str]
    ended_s: float
    n_crashes: int
    entries: list[Entry] = field(repr=False)


class World:
    """Runs one scenario.

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
        self._progress: tuple[int, int, float] = (0, 0, 0.0)

    def run(self) -> History:
        """Run to the end, and judge."""
        with watched(self._past):
            self._start_coordinator()
            for index, device in enumerate(self._scenario.lists):
                self._at(0.1 * index, lambda name=device: self._start_agent(name))
            for fault in self._scenario.faults:
                self._at(fault.at_s, lambda each=fault: self._befall(each))
            self._go_on()
        return self._judged()

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

    # Processes

    def _disk(self, name: str) -> VirtualDisk:
        return self._disks.setdefault(name, VirtualDisk())

    def _observe(self, event: RunEvent) -> None:
        if isinstance(event, RoundClosed):
            self.round_seconds.append(event.report.seconds)

    def _settings(self) -> Run:
        scenario = self._scenario
        return Run(
            model="chain",
            strategy=scenario.strategy,
            rounds=scenario.rounds,
            devices=len(scenario.lists),
            wait_s=FOR_EVER_S,
            round_deadline_s=scenario.deadline_s,
            turn_s=scenario.turn_s,
            absent_s=scenario.absent_s,
            commit_every_s=scenario.commit_every_s,
            seed=scenario.seed,
            batch_size=2,
            classes=["a", "b"],
        )

    def _start_coordinator(self) -> None:
        if "coordinator" in self._processes:
            return
        disk = self._disk("coordinator")
        process: Process
        try:
            folder = RunFolder(FOLDER, RUN, disk=disk)
            term = folder.record.term + 1
            link = self._link(
                "coordinator",
                will=(TOPICS.bridge_state, encode_word(BridgeWord("offline", RUN, term))),
                published=self._tape.coordinator_published,
            )
            process = Process("coordinator", None, link, self.now_s)  # type: ignore[arg-type]
            self._acting = process
            self._processes["coordinator"] = process
            self._n_started["coordinator"] += 1
            process.mover = self._makers.coordinator(
                link,
                topics=TOPICS,
                folder=folder,
                settings=self._settings(),
                clock=lambda: process.now_s + self._clock_offsets.get("coordinator", 0.0),
                observe=self._observe,
                planner=ChainPlanner(self._lists),
                waiting_bytes=self._scenario.waiting_bytes,
                make_model=lambda *_args, strategy, **_kwargs: ChainModel(
                    strategy=strategy, spend=process.spend, step_s=SERVER_STEP_S
                ),
                connect_s=FOR_EVER_S,
            )
            n_damaged = sum(name.endswith(".aside") for name in disk.names(FOLDER / "checkpoints"))
            if n_damaged and not self._rotten:
                self._tape.problems.append("(R2) a checkpoint was torn, and no bit rotted")
            process.mover.start()
            underway = process.mover._underway
            self._tape.check_taken_up(underway.state if underway else None)
        except CrashedError:
            return
        except MachineError:
            self._kill("coordinator", power=False)
            self._at(self.now_s + 5.0, self._start_coordinator)
            return
        except HseeError as exc:
            self._tape.problems.append(f"the coordinator can't be taken up: {exc}")
            return
        finally:
            self._acting = None
        self._wake(process, self.now_s)

    def _start_agent(self, name: str) -> None:
        """Start a process of a device; ``ant+`` is a clone of ant, on another machine."""
        device = name.rstrip("+")
        if name in self._processes or name in self._over:
            return
        self._n_started[name] += 1
        n = self._n_started[name]
        nonce = sha256(f"{self._scenario.seed} {name} {n}".encode()).digest()[:16]
        process_id = f"{name}.{n}"
        link = self._link(
            name,
            client_id=device,
            will=(TOPICS.device_state(device), encode_word(DeviceWord("offline", nonce.hex()))),
            published=lambda topic, payload: self._tape.agent_published(device, process_id, topic, payload),
        )
        process = Process(name, None, link, self.now_s)  # type: ignore[arg-type]
        n_train, n_eval = self._lists[device]
        fingerprint = f"fingerprint {self._fingerprints[device]}"
        disk = self._disk(name)
        drawn = Random(f"{self._scenario.seed} {process_id}")

        def make_course(_job: Any) -> ChainCourse:
            return ChainCourse(
                device=device,
                n_train=n_train,
                n_eval=n_eval,
                fingerprint=fingerprint,
                spend=process.spend,
                step_s=self._scenario.step_s[device],
                folder=DeviceFolder(Path("/home") / device, disk=disk),
                clock=lambda: process.now_s + self._clock_offsets.get(name, 0.0),
                checkpoint_every_s=self._scenario.checkpoint_every_s,
            )

        process.mover = self._makers.agent(
            link,
            topics=TOPICS,
            device=device,
            boot_nonce=nonce,
            data=DataSummary(
                classes=["a", "b"],
                input_shape=[1],
                n_train=2 * n_train,
                n_eval=2 * n_eval,
                mean=[0.0],
                var=[1.0],
                fingerprint=fingerprint,
            ),
            profile="",
            make_trainer=make_course,
            measure=lambda _request: "",
            clock=lambda: process.now_s + self._clock_offsets.get(name, 0.0),
            say=lambda _line: None,
            conduct=Conduct(chunk_bytes=CHUNK_BYTES, draw=drawn.randbytes),
            connect_s=FOR_EVER_S,
        )
        self._processes[name] = process
        process.mover.start()
        self._wake(process, self.now_s)

    def _link(
        self,
        name: str,
        *,
        will: tuple[str, bytes],
        published: Callable[[str, bytes], None],
        client_id: str = "",
    ) -> SimLink:
        def wake(at_s: float) -> None:
            process = self._processes.get(name)
            if process is not None and process.link is link:
                self._wake(process, at_s)

        def clock() -> float:
            process = self._processes.get(name)
            return (
                max(self.now_s, process.now_s) if process is not None and process.link is link else self.now_s
            )

        link = SimLink(self._hub, client_id or name, clock=clock, wake=wake, will=will, published=published)
        return link

    def _kill(self, name: str, *, power: bool) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.link.die(at_once=not power)
        if power:
            self._disk(name).cut_power(self._rng)
        else:
            self._disk(name).kill()

    def _end(self, process: Process) -> None:
        """A process that is over leaves by itself."""
        if isinstance(process.mover, Coordinator):
            self._is_over = True
            self.held |= held_by(process.mover)
            self._at(self.now_s + 120.0, self._tell_the_end_again)
        else:
            self._over.add(process.name)
            try:
                process.mover.result()
                self.ended[process.name] = "finished"
            except FencedError:
                self.ended[process.name] = "fenced"
                if f"{process.name}+" not in self._n_started and not process.name.endswith("+"):
                    self._tape.problems.append(f"(R18) {process.name} is fenced, and has no clone")
            except RunError as exc:
                self._tape.problems.append(f"{process.name} ended badly: {exc}")
        try:
            process.mover.close()
        except MachineError:
            pass  # its disk is full: it says so, and what was saved before is whole
        except CrashedError:
            return
        finally:
            self._processes.pop(process.name, None)
            self._disk(process.name).kill()

    def _tell_the_end_again(self) -> None:
        """Somebody missed the end, with the broker that retained it: an operator resumes the run, once."""
        if not self._everybody_is_over() and self._n_endings_told < 2:
            self._n_endings_told += 1
            self._start_coordinator()

    def _failed(self, process: Process, exc: Exception) -> None:
        if isinstance(exc, MachineError):
            self._kill(process.name, power=False)
            self._at(self.now_s + 5.0, self._starter(process.name))
            return
        self._tape.problems.append(f"{process.name}: {type(exc).__name__}: {exc}")

    def _starter(self, name: str) -> Callable[[], None]:
        return self._start_coordinator if name == "coordinator" else lambda: self._start_agent(name)

    def _everybody_is_over(self) -> bool:
        """Whether the run is, and every device that had a job in it; who came too late for one waits for the next."""
        return self._is_over and all(
            isinstance(process.mover, Agent) and not process.mover.cut for process in self._processes.values()
        )

    # What befalls them

    def _past(self, place: str) -> None:
        """A process comes past a failpoint."""
        self._places[place] += 1
        for failpoint in self._pending:
            if failpoint.place == place and self._places[place] == failpoint.hit:
                self._pending.remove(failpoint)
                self._crash(failpoint)

    def _crash(self, failpoint: Failpoint) -> None:
        process = self._acting
        if process is None:
            return
        self._n_crashes += 1
        self._kill(process.name, power=failpoint.power)
        self._at(process.now_s + RESTART_S, self._starter(process.name))
        if failpoint.broker_too:
            self._hub.stop()
            self._at(self.now_s + 3.0, self._hub.start)
        raise CrashedError

    def _befall(self, fault: Fault) -> None:
        if fault.kind in ("stop broker", "kill coordinator"):
            self._befall_services(fault)
        elif fault.kind == "leave" and not self._has_plan():
            self._at(self.now_s + 1.0, lambda: self._befall(fault))
        elif fault.kind == "full disk":
            disk = self._disk(fault.who)
            disk.full = True
            self._at(self.now_s + fault.for_s, lambda: setattr(disk, "full", False))
        elif fault.kind == "clone":
            self._start_agent(f"{fault.who}+")
        elif fault.kind in ("cut", "stop agent"):
            self._befall_living(fault)
        else:
            self._befall_agent(fault)

    def _befall_services(self, fault: Fault) -> None:
        if fault.kind == "stop broker":
            self._hub.stop()
            self._at(self.now_s + fault.for_s, self._hub.start)
        elif not self._is_over:
            self._kill("coordinator", power=fault.power)
            if fault.rots:
                self._rot()
            self._at(self.now_s + fault.for_s, self._start_coordinator)

    def _befall_living(self, fault: Fault) -> None:
        process = self._processes.get(fault.who)
        if process is None:
            return
        if fault.kind == "cut":
            process.link.cut(fault.for_s)
        else:
            process.stopped_until_s = self.now_s + fault.for_s
            process.due_s = float("inf")
            self._wake(process, process.stopped_until_s)

    def _befall_agent(self, fault: Fault) -> None:
        self._kill(fault.who, power=fault.power or fault.kind == "leave")
        if fault.kind == "leave":
            self._over.add(fault.who)
            return
        if fault.kind == "new data":
            self._fingerprints[fault.who] += 1
            n_train, n_eval = self._lists[fault.who]
            self._lists[fault.who] = n_train % 5 + 1, n_eval
        self._at(self.now_s + fault.for_s, lambda: self._start_agent(fault.who))

    def _has_plan(self) -> bool:
        """Whether a plan is kept that no power cut takes back."""
        kept = [
            name for name in self._disk("coordinator").names(FOLDER / "checkpoints") if name[-1].isdigit()
        ]
        return len(kept) > 1

    def _rot(self) -> None:
        """A bit flips: in the record, which has a copy, or in the newest checkpoint, where an older one is whole."""
        disk = self._disk("coordinator")
        kept = [name for name in disk.names(FOLDER / "checkpoints") if name[-1].isdigit()]
        if len(kept) > 1 and not self._rotten:
            self._rotten = True
            newest = FOLDER / "checkpoints" / kept[-1]
            of_newest = [newest / name for name in disk.names(newest)]
            disk.flip(
                self._rng.choice([*of_newest, FOLDER / "run.json", FOLDER / "run-copy.json"]), self._rng
            )

    def _heard(self, who: str, topic: str, payload: bytes) -> None:
        self._history.update(f"{self.now_s:.6f} {who} {topic} ".encode() + payload)

    # The end

    def _judged(self) -> History:
        disk = self._disk("coordinator")
        problems = list(self._tape.problems)
        entries: list[Entry] = []
        if not problems:
            folder = RunFolder(FOLDER, RUN, disk=disk)
            generation = folder.checkpoints.kept()[-1]
            length = generation.state().ledger_length
            entries = read_ledger(FOLDER / "ledger.jsonl", disk=disk)[:length]
            theta, copies = model_in(generation.read(FILE))
            problems = judge(
                entries,
                self._tape,
                theta=theta,
                copies=copies,
                strategy=self._scenario.strategy,
                seed=self._scenario.seed,
            )
        return History(
            self._scenario.seed,
            problems,
            self._history.hexdigest(),
            self._places,
            self.now_s,
            self._n_crashes,
            entries,
        )


def held_by(coordinator: Coordinator) -> dict[str, int]:
    """Lengths of all that a coordinator holds and that could grow with time."""
    found = {}
    parts = {
        "roll": coordinator._roll,
        "intake": coordinator._intake,
        "flow": coordinator._flow,
        "commits": coordinator._commits,
        "course": coordinator._course,
    }
    if coordinator._underway is not None:
        parts["loop"] = coordinator._underway.loop
    for part, owner in {**parts, "coordinator": coordinator}.items():
        for name, value in vars(owner).items():
            if isinstance(value, dict | list | set | tuple | deque):
                found[f"{part}.{name}"] = len(value)
    return found
