"""What the method costs beside its own arithmetic, as four ratios; each is a row of ``docs/results/speed.md``.

    python tests/bench/bench_simulate.py [round] [memory] [aggregation] [overlap]     # default: all; about 3 minutes

round        a simulated round over a bare loop that makes the same device and server steps and the same evaluation of
             held-out samples, on batches in memory, and knows no messages, strategies, ledger or files: CPU seconds;
             once over steps of several milliseconds and three of them a round, once over those of a CIFAR-10 row
memory       Averaging's peak memory at the coordinator's process, less that of ``import torch``, queues included: with 100
             devices over with 4, over a real broker, the devices in another process
aggregation  Averaging: the mean over copies, and opening them from it, over the ten steps a copy that are aggregated;
             ResNet-18, batches of 32
overlap      a round over the larger of what one device computes and what the server computes, at equal device speeds
             and a server that is just fast enough: virtual time

Prints Markdown, then JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from coordinator.fleet.events import RoundClosed, RunEvent
from coordinator.model.server_model import ServerModel
from coordinator.strategy.catalogue import make_strategy
from toolkit.config import Run
from toolkit.link.base import parse_broker
from toolkit.link.broker import start_embedded_broker
from toolkit.link.connect import make_link
from toolkit.nn.cut import activation_shape, take_segment, take_suffix
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
from toolkit.simulate.fleet import SimulatedFleet
from toolkit.simulate.planning import data_facts, hellos_of, model_spec, planner_of
from toolkit.simulate.scenario import Scenario
from toolkit.simulate.simulation import simulate
from toolkit.wire.job import ModelSpec, OptimizerSpec
from toolkit.wire.payloads import Batch

WAITING_BYTES = 24 * 1024 * 1024
"""Of batches that wait at the coordinator: so little that both fleets come up to it."""
PASSWORD = "known to whoever reads this"  # noqa: S105 - of a broker on loopback that lives for a minute
Row = dict[str, Any]
"""What is compared, the ratio, its goal, and what it is made of."""


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


def bench_rounds() -> list[Row]:
    """Small steps, of which a round's files and messages are a part that shows, and those of a CIFAR-10 row."""
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures.npz"
        rng = np.random.default_rng(0)
        x, y = rng.integers(0, 256, (800, 3, 32, 32), np.uint8), np.arange(800) % 10
        np.savez(pictures, x=x, y=y, classes=np.array([f"class{label}" for label in range(10)]))
        small = Scenario(
            run=Run(rounds=6, model_options={"width": 16}),
            names=tuple(f"dev{number}" for number in range(12)),
            data="digits",
            cuts=("stem", "layer1", "layer2"),
        )
        large = Scenario(
            run=Run(rounds=4, model="resnet18", model_options={"width": 16, "stem": "strided"}),
            names=("dev1", "dev2", "dev3"),
            data=f"npz:{pictures}",
            held_out=0.1,
            test_share=0.0,
            cuts=("layer1", "layer2", "layer3"),
        )
        return [
            bench_round(small, "a simulated round over a bare loop, 12 devices, digits, three steps each"),
            bench_round(large, "a simulated round over a bare loop, 3 devices, ResNet-18, 32x32 pictures"),
        ]


def bench_round(scenario: Scenario, what: str) -> Row:
    """Simulated over bare, median round against median round; this thread's CPU seconds, where others do not count."""
    # Bare before and after: a machine that slows down meanwhile slows both.
    bare = bare_rounds(scenario)
    simulated = np.median(simulated_rounds(scenario), axis=0)
    bare = np.median(np.concatenate([bare, bare_rounds(scenario)]), axis=0)
    return {
        "what": what,
        "ratio": simulated[0] / bare[0],
        "goal": 1.10,
        "simulated_cpu_s": simulated[0],
        "bare_cpu_s": bare[0],
        "ratio_of_wall": simulated[1] / bare[1],
    }


def bench_memory() -> Row:
    """Peak memory of the coordinator's process with 100 devices over with 4, each less that of ``import torch``."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import bench_simulate as b; print(b.peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True)
    import_bytes = int(done.stdout)
    few, many = (coordinator_peak_bytes(n) - import_bytes for n in (4, 100))
    return {
        "what": "Averaging's peak memory, 100 devices over 4, three copies and 24 MiB of batches held",
        "ratio": many / few,
        "goal": 1.25,
        "mb_of_4": few / 1e6,
        "mb_of_100": many / 1e6,
        "mb_of_imports": import_bytes / 1e6,
    }


def memory_scenario(n_devices: int) -> Scenario:
    """Two rounds of 400 batches in all; three copies of a ResNet-18 of width 32 in memory at a time."""
    return Scenario(
        run=Run(
            rounds=2,
            devices=n_devices,
            model="resnet18",
            model_options={"width": 32},
            strategy="averaging",
            strategy_options={"resident_copies": 3},
            round_steps=400 // n_devices,
            batch_size=16,
            eval_samples=0,
            waiting_bytes=WAITING_BYTES,
            round_deadline_s=600.0,
        ),
        names=tuple(f"dev{number}" for number in range(n_devices)),
        data="digits",
        test_share=0.0,
        cuts=("stem", "layer1", "layer2"),
    )


def coordinator_peak_bytes(n_devices: int) -> int:
    """Run a fleet over a broker, the coordinator in a process of its own, and ask that for its peak."""
    scenario = memory_scenario(n_devices)
    fleet_data = load_fleet_data(scenario)
    with tempfile.TemporaryDirectory() as folder:
        passwords = dict.fromkeys(("coordinator", *scenario.names), PASSWORD)
        with start_embedded_broker(Path(folder) / "broker", passwords) as broker:
            command = [sys.executable, __file__, "coordinator", str(broker.address), str(n_devices), folder]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                fleet = SimulatedFleet(scenario, fleet_data, Path(folder) / "devices", lambda _: None)
                links = []
                agents = []
                for name in scenario.names:
                    address = parse_broker(str(broker.address), username=name, password=passwords[name])
                    links.append(make_link(address, client_id=name))
                    agents.append(fleet.make_agent(name, links[-1], time.monotonic, term=1))
                    agents[-1].start()
                while child.poll() is None:
                    for agent in agents:
                        agent.poll(0.0)
                    time.sleep(0.001)
                for link in links:
                    link.close()
                fleet.close()
                told = child.stdout.read() if child.stdout else ""
    return int(told)


def coordinate(address: str, n_devices: int, folder: str) -> None:
    """The coordinator's process: train to the end, print the peak."""
    torch.set_num_threads(1)
    scenario = memory_scenario(n_devices)
    fleet = SimulatedFleet(scenario, load_fleet_data(scenario), Path(folder) / "run", lambda _: None)
    broker = parse_broker(address, username="coordinator", password=PASSWORD)
    link = make_link(broker, client_id="coordinator")
    coordinator = fleet.make_coordinator(link, time.monotonic)
    coordinator.start()
    while not coordinator.over:
        coordinator.poll(0.01)
    coordinator.close()
    link.close()
    sys.stdout.write(f"{peak_bytes()}\n")


