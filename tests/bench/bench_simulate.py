"""How much a simulated round costs over a bare loop of the same work on batches that are in memory already.

The loop makes the same device and server steps and the same evaluation of held-out samples; it knows no messages, no
strategies, no ledger, no files.

    python tests/bench/bench_simulate.py [--width 16] [--devices 12] [--rounds 6] [--strategy sequential]

Prints JSON; ``ratio`` is that of the medians over rounds, of this thread's CPU seconds: everything runs in one thread,
and a machine that does other work too does not count. ``ratio_of_wall`` is the same of real seconds. Goal: 1.10.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coordinator.events import RoundClosed, RunEvent
from toolkit.config import Run
from toolkit.nn.cut import take_suffix
from toolkit.nn.recipe import n_batches_of
from toolkit.nn.steps import (
    build_device_model,
    device_eval,
    device_step,
    make_optimizer,
    server_eval,
    server_step,
)
from toolkit.nn.zoo import build_network
from toolkit.simulate.data import load_fleet_data
from toolkit.simulate.evaluate import prepare
from toolkit.simulate.planning import data_facts, hellos_of, model_spec, planner_of
from toolkit.simulate.scenario import Scenario
from toolkit.simulate.simulation import simulate


def now() -> tuple[float, float]:
    """CPU seconds of this thread, and real ones."""
    return time.thread_time(), time.perf_counter()


def bare_rounds(scenario: Scenario) -> NDArray[np.float64]:
    """CPU and wall seconds of each round of a plain loop: every device step followed by its server step, nothing else."""
    data = load_fleet_data(scenario)
    facts = data_facts(scenario, data)
    model = model_spec(scenario.run, facts)
    jobs = planner_of(scenario).plan("bare", scenario.run, facts, hellos_of(scenario, data, model)).jobs
    network = build_network(model, seed=scenario.run.seed)
    suffixes = {job.cut: take_suffix(network, job.cut) for job in jobs.values()}
    shallowest = max(suffixes.values(), key=len)
    optimizer = make_optimizer(shallowest, next(iter(jobs.values())).optimizer)
    work, held_out = [], []
    for name, job in jobs.items():
        device = build_device_model(
            model, cut=job.cut, exit_head=job.exit_head, optimizer=job.optimizer, seed=job.seed
        )
        samples = prepare(data.devices[name].train, job)
        x, y = samples.x, torch.from_numpy(samples.y)
        for index in range(n_batches_of(len(y), job.batch_size)):
            part = slice(index * job.batch_size, (index + 1) * job.batch_size)
            work.append((device, suffixes[job.cut], x[part].clone(), y[part].clone()))
        samples = prepare(data.devices[name].held_out, job)
        x, y = samples.x, torch.from_numpy(samples.y)
        for start in range(0, len(y), job.batch_size):
            part = slice(start, start + job.batch_size)
            held_out.append((device, suffixes[job.cut], x[part].clone(), y[part].clone()))
    seconds = []
    for _ in range(scenario.run.rounds):
        began = now()
        for device, suffix, x, y in work:
            forward = device_step(device, x, y, seed=1)
            server_step(suffix, optimizer, forward.h, y, seed=1)
        for device, suffix, x, y in held_out:
            device_eval(device, x, y)  # the agent's own, for the held segment
            server_eval(suffix, device_eval(device, x, y).h, y)
        seconds.append(np.subtract(now(), began))
    return np.array(seconds)


def simulated_rounds(scenario: Scenario) -> NDArray[np.float64]:
    """CPU and wall seconds of each round of the simulation, from one round's close to the next's."""
    closed = []

    def observe(event: RunEvent) -> None:
        if isinstance(event, RoundClosed):
            closed.append(now())

    with tempfile.TemporaryDirectory() as folder:
        simulate(scenario, Path(folder) / "run", n_seeds=1, observe=observe)
    return np.diff(closed, axis=0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--devices", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--strategy", default="sequential")
    options = parser.parse_args()
    torch.set_num_threads(1)
    scenario = Scenario(
        run=Run(rounds=options.rounds, strategy=options.strategy, model_options={"width": options.width}),
        names=tuple(f"dev{number}" for number in range(options.devices)),
        data="digits",
        cuts=("stem", "layer1", "layer2"),
    )
    # Bare before and after: a machine that slows down meanwhile slows both.
    bare = bare_rounds(scenario)
    simulated = np.median(simulated_rounds(scenario), axis=0)
    bare = np.median(np.concatenate([bare, bare_rounds(scenario)]), axis=0)
    answer = {
        "strategy": options.strategy,
        "width": options.width,
        "devices": options.devices,
        "bare_round_cpu_s": bare[0],
        "simulated_round_cpu_s": simulated[0],
        "ratio": simulated[0] / bare[0],
        "ratio_of_wall": simulated[1] / bare[1],
        "goal": 1.10,
    }
    print(json.dumps(answer, indent=1))  # noqa: T201 - it is what a bench is for


if __name__ == "__main__":
    main()
