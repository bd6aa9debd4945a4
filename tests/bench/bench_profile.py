"""How good a profile is (issue 4, item 6): predicted against the whole agent at work, printed as JSON.

python -m tests.bench.bench_profile [--boards 30%,640 15%,512] [--steps 150] [--full]

For each board, an emulated one, ``hsee profile`` measures the cuts at batch 32 and the link through a Mosquitto. Then
an agent process under the same limits trains each cut, and one cut at a batch size that was not profiled, in a run of
its own over the same broker: real data, codec, MQTT, telemetry. Predicted and measured are

  step   processor time of the agent a batch, over the share of a core that its limits give, between the ends of two
         rounds, so evaluation and checkpoint at a round's end are in it; and, apart, wall time of the same span
  memory greatest resident memory of the agent's process, MB
  bytes  of payloads up, a round
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from coordinator.events import RoundClosed
from coordinator.planning import GivenCuts
from coordinator.run_folder import RunFolder
from coordinator.server import Coordinator
from tests.mosquitto import Mosquitto
from toolkit.cli.profile_link import BrokerLink
from toolkit.config import load_config
from toolkit.link.connect import make_link
from toolkit.plan.cost import DeviceInput, cut_cost
from toolkit.plan.estimate import for_batch_size
from toolkit.profile.board import machine_name
from toolkit.profile.limits import parse_limits
from toolkit.profile.measure import measure
from toolkit.wire.job import ModelSpec
from toolkit.wire.topics import Topics
from toolkit.wire.words import BridgeWord, encode_word

MODEL = ModelSpec(name="resnet_small", input_shape=[1, 8, 8], n_classes=10)
PROFILED_BATCH, OTHER_BATCH = 32, 40
N_HELD_OUT = 359
"""Of the digits, by default."""
FLEET, DEVICE = "bench", "board"
ROUNDS = 3
GOALS = {"median": 0.10, "worst": 0.25}


def profile_board(limits_text, address, *, full):
    """What ``hsee profile --broker`` does, within the limits."""
    limits = parse_limits(limits_text)
    flags = {"broker.address": f"{address.host}:{address.port}", "fleet.name": FLEET}
    way = BrokerLink.from_flags(flags, device=DEVICE, codec="float32", quick=not full, limits=limits)
    made = measure(MODEL, batch_size=PROFILED_BATCH, limits=limits, quick=not full, broker=way.for_child())
    made, error = way.measure(made)
    assert error is None, error
    return made


class Span:
    """The agent between the ends of the first and the last round."""

    def __init__(self, agent):
        self._agent = psutil.Process(agent.pid)
        self.marks = []
        self.peak_mb = 0.0
        self.n_bytes = 0

    def observe(self, event):
        if isinstance(event, RoundClosed):
            spent = self._agent.cpu_times()
            self.marks.append((time.monotonic(), spent.user + spent.system))
            self.n_bytes = event.report.devices[0].n_bytes
            self.peak_mb = self._peak_mb()

    def _peak_mb(self):
        for line in Path(f"/proc/{self._agent.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        return 0.0


def run_agent(folder, address, limits_text, cut, batch_size, steps):
    """One run of one agent process; the coordinator is in this one."""
    home = folder / f"{limits_text.replace('%,', '-')}-{cut}-{batch_size}"
    settings = load_config(
        {
            "run.model": MODEL.name,
            "run.batch_size": batch_size,
            "run.round_steps": steps,
            "run.rounds": ROUNDS,
            "run.eval_samples": 0,
        }
    )
    words = [
        "--broker",
        f"{address.host}:{address.port}",
        "--fleet",
        FLEET,
        "--id",
        DEVICE,
        "--data",
        "digits",
    ]
    words += ["--set", f"device.emulate={limits_text}", "--set", f"fleet.home={home / 'agent'}", "--quiet"]
    agent = subprocess.Popen(
        [sys.executable, "-m", "device_agent", *words], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    span = Span(agent)
    run_folder = RunFolder(home / "run", "bench")
    topics = Topics(FLEET)
    will = (topics.bridge_state, encode_word(BridgeWord("offline", "bench", 1)))
    coordinator = Coordinator(
        make_link(address, client_id="coord-bench", will=will),
        topics=topics,
        folder=run_folder,
        settings=settings.run,
        clock=time.monotonic,
        observe=span.observe,
        planner=GivenCuts({DEVICE: cut}),
    )
    try:
        coordinator.start()
        while not coordinator.over:
            coordinator.poll(0.02)
            assert agent.poll() in (None, 0), "the agent died"
    finally:
        coordinator.close()
        agent.terminate()
        agent.wait()
    (wall_0, cpu_0), (wall_1, cpu_1) = span.marks[0], span.marks[-1]
    n = steps * (len(span.marks) - 1)
    share = min(1.0, parse_limits(limits_text).cpu_percent / 100)
    return {
        "step_ms": (cpu_1 - cpu_0) / n / share * 1e3,
        "wall_ms": (wall_1 - wall_0) / n * 1e3,
        "peak_mb": span.peak_mb,
        "round_bytes": span.n_bytes,
    }


def predict(profile, cut, batch_size, steps):
    """What a plan counts with."""
    known = for_batch_size(profile, batch_size)
    row = next(row for row in known.cuts if row.cut == cut)
    device = DeviceInput(
        name=DEVICE, profile=known, n_batches=steps, n_held_out_batches=-(-N_HELD_OUT // batch_size)
    )
    cost = cut_cost(device, row, depth=0, batch_size=batch_size, server_ms=0.0)
    return {
        "step_ms": cost.round_compute_ms / steps,
        "wall_ms": cost.device_ms / steps,
        "peak_mb": row.peak_memory_mb,
        "round_bytes": cost.n_bytes * steps,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--boards", nargs="+", default=["30%,640", "15%,512"])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--full", action="store_true", help="profile at default settings, not --quick")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = Mosquitto(folder)
        broker.start()
        try:
            for board in options.boards:
                began = time.monotonic()
                profile = profile_board(board, broker.address, full=options.full)
                took_s = time.monotonic() - began
                cases = [(row.cut, PROFILED_BATCH) for row in profile.cuts]
                cases.append((profile.cuts[1].cut, OTHER_BATCH))
                for cut, batch_size in cases:
                    measured = run_agent(folder, broker.address, board, cut, batch_size, options.steps)
                    predicted = predict(profile, cut, batch_size, options.steps)
                    errors = {key: predicted[key] / measured[key] - 1 for key in measured}
                    row = {
                        "board": board,
                        "cut": cut,
                        "batch": batch_size,
                        "profiled_in_s": round(took_s, 1),
                        "load": round(os.getloadavg()[0], 1),
                        "predicted": {key: round(value, 2) for key, value in predicted.items()},
                        "measured": {key: round(value, 2) for key, value in measured.items()},
                        "error": {key: round(value, 4) for key, value in errors.items()},
                    }
                    rows.append(row)
                    sys.stderr.write(json.dumps(row) + "\n")
        finally:
            broker.kill()
    summary = {
        key: {
            "median": round(statistics.median(abs(row["error"][key]) for row in rows), 4),
            "worst": round(max(abs(row["error"][key]) for row in rows), 4),
        }
        for key in ("step_ms", "wall_ms", "peak_mb", "round_bytes")
    }
    found = {"machine": machine_name(), "goals": GOALS, "summary": summary, "rows": rows}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