def peak_bytes() -> int:
    """Of this process, as the kernel has it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def bench_aggregation(*, width: int = 64, n_steps: int = 10) -> Row:
    """Seconds of the mean and of opening copies from it, over the seconds of the steps."""
    cuts = {"dev1": "layer1", "dev2": "layer2", "dev3": "layer3"}
    spec = ModelSpec(name="resnet18", input_shape=[3, 32, 32], n_classes=10, options={"width": width})
    network = build_network(spec, seed=0)
    generator = np.random.default_rng(0)
    batches = {}
    for device, cut in cuts.items():
        shape = activation_shape(take_segment(network, cut), spec.input_shape)
        h = generator.standard_normal((32, *shape)).astype(np.float32)
        y = generator.integers(0, 10, 32)
        batches[device] = Batch(
            kind="train", h=h, y=y, exit_loss=0.0, exit_correct=0, segment_step=0, remade=False
        )
    steps_s = aggregation_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        model = ServerModel(
            spec,
            cuts=cuts,
            optimizer=OptimizerSpec(),
            rounds=2,
            seed=0,
            strategy=make_strategy("averaging", {}),
            scratch=Path(folder),
        )
        for round_ in (1, 2):  # the first warms up
            steps_s = aggregation_s = 0.0
            for device, batch in batches.items():
                taken = []
                for seq in range(1, n_steps + 1):
                    began = time.perf_counter()
                    model.apply(device, batch, round_=round_, seq=seq)
                    taken.append(time.perf_counter() - began)
                usual = float(np.median(taken[1:]))
                steps_s += usual * n_steps
                aggregation_s += max(0.0, taken[0] - usual)  # the first step opens the copy
            began = time.perf_counter()
            model.aggregate(dict.fromkeys(cuts, 1))
            aggregation_s += time.perf_counter() - began
    return {
        "what": f"aggregation over {n_steps} steps a copy, ResNet-18 of width {width}, batch 32",
        "ratio": aggregation_s / steps_s,
        "goal": 0.06,
        "aggregation_s": aggregation_s,
        "steps_s": steps_s,
    }


def bench_overlap() -> list[Row]:
    """Virtual seconds a round over the larger side: ten devices of 0.1 s a step, a server of 0.01 s.

    Sequential is shown without a goal: its first turn lasts as long as its device computes, whatever the server does.
    """
    rows = []
    for strategy in ("sequential", "averaging"):
        scenario = Scenario(
            run=Run(rounds=4, model="mlp", strategy=strategy, round_steps=20, batch_size=8, eval_samples=0),
            names=tuple(f"dev{number}" for number in range(10)),
            data="digits",
            cuts=("hidden1", "hidden2"),
        )
        with tempfile.TemporaryDirectory() as folder:
            result = simulate(scenario, Path(folder) / "run", n_seeds=1, observe=lambda _: None)[0]
        device_s = max(device.compute_s for device in result.devices)
        assert result.wall_s is not None
        rows.append(
            {
                "what": f"a round over max(device, server), {strategy}, ten devices",
                "ratio": result.wall_s / max(device_s, result.server_s),
                "goal": 1.3 if strategy == "averaging" else None,
                "wall_s": result.wall_s,
                "device_s": device_s,
                "server_s": result.server_s,
            }
        )
    return rows


def main() -> None:
    """Measure what is named, and print."""
    torch.set_num_threads(1)
    benches = {
        "round": bench_rounds,
        "memory": lambda: [bench_memory()],
        "aggregation": lambda: [bench_aggregation()],
        "overlap": bench_overlap,
    }
    rows = [row for name in sys.argv[1:] or benches for row in benches[name]()]
    lines = ["| what | ratio | goal |", "|---|---|---|"]
    lines += [f"| {row['what']} | {row['ratio']:.3f} | {row['goal'] or '-'} |" for row in rows]
    print("\n".join(lines))  # noqa: T201 - it is what a bench is for
    print(json.dumps(rows, indent=1))  # noqa: T201


if __name__ == "__main__":
    if sys.argv[1:2] == ["coordinator"]:
        coordinate(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        main()
