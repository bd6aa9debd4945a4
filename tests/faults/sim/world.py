"""What befalls a fleet, from its start to the judgement: one seed, one history."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field

from coordinator.store.ledger import Entry, read_ledger
from coordinator.store.run_folder import RunFolder
from tests.faults.sim.cast import Cast
from tests.faults.sim.models import BATCH_BYTES, FILE
from tests.faults.sim.oracle import judge, model_in
from tests.faults.sim.scenario import Failpoint, Fault
from tests.faults.sim.stage import FOLDER, RESTART_S, RUN, CrashedError
from toolkit.errors import CheckpointError, MachineError, RunError
from toolkit.failpoints import watched


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


class World(Cast):
    """Runs one scenario; see :class:`tests.faults.sim.stage.Stage`."""

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
        elif fault.kind in ("rewind", "rival", "twins"):
            self._befall_run(fault)
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

    def _befall_run(self, fault: Fault) -> None:
        """An operator takes the run back; or somebody takes up a copy of its folder on another machine."""
        if self._is_over or "coordinator" not in self._processes or not self._has_plan():
            return
        if "rival" in self._disks:
            return
        if fault.kind == "rewind":
            self._kill("coordinator", power=False)
            self._rewind()
            self._at(self.now_s + fault.for_s, self._start_coordinator)
        elif fault.kind == "rival":
            self._copy_run(fault)
            self._start_coordinator("rival")
        else:
            self._kill("coordinator", power=False)
            self._copy_run(fault)
            self._at(self.now_s + RESTART_S, self._start_coordinator)
            self._at(self.now_s + fault.for_s, lambda: self._start_coordinator("rival"))

    def _copy_run(self, fault: Fault) -> None:
        disk = self._disk("coordinator")
        elsewhere = self._disks["rival"] = copy.deepcopy(disk)
        elsewhere.kill()
        elsewhere.full = False
        self._tape.copy(disk, elsewhere)
        self._rival_shares = fault.shares

    def _rewind(self) -> None:
        disk = self._disk("coordinator")
        folder = RunFolder(FOLDER, RUN, disk=disk)
        try:
            folder.rewind()
        except (RunError, CheckpointError, MachineError):
            return  # there are not two checkpoints, the older one is damaged, or the disk is full: nothing was changed
        finally:
            folder.close()
        self._n_rewound += 1
        self._tape.begin_anew(disk)

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
            theta, copies, made = model_in(generation.read(FILE))
            problems = judge(
                entries,
                self._tape,
                theta=theta,
                copies=copies,
                made=made,
                unfit=self._scenario.unfit,
                n_waiting=self._scenario.waiting_bytes // BATCH_BYTES,
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
