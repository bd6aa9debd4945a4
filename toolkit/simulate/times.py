"""How long things take in virtual time: the devices' steps and lines, and the server's steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import msgspec

from toolkit.errors import PlanError, ProfileError
from toolkit.link.virtual import Line
from toolkit.nn.cut import activation_shape, cut_layers, take_segment
from toolkit.nn.zoo import build_network
from toolkit.plan.cost import ASSUMED_LINK, ServerInput
from toolkit.plan.estimate import with_every_cut
from toolkit.plan.schema import Plan, parse_plan
from toolkit.profile.link import Link
from toolkit.profile.schema import Profile, misfit, parse_profile
from toolkit.simulate.scenario import Scenario
from toolkit.wire.job import ModelSpec
from toolkit.wire.tensors import activation_bytes

UNIT_DEVICE_STEP_S = 0.1
UNIT_SERVER_STEP_S = 0.01
"""Taken where nobody measured anything: every step costs the same, whatever its cut."""
FORWARD_SHARE = 1 / 3
"""Of a training step that a forward pass takes."""


class ActorClock:
    """The time of one end: it passes when that end works or waits.

    Attributes:
        now_s: since the simulation began.
        busy_s: of it, spent on computing.
        n_moves: times that something was computed.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.busy_s = 0.0
        self.n_moves = 0

    def __call__(self) -> float:
        """Tell the time."""
        return self.now_s

    def spend(self, seconds: float) -> None:
        """Compute for so long."""
        self.now_s += seconds
        self.busy_s += seconds
        self.n_moves += 1


@dataclass(frozen=True, slots=True)
class DeviceTimes:
    """One device.

    Attributes:
        step_s: a training step of its segment and exit, by cut.
        whole_step_s: a training step of the whole network, for the baselines.
        line: to the coordinator.
    """

    step_s: Mapping[str, float]
    whole_step_s: float
    line: Line


@dataclass(frozen=True, slots=True)
class FleetTimes:
    """Everybody.

    Attributes:
        server_step_s: a training step on one batch, by cut.
        server_whole_step_s: likewise of the whole network.
        basis: where the numbers come from, in words.
    """

    devices: Mapping[str, DeviceTimes]
    server_step_s: Mapping[str, float]
    server_whole_step_s: float
    basis: str


def fleet_times(scenario: Scenario, model: ModelSpec) -> FleetTimes:
    """Read the times that a scenario gives.

    Raises: ProfileError: a profile was measured for something else. PlanError: a plan is of another model.
    """
    if scenario.profiles:
        times = _from_profiles(scenario, model)
    elif scenario.plan:
        times = _from_plan(scenario, model)
    else:
        times = _units(scenario, model)
    return times


def slowed(times: DeviceTimes, factor: float) -> DeviceTimes:
    """The same device, its steps ``factor`` times as long."""
    return DeviceTimes(
        {cut: step_s * factor for cut, step_s in times.step_s.items()},
        times.whole_step_s * factor,
        times.line,
    )


def fitting_profiles(scenario: Scenario, model: ModelSpec) -> dict[str, Profile]:
    """Each device's profile, the given ones in turn.

    Raises: ProfileError: one was measured for something else.
    """
    read = [parse_profile(text, where="a profile of the scenario") for text in scenario.profiles]
    found = {}
    for index, name in enumerate(scenario.names):
        profile = read[index % len(read)]
        wanted = msgspec.structs.replace(
            model, n_classes=profile.model.n_classes if profile.model else model.n_classes
        )
        run = scenario.run
        if wrong := misfit(profile, wanted, batch_size=run.batch_size, exit_head=run.exit_head):
            raise ProfileError(
                wrong,
                hint="Measure it for this model: hsee profile, or leave --profiles out.",
                profile=profile.name,
            )
        found[name] = profile
    return found


def _units(scenario: Scenario, model: ModelSpec) -> FleetTimes:
    cuts = cut_layers(build_network(model, seed=0))
    one = DeviceTimes(dict.fromkeys(cuts, UNIT_DEVICE_STEP_S), UNIT_DEVICE_STEP_S, _line(ASSUMED_LINK))
    return FleetTimes(
        {name: slowed(one, scenario.slow.get(name, 1.0)) for name in scenario.names},
        dict.fromkeys(cuts, UNIT_SERVER_STEP_S),
        UNIT_SERVER_STEP_S,
        f"no profiles: every device step is taken as {UNIT_DEVICE_STEP_S:g} s, every server step as "
        f"{UNIT_SERVER_STEP_S:g} s, links as 20 Mbit/s",
    )


def _from_profiles(scenario: Scenario, model: ModelSpec) -> FleetTimes:
    profiles = fitting_profiles(scenario, model)
    server = ServerInput(flop_per_s=scenario.server_flop_per_s)
    batch_size = scenario.run.batch_size
    devices, server_step_s, whole_s = {}, {}, 0.0
    for name, profile in profiles.items():
        rows = [row for row in with_every_cut(profile).cuts if row.step_ms_mean]
        deepest = rows[-1]
        both = (deepest.flop + deepest.suffix_flop) / deepest.flop
        own = DeviceTimes(
            {row.cut: row.step_ms_mean / 1e3 for row in rows},
            deepest.step_ms_mean / 1e3 * both,
            _line(profile.link or ASSUMED_LINK),
        )
        devices[name] = slowed(own, scenario.slow.get(name, 1.0))
        for row in rows:
            server_step_s[row.cut] = (server.step_ms_at(row, batch_size=batch_size) or 0.0) / 1e3
        shallowest = rows[0]
        whole_s = server_step_s[shallowest.cut] * (1 + shallowest.flop / max(1, shallowest.suffix_flop))
    return FleetTimes(devices, server_step_s, whole_s, f"profiles; server: {server.basis}")


def _from_plan(scenario: Scenario, model: ModelSpec) -> FleetTimes:
    plan = scenario_plan(scenario)
    batch_size = scenario.run.batch_size
    if plan.model.name != model.name or plan.batch_size != batch_size:
        raise PlanError(
            f"The plan is of model {plan.model.name!r} with batches of {plan.batch_size}; "
            f"the simulation has {model.name!r} with {batch_size}.",
            hint="Give the same --model and --set run.batch_size.",
        )
    network = build_network(model, seed=0)
    devices, server_step_s = {}, {}
    for planned in plan.devices:
        n_values = prod(activation_shape(take_segment(network, planned.cut), model.input_shape)) * batch_size
        up = activation_bytes(n_values, planned.codec) / max(planned.upload_ms / 1e3, 1e-9)
        step_s = planned.step_ms / 1e3
        own = DeviceTimes({planned.cut: step_s}, step_s, Line(up, up, 0.0))
        devices[planned.device] = slowed(own, scenario.slow.get(planned.device, 1.0))
        server_step_s[planned.cut] = planned.server_ms / 1e3
    whole_s = max(server_step_s.values())
    return FleetTimes(devices, server_step_s, whole_s, f"the plan's; server: {plan.server_basis}")


def scenario_plan(scenario: Scenario) -> Plan:
    """Read the scenario's plan.

    Raises: PlanError: it is damaged.
    """
    return parse_plan(scenario.plan, where="the plan")


def _line(link: Link) -> Line:
    return Line(link.up_bytes_per_s, link.down_bytes_per_s, link.rtt_ms / 2e3)
