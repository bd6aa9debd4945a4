"""What an agent weighs beyond its training, and how long many take to join."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.e2e.processes import ROOT, Hsee
from tests.faults.stubs import FLEET, device_name
from tests.mosquitto import Mosquitto
from tests.served_broker import ServedBroker
from toolkit.link.broker import generate_password, start_embedded_broker

BARE_LOOP = """
import sys
import numpy as np
import torch
from toolkit.nn.datasets import load_source
from toolkit.nn.steps import build_device_model, device_step
from toolkit.wire.job import ModelSpec, OptimizerSpec
torch.set_num_threads(1)
data = load_source("digits")
spec = ModelSpec(name="resnet_small", input_shape=[1, 8, 8], n_classes=10)
model = build_device_model(spec, cut=sys.argv[1], exit_head="pooled", optimizer=OptimizerSpec(), seed=0)
for start in range(0, 1280, 32):
    x = torch.from_numpy(np.ascontiguousarray(data.x[start : start + 32], np.float32))
    device_step(model, x, torch.from_numpy(data.y[start : start + 32]), seed=0)
print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""


def bench_memory(folder: Path) -> dict[str, Any]:
    """Peak MiB of an agent in a run, over a loop of the same steps without it."""
    hsee = Hsee(folder)
    hsee.env |= {"OMP_NUM_THREADS": "1"}
    broker = Mosquitto(folder)
    broker.start()
    try:
        port = broker.address.port
        own = ("--home", "ant", "--part", "1/1", "--profile", ROOT / "profiles/emulated/strong.toml")
        agent = hsee.agent(port, "ant", *own)
        coordinator = hsee.coordinator(port, "--run", "r1", "--devices", 1, "--rounds", 4)
        coordinator.wait_for_round(3, 200.0)
        status = Path(f"/proc/{agent.process.pid}/status").read_text()
        of_agent = int(status.partition("VmHWM:")[2].split()[0]) / 1024
        plan = next(event for event in coordinator.events if event.get("event") == "plan")
        bare = subprocess.run(
            [sys.executable, "-c", BARE_LOOP, plan["cuts"]["ant"]],
            env=hsee.env,
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        hsee.kill_all()
        broker.kill()
    of_loop = int(bare.stdout) / 1024
    return {"agent_mib": of_agent, "loop_mib": of_loop, "over_mib": of_agent - of_loop}


# Many agents that join at once


def bench_join(folder: Path, n: int = 200) -> dict[str, Any]:
    """Seconds until all have their job: Mosquitto with TLS and accounts, the embedded broker with accounts."""
    hsee = Hsee(folder)
    hsee.env |= {"OMP_NUM_THREADS": "1"}
    names = [device_name(number) for number in range(n)]
    found: dict[str, Any] = {"n_agents": n}
    served = ServedBroker(folder / "broker", [*names, "coord-tls"])
    served.start()
    try:
        found["mosquitto_tls"] = _join(hsee, folder / "tls", n, "--broker-folder", folder / "broker")
    finally:
        hsee.kill_all()
        served.stop()
    accounts = {name: generate_password() for name in (*names, "coord-embedded")}
    (folder / "accounts.json").write_text(json.dumps(accounts))
    with start_embedded_broker(folder / "embedded", accounts) as embedded:
        words = ("--broker", f"127.0.0.1:{embedded.address.port}", "--accounts", folder / "accounts.json")
        found["embedded"] = _join(hsee, folder / "embedded", n, *words)
        hsee.kill_all()
    return found


def _join(hsee: Hsee, run: Path, n: int, *words: object) -> dict[str, float]:
    assert FLEET.fleet == "home"
    serve = ("-m", "tests.faults.serve", *words, "--folder", run, "--devices", n, "--rounds", 100_000)
    coordinator = hsee.python(*serve, "--round-steps", 1)
    time.sleep(5.0)  # it stands, as a coordinator does when a fleet comes back
    halves = [
        hsee.python("-m", "tests.faults.stubs", *words, "--first", first, "--count", n // 2, "--pace", 0.2)
        for first in (0, n // 2)
    ]
    lines = []
    for half in halves:
        half.wait_for('"joined"', 200.0)
        lines.append(json.loads(half.out.splitlines()[0]))
    assert coordinator.process.poll() is None, coordinator.describe()
    return {
        "seconds": max(line["seconds"] for line in lines),
        "most_failed": max(line["most_failed"] for line in lines),
    }
