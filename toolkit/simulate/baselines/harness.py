"""Trains a baseline on a scenario's fleet and reports it as a split run is reported."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from coordinator.fleet.events import Notice, RunEvent
from coordinator.fleet.planning import FleetPlan
from toolkit.nn.compute import choose_compute
from toolkit.simulate.baselines.setup import Baseline, Costs, Learner, Setup
from toolkit.simulate.baselines.splitfed import SplitFed
from toolkit.simulate.baselines.whole import Centralised, FedAvg, Local
from toolkit.simulate.data import FleetData
from toolkit.simulate.evaluate import Answers, DeviceAnswers, NamedRoute, ask, digest_of, prepare
from toolkit.simulate.planning import plan_fleet
from toolkit.simulate.results import DeviceResult, SeedResult
from toolkit.simulate.scenario import Baseline as Name
from toolkit.simulate.scenario import Scenario
from toolkit.simulate.times import FleetTimes, fleet_times

MAKERS: dict[Name, Callable[[Setup], Baseline]] = {
    "centralised": Centralised,
    "local": Local,
    "fedavg": FedAvg,
    "splitfed-shared": lambda setup: SplitFed(setup, shared=True),
    "splitfed-per-device": lambda setup: SplitFed(setup, shared=False),
}
_CUT_OF: dict[Name, str] = {"centralised": "none", "local": "whole", "fedavg": "whole"}


def train_baseline(
    scenario: Scenario, name: Name, data: FleetData, observe: Callable[[RunEvent], None]
) -> SeedResult:
    """Train to the end.

    Raises: HseeError: the scenario makes no sense, or a loss is not finite.
    """
    plan, times = _plan(scenario, data)
    setup = _setup(plan, times, data, scenario)
    baseline = MAKERS[name](setup)
    for round_ in range(1, scenario.run.rounds + 1):
        loss = baseline.train_round(round_)
        observe(Notice(f"round {round_}/{scenario.run.rounds}: {name}, mean loss {loss:.3f}"))
    costs, answers = setup.costs, _evaluate(baseline, plan, data)
    return SeedResult(
        seed=scenario.run.seed,
        trained=name,
        rounds=scenario.run.rounds,
        wall_s=costs.wall_s,
        server_s=costs.server_s,
        devices=[
            DeviceResult(
                device=device,
                cut=_CUT_OF.get(name, job.cut),
                n_train=len(data.devices[device].train),
                n_held_out=len(data.devices[device].held_out),
                accuracy=answers[device].accuracy(),
                up_bytes=costs.up_bytes.get(device, 0),
                down_bytes=costs.down_bytes.get(device, 0),
                compute_s=costs.device_s.get(device, 0.0),
                digest=digest_of(baseline.device_state(device)),
            )
            for device, job in plan.jobs.items()
        ],
        server_digest=digest_of(baseline.server_state()),
        times=times.basis,
        n_test=0 if data.test is None else len(data.test),
    )


def make_setup(scenario: Scenario, data: FleetData) -> Setup:
    """Make what every baseline starts from."""
    plan, times = _plan(scenario, data)
    return _setup(plan, times, data, scenario)


def _setup(plan: FleetPlan, times: FleetTimes, data: FleetData, scenario: Scenario) -> Setup:
    learners, compute = {}, choose_compute(scenario.run.compute)
    for device, job in plan.jobs.items():
        own = data.devices[device]
        samples = prepare(own.train, job)
        learners[device] = Learner(
            name=device,
            job=job,
            x=samples.x.to(compute),
            y=torch.from_numpy(samples.y).to(compute),
            fingerprint=own.fingerprint,
            times=times.devices[device],
            activation_shape=plan.activation_shapes[device],
        )
    return Setup(learners, times, Costs(), compute, scenario.numerics)


def _evaluate(baseline: Baseline, plan: FleetPlan, data: FleetData) -> dict[str, DeviceAnswers]:
    """Ask every device's route; one that devices share is asked the common questions once."""
    found, asked = {}, dict[nn.Module, Answers]()
    common = None if data.test is None else prepare(data.test, next(iter(plan.jobs.values())))
    for device, job in plan.jobs.items():
        name, network = baseline.route(device)
        route = NamedRoute(name, network)
        if common is not None and network not in asked:
            asked[network] = ask(route, common)
        found[device] = DeviceAnswers(
            ask(route, prepare(data.devices[device].held_out, job)), asked.get(network)
        )
    return found


def _plan(scenario: Scenario, data: FleetData) -> tuple[FleetPlan, FleetTimes]:
    plan = plan_fleet(scenario, data)
    return plan, fleet_times(scenario, next(iter(plan.jobs.values())).model)
