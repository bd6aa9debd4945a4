"""Who takes part: coordinators and agents are started, killed and end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from coordinator.fleet.bridge import last_will
from coordinator.fleet.events import RoundClosed, RunEvent
from coordinator.rounds.underway import Makes
from coordinator.server import Coordinator
from coordinator.store.run_folder import RunFolder
from device_agent.sending import Conduct
from device_agent.state import DeviceFolder
from tests.faults.sim.models import (
    ACTIVATION_LIMIT,
    BATCH_SIZE,
    ChainCourse,
    ChainModel,
    ChainPlanner,
    ChainSegments,
    spoiled,
)
from tests.faults.sim.net import SimLink
from tests.faults.sim.stage import (
    CHUNK_BYTES,
    FOLDER,
    FOR_EVER_S,
    RESTART_S,
    RUN,
    SERVER_STEP_S,
    TOPICS,
    CrashedError,
    Process,
    Stage,
)
from toolkit.config import Run
from toolkit.errors import FencedError, HseeError, MachineError, RunError
from toolkit.wire.messages import DataSummary
from toolkit.wire.words import DeviceWord, encode_word


class Cast(Stage):
    """Production coordinators and agents, each with its link and disk."""

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
            activation_limit=ACTIVATION_LIMIT,
            waiting_bytes=scenario.waiting_bytes,
        )

    def _start_coordinator(self, name: str = "coordinator") -> None:
        """Start a coordinator; a ``rival`` is one from a copy of the other's disk, elsewhere."""
        if name == "rival" and self._is_over:
            return  # nobody takes up what has ended
        if name not in self._disks:
            name = "coordinator"  # a rival that was away is the run's coordinator by now
        if name in self._processes:
            return
        disk = self._disk(name)
        process: Process
        try:
            drawn = Random(f"{self._scenario.seed} {name} {self._n_started}")
            folder = RunFolder(FOLDER, RUN, disk=disk, draw=drawn.randbytes)
            link = self._link(
                name,
                client_id="coordinator" if self._rival_shares else "",
                will=last_will(TOPICS, folder),
                published=partial(self._tape.coordinator_published, disk),
            )
            process = Process(name, None, link, self.now_s)  # type: ignore[arg-type]
            self._acting = process
            self._processes[name] = process
            self._n_started[name] += 1
            process.mover = self._makers.coordinator(
                link,
                topics=TOPICS,
                folder=folder,
                settings=self._settings(),
                clock=lambda: process.now_s + self._clock_offsets.get("coordinator", 0.0),
                observe=self._observe,
                planner=ChainPlanner(sync_every=self._scenario.sync_every),
                makes=Makes(
                    model=lambda *_args, strategy, segments, **_kwargs: ChainModel(
                        strategy=strategy, segments=segments, spend=process.spend, step_s=SERVER_STEP_S
                    ),
                    segments=partial(ChainSegments, made=self._tape.made),  # type: ignore[arg-type]
                ),
                connect_s=FOR_EVER_S,
            )
            n_damaged = sum(name.endswith(".aside") for name in disk.names(FOLDER / "checkpoints"))
            if n_damaged > self._n_rewound + self._rotten:
                self._tape.problems.append("(R2) a checkpoint was torn, and no bit rotted")
            process.mover.start()
            underway = process.mover._underway
            self._tape.check_taken_up(disk, underway.state if underway else None)
        except CrashedError:
            return
        except MachineError:
            self._kill(name, power=False)
            self._at(self.now_s + 5.0, self._starter(name))
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
                unfit_every=self._scenario.unfit.get(device, 0),
                taken=self._tape.taken,
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
                n_train=BATCH_SIZE * n_train,
                n_eval=BATCH_SIZE * n_eval,
                mean=[0.0],
                var=[1.0],
                fingerprint=fingerprint,
            ),
            profile="",
            make_trainer=make_course,
            measure=lambda _request: "",
            clock=lambda: process.now_s + self._clock_offsets.get(name, 0.0),
            say=lambda _line: None,
            conduct=Conduct(accept_weights="coordinator", chunk_bytes=CHUNK_BYTES, draw=drawn.randbytes),
            connect_s=FOR_EVER_S,
        )
        if device in self._scenario.unfit:
            sender = process.mover._sender
            send = sender._send
            sender._send = lambda run, payload: send(run, spoiled(payload))  # type: ignore[method-assign]
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
        def mine() -> Process | None:
            return next((each for each in self._processes.values() if each.link is link), None)

        def wake(at_s: float) -> None:
            process = mine()
            if process is not None:
                self._wake(process, at_s)

        def clock() -> float:
            process = mine()
            return self.now_s if process is None else max(self.now_s, process.now_s)

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
        if name == "coordinator":
            self._hand_over()

    def _hand_over(self) -> None:
        """The coordinator is gone: its rival, if there is one, is the run's from here on."""
        if "rival" not in self._disks:
            return
        self._was_handed_over = True
        self._disks["coordinator"] = self._disks.pop("rival")
        rival = self._processes.pop("rival", None)
        if rival is not None:
            rival.name = "coordinator"
            self._processes["coordinator"] = rival
            self._n_started["coordinator"] += 1

    def _gave_way(self, process: Process) -> None:
        """A coordinator ended because another one goes on: there has to be one, or one that died since."""
        is_rival = process.name == "rival"
        self._kill(process.name, power=False)
        if is_rival:
            del self._disks["rival"]
        elif not self._is_over and "coordinator" not in self._processes:
            if not self._was_handed_over:
                self._tape.problems.append("(R23) the only coordinator gave way")
            self._was_handed_over = False
            self._at(self.now_s + RESTART_S, self._start_coordinator)

    def _swap(self) -> None:
        """The rival ended the run: it was its coordinator, and what is left of the other one its rival."""
        for table in (self._disks, self._processes):
            here, there = table.pop("coordinator", None), table.pop("rival", None)
            table.update({name: each for name, each in (("coordinator", there), ("rival", here)) if each})
        for name in ("coordinator", "rival"):
            if name in self._processes:
                self._processes[name].name = name

    def _end(self, process: Process) -> None:
        """A process that is over leaves by itself."""
        rival = self._processes.get("rival")
        if process is rival:
            self._swap()
        elif process.name == "coordinator" and rival is not None and rival.mover.term > process.mover.term:  # type: ignore[union-attr]
            self._kill(process.name, power=False)
            return
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
        if (
            isinstance(process.mover, Coordinator)
            and type(exc) is RunError
            and process.mover.status == "stopped"
        ):
            self._gave_way(process)
            return
        self._tape.problems.append(f"{process.name}: {type(exc).__name__}: {exc}")

    def _starter(self, name: str) -> Callable[[], None]:
        if name in ("coordinator", "rival"):
            return lambda: self._start_coordinator(name)
        return lambda: self._start_agent(name)


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
