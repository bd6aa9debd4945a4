"""From a scenario to its results, seed after seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from coordinator.fleet.events import Notice, RunEvent
from coordinator.strategy.catalogue import make_strategy
from toolkit.disk import without_sync
from toolkit.errors import UsageError, did_you_mean
from toolkit.nn.compute import choose_compute
from toolkit.nn.zoo import check_model
from toolkit.simulate.baselines.harness import train_baseline
from toolkit.simulate.data import FleetData, keep_division, load_fleet_data
from toolkit.simulate.evaluate import evaluate_run
from toolkit.simulate.fleet import SimulatedFleet
from toolkit.simulate.inference import trace_inference
from toolkit.simulate.mqtt_run import run_over_mqtt
from toolkit.simulate.planning import plan_fleet
from toolkit.simulate.results import (
    DeviceResult,
    SeedResult,
    inference_at,
    keep_inference,
    keep_result,
    kept_result,
)
from toolkit.simulate.scenario import Scenario, check_folder, keep_scenario
from toolkit.simulate.virtual_run import run_virtually

Observe = Callable[[RunEvent], None]


def simulate(
    scenario: Scenario, folder: Path, *, n_seeds: int, observe: Observe, broker: str = ""
) -> list[SeedResult]:
    """Run a scenario under seeds that count up from its own.

    A simulation that was killed goes on where it was: call it again with the same arguments.

    Args:
        scenario: what is simulated.
        folder: one seed's run folder, or of several seeds the folder of their run folders.
        n_seeds: at least 1.
        observe: takes every event of every run.
        broker: for transport "mqtt", one that runs already.
    Raises: HseeError: the scenario makes no sense, or a run can't go on.
    """
    _check(scenario)
    check_folder(folder, scenario)
    torch.set_num_threads(scenario.run.threads)
    results = []
    for index in range(n_seeds):
        of_seed = scenario.with_seed(scenario.run.seed + index)
        path = folder if n_seeds == 1 else folder / f"seed-{of_seed.run.seed}"
        result = kept_result(path)
        if result is None:
            data = load_fleet_data(of_seed)  # before anything is written: what is wrong shows here
            plan_fleet(of_seed, data)
            keep_scenario(folder, scenario)
            with without_sync():
                result = _run_seed(of_seed, data, path, observe, broker)
            keep_result(path, result)
        results.append(result)
    return results


def _run_seed(scenario: Scenario, data: FleetData, path: Path, observe: Observe, broker: str) -> SeedResult:
    path.mkdir(exist_ok=True)
    keep_division(path, data.division)
    if data.division.warning:
        observe(Notice(data.division.warning))
    with scenario.numerics.computing(choose_compute(scenario.run.compute)):
        if scenario.baseline is not None:
            return train_baseline(scenario, scenario.baseline, data, observe)
        return _run_fleet(scenario, data, path, observe, broker)


def _run_fleet(scenario: Scenario, data: FleetData, path: Path, observe: Observe, broker: str) -> SeedResult:
    fleet = SimulatedFleet(scenario, data, path, observe)
    if scenario.transport == "mqtt":
        run_over_mqtt(fleet, broker=broker)
    else:
        run_virtually(fleet)
    evaluated = evaluate_run(path, data, compute=choose_compute(scenario.run.compute))
    curves = trace_inference(evaluated, target_drop=scenario.target_drop)
    keep_inference(path, curves)
    meters = fleet.meters
    return SeedResult(
        seed=scenario.run.seed,
        trained=scenario.run.strategy,
        rounds=meters.round,
        wall_s=meters.wall_s if scenario.transport == "memory" else None,
        server_s=meters.server_s,
        devices=[
            DeviceResult(
                device=name,
                cut=evaluated.jobs[name].cut,
                n_train=len(own.train),
                n_held_out=len(own.held_out),
                accuracy=evaluated.answers[name].accuracy(),
                exits=evaluated.answers[name].exits(),
                up_bytes=meters.up_bytes[name],
                down_bytes=meters.down_bytes[name],
                compute_s=meters.device_s[name],
                digest=evaluated.digests[name],
            )
            for name, own in data.devices.items()
        ],
        server_digest=evaluated.server_digest,
        inference=[inference_at(curve) for curve in curves],
        times=fleet.times.basis,
        n_test=0 if data.test is None else len(data.test),
    )


def _check(scenario: Scenario) -> None:
    """Find what makes no sense before anything is written."""
    make_strategy(scenario.run.strategy, scenario.run.strategy_options)
    check_model(scenario.run.model, scenario.run.model_options)
    for flag, named in (("--drop", scenario.drops), ("--slow", scenario.slow)):
        for name in named:
            if name not in scenario.names:
                raise UsageError(
                    f"{flag} names an unknown device {name!r}.", hint=did_you_mean(name, scenario.names)
                )
    if len(scenario.drops) == len(scenario.names):
        raise UsageError("--drop names every device; at least one has to stay.")
    sources = [bool(scenario.cuts), bool(scenario.plan), bool(scenario.profiles)]
    needs_cuts = scenario.baseline in (None, "splitfed-shared", "splitfed-per-device")
    if needs_cuts and not any(sources):
        raise UsageError(
            "Nothing says where the devices are cut.",
            hint="Give --cuts stem,layer1, a --plan, or --profiles.",
        )
    if scenario.plan and (scenario.cuts or scenario.profiles):
        raise UsageError("A plan names cuts and times already.", hint="Leave --cuts and --profiles out.")
