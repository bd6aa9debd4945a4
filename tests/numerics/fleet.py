"""A whole fleet in one process and one thread: the real agents and the real coordinator over a memory broker.

Nothing of theirs is replaced but the clock and the planner: each device gets the cut that the test gives it.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch

from coordinator.fleet.planning import GivenCuts
from coordinator.server import Coordinator
from coordinator.store.ledger import Aggregated, Applied, Synchronised, read_ledger
from coordinator.store.run_folder import RunFolder
from device_agent.agent import Agent
from device_agent.local_data import LocalData
from device_agent.sending import Conduct
from device_agent.state import DeviceFolder
from device_agent.trainer import Trainer
from tests.numerics.oracle import Data, Round
from toolkit.config import Run
from toolkit.link.memory import MemoryBroker, MemoryLink
from toolkit.nn.datasets import fingerprint, make_dataset
from toolkit.nn.partition import split_held_out
from toolkit.nn.weights import load_tensors
from toolkit.wire.job import Job
from toolkit.wire.topics import Topics

TOPICS = Topics("test")
RUN = "run1"
MAX_SWEEPS = 20_000
SWEEP_S = 0.01


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class LoggedTrainer(Trainer):
    """The trainer, and a list of the (round, seq) it trained on."""

    log: list[tuple[int, int]]

    def train_next(self):
        batch = super().train_next()
        self.log.append((self.round, self.seq))
        return batch


@dataclass
class Member:
    """A device: where it is cut, what it holds, what it did."""

    name: str
    cut: str
    data: LocalData
    agent: Agent | None = None
    folder: DeviceFolder | None = None
    trained: list[tuple[int, int]] = field(default_factory=list)
    job: Job | None = None
    said: list[str] = field(default_factory=list)
    accepts: str = "never"


def local_data(x, y, *, classes, held_out=0.25):
    """Samples and class names as a board holds them."""
    dataset = make_dataset(x, y, name="made", classes=list(classes))
    train, held = split_held_out(dataset, held_out, 0)
    return LocalData(train, held, fingerprint(dataset))


def patterns(n, shape, *, seed, classes=("a", "b", "c")):
    """``n`` noisy samples of one fixed pattern a class name; the classes take turns."""
    rng = np.random.default_rng(seed)
    names = [classes[i % len(classes)] for i in range(n)]
    clear = {c: np.random.default_rng(list(c.encode())).normal(size=shape) for c in classes}
    x = np.stack([clear[c] for c in names]) + 0.5 * rng.normal(size=(n, *shape))
    return x.astype(np.float32), np.array(names)


class Fleet:
    """Coordinator and agents, polled in turns; the turns are shuffled from ``order``."""

    def __init__(self, folder: Path, members, settings: Run, *, order=0, services=(), hub=None) -> None:
        self.members = {member.name: member for member in members}
        self.settings = settings
        self.clock = Clock()
        self.hub = hub or MemoryBroker()
        self.path = folder
        self.events = []
        self._random = random.Random(order)
        self._services = services
        self.coordinator = self._start_coordinator()

    def _start_coordinator(self) -> Coordinator:
        coordinator = Coordinator(
            MemoryLink(self.hub, "coordinator"),
            topics=TOPICS,
            folder=RunFolder(self.path / "run", RUN),
            settings=self.settings,
            clock=self.clock,
            observe=self.events.append,
            planner=GivenCuts({member.name: member.cut for member in self.members.values()}),
            services=self._services,
        )
        coordinator.start()
        return coordinator

    def restart_coordinator(self) -> None:
        """Another process takes up what the coordinator has committed."""
        self.coordinator.close()
        self.coordinator = self._start_coordinator()

    def start(self, *names: str) -> None:
        """Start the agents of devices; by default of all."""
        for name in names or self.members:
            member = self.members[name]
            member.folder = DeviceFolder(self.path / "devices" / name)
            member.agent = make_agent(member, self.hub, self.clock, boot_nonce=self._random.randbytes(16))
            member.agent.start()

    def stop(self, name: str) -> None:
        """End a device's process; it says goodbye."""
        member = self.members[name]
        member.agent.close()
        member.folder.close()
        member.agent = None

    def kill(self, name: str) -> None:
        """End a device's process without a word; what it learned since it last saved is lost."""
        member = self.members[name]
        self.hub.drop(member.agent._link)
        member.folder.close()
        member.agent = None
        saved = load_tensors(self.path / "devices" / name / "training.safetensors")["cursor"].tolist()
        member.trained[:] = [step for step in member.trained if step <= tuple(saved[:2])]

    def sweep(self) -> None:
        """Let everybody do one piece of work, in some order."""
        parties = [
            self.coordinator,
            *(m.agent for m in self.members.values() if m.agent and not m.agent.over),
        ]
        self._random.shuffle(parties)
        for party in parties:
            party.poll(0.0)
        self.clock.now += SWEEP_S

    def run_until(self, state) -> None:
        """Sweep until ``state()`` holds."""
        for _ in range(MAX_SWEEPS):
            if state():
                return
            self.sweep()
        raise AssertionError(f"not reached in {MAX_SWEEPS} sweeps; last event: {self.events[-1]}")

    def round(self) -> int:
        """The round that is open, 0 before the first."""
        underway = self.coordinator._underway
        return underway.loop.round if underway else 0

    def n_train(self, name: str) -> int:
        """Training batches that a device owes a round."""
        return self.coordinator._underway.state.lists[name][0]

    def trained_in(self, name: str, round_: int) -> list[int]:
        """What a device trained on in a round."""
        return [seq for number, seq in self.members[name].trained if number == round_]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc) -> None:
        """End all processes."""
        for name, member in self.members.items():
            if member.agent is not None:
                self.stop(name)
        self.coordinator.close()

    # What there is to see afterwards, all of it from disk

    def device(self, name: str) -> dict[str, torch.Tensor]:
        """Tensors of a device: parameters, buffers, momentum."""
        return training_state(self.path / "devices" / name)

    def server(self) -> dict[str, torch.Tensor]:
        """Tensors of the newest checkpoint."""
        newest = max((self.path / "run" / "checkpoints").iterdir())
        return load_tensors(newest / "model.safetensors")

    def jobs(self) -> dict[str, Job]:
        """What each device was asked to do."""
        return {name: member.job for name, member in self.members.items()}

    def data(self) -> dict[str, Data]:
        """What each device trains on."""
        return {name: training_data(member) for name, member in self.members.items()}

    def rounds(self) -> list[Round]:
        """Who took part with what: what devices logged of themselves, and what stands in the ledger."""
        made = [Round({}, [], {}) for _ in range(self.settings.rounds)]
        for entry in read_ledger(self.path / "run" / "ledger.jsonl"):
            match entry:
                case Applied(device=device, round=number, seq=seq, evaluated=False):
                    made[number - 1].applied.append((device, seq))
                case Aggregated(round=number, weights=weights):
                    made[number - 1].weights.update(weights)
        for name, member in self.members.items():
            assert max(Counter(member.trained).values()) == 1
            for number, seq in member.trained:
                made[number - 1].trained.setdefault(name, []).append(seq)
        return made

    def made_one(self) -> dict[int, list[str]]:
        """Rounds whose segments became one, and the devices that gave theirs."""
        entries = read_ledger(self.path / "run" / "ledger.jsonl")
        return {e.round: sorted(e.weights) for e in entries if isinstance(e, Synchronised)}


