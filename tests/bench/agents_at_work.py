"""Whole agents at work under limits, as processes: what benches hold predictions against."""

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from coordinator.fleet.bridge import last_will
from coordinator.fleet.events import RoundClosed
from coordinator.fleet.planning import GivenCuts
from coordinator.model.server_model import ServerModel
from coordinator.rounds.underway import Makes
from coordinator.server import Coordinator
from coordinator.store.run_folder import RunFolder
from toolkit.config import load_config
from toolkit.link.connect import make_link
from toolkit.profile.limits import parse_limits
from toolkit.wire.job import ModelSpec
from toolkit.wire.topics import Topics

MODEL = ModelSpec(name="resnet_small", input_shape=[1, 8, 8], n_classes=10)
FLEET = "bench"
N_HELD_OUT = 359
"""Of the digits, by default."""


class DistantServer(ServerModel):
    """A coordinator on another machine: its training takes this one's processor no time."""

    def apply(self, device, batch, *, round_, seq):  # noqa: ARG002 - as a server model is asked
        return 1.0


@dataclass
class AtWork:
    """What was seen of one run, after its first round.

    Attributes:
        round_s: wall time of each round.
        cpu_ms: by device, processor time a batch, over the share of a core that its limits give.
        wall_ms: wall time a batch.
        peak_mb: by device, greatest resident memory of the process.
        round_bytes: by device, payload bytes of a round.
    """

    round_s: list[float] = field(default_factory=list)
    cpu_ms: dict[str, float] = field(default_factory=dict)
    wall_ms: float = 0.0
    peak_mb: dict[str, float] = field(default_factory=dict)
    round_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def median_round_s(self):
        return statistics.median(self.round_s)


class _Watch:
    """Marks time and processor time of all agents at each round's end."""

    def __init__(self, agents):
        self._agents = {name: psutil.Process(agent.pid) for name, agent in agents.items()}
        self.marks = []
        self.seen = AtWork()

    def observe(self, event):
        if not isinstance(event, RoundClosed):
            return
        spent = {name: sum(agent.cpu_times()[:2]) for name, agent in self._agents.items()}
        self.marks.append((time.monotonic(), spent))
        if len(self.marks) > 1:
            self.seen.round_s.append(event.report.seconds)
        self.seen.round_bytes = {device.device: device.n_bytes for device in event.report.devices}
        self.seen.peak_mb = {name: _peak_mb(agent.pid) for name, agent in self._agents.items()}


def run_fleet(home, address, boards, *, batch_size, steps, rounds, distant=False):
    """Train once with agents in processes of their own; the coordinator is in this one.

    Args:
        home: folder for the run.
        address: of the broker.
        boards: device to (limits, cut).
        batch_size: samples a step.
        steps: of each device in a round.
        rounds: the first is not counted.
        distant: the coordinator's training is left out, as if it were on another machine.
    """
    settings = load_config(
        {
            "run.model": MODEL.name,
            "run.devices": len(boards),
            "run.batch_size": batch_size,
            "run.round_steps": steps,
            "run.rounds": rounds,
            "run.eval_samples": 0,
        }
    )
    agents = {
        name: subprocess.Popen(
            [sys.executable, "-m", "device_agent", *_words(home, address, name, limits)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for name, (limits, _) in boards.items()
    }
    watch = _Watch(agents)
    topics = Topics(FLEET)
    folder = RunFolder(home / "run", "bench")
    coordinator = Coordinator(
        make_link(address, client_id="coord-bench", will=last_will(topics, folder)),
        topics=topics,
        folder=folder,
        settings=settings.run,
        clock=time.monotonic,
        observe=watch.observe,
        planner=GivenCuts({name: cut for name, (_, cut) in boards.items()}),
        makes=Makes(model=DistantServer if distant else ServerModel),
    )
    try:
        coordinator.start()
        while not coordinator.over:
            coordinator.poll(0.02)
            assert all(agent.poll() in (None, 0) for agent in agents.values()), "an agent died"
    finally:
        coordinator.close()
        for agent in agents.values():
            agent.terminate()
            agent.wait()
    (wall_0, cpu_0), (wall_1, cpu_1) = watch.marks[0], watch.marks[-1]
    n = steps * (len(watch.marks) - 1)
    watch.seen.wall_ms = (wall_1 - wall_0) / n * 1e3
    for name, (limits, _) in boards.items():
        share = min(1.0, parse_limits(limits).cpu_percent / 100)
        watch.seen.cpu_ms[name] = (cpu_1[name] - cpu_0[name]) / n / share * 1e3
    return watch.seen


def _words(home, address, name, limits):
    words = ["--broker", f"{address.host}:{address.port}", "--fleet", FLEET, "--id", name, "--data", "digits"]
    return [*words, "--emulate", limits, "--home", str(home / "agents"), "--quiet"]


def _peak_mb(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