def make_agent(member: Member, hub: MemoryBroker, clock: Clock, *, boot_nonce: bytes) -> Agent:
    """The real agent of a device whose folder is open."""

    def make_trainer(job: Job) -> Trainer:
        member.job = job
        trainer = LoggedTrainer(
            job, device=member.name, data=member.data, folder=member.folder, compute="cpu"
        )
        trainer.log = member.trained
        return trainer

    def measure(request):
        raise AssertionError(f"{member.name} was asked to measure {request}")

    return Agent(
        MemoryLink(hub, member.name),
        topics=TOPICS,
        device=member.name,
        boot_nonce=boot_nonce,
        data=member.data.summary(),
        profile="",
        make_trainer=make_trainer,
        measure=measure,
        clock=clock,
        say=member.said.append,
        conduct=Conduct(accept_weights=member.accepts),
    )


def training_data(member: Member) -> Data:
    """What a device trains on, normalised and labelled by hand."""
    train = member.data.train
    shape = (1, -1, *[1] * (len(train.shape) - 1))
    mean = np.array(member.job.mean, np.float32).reshape(shape)
    std = np.array(member.job.std, np.float32).reshape(shape)
    y = [member.job.classes.index(train.classes[label]) for label in train.y]
    return Data(torch.from_numpy((train.x - mean) / std), torch.tensor(y), member.data.fingerprint)


def training_state(folder: Path) -> dict[str, torch.Tensor]:
    """What a device saved to go on from: parameters, buffers, momentum."""
    tensors = load_tensors(folder / "training.safetensors")
    tensors.pop("cursor")
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("taken/")}
