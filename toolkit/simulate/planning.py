"""What a simulated fleet is planned from: its data facts, its network, and whoever names the cuts."""

from __future__ import annotations

from coordinator.fleet.planning import FleetPlan, GivenCuts, Planner, ProfilePlanner
from coordinator.fleet.registry import DataFacts, unite
from toolkit.config import Run
from toolkit.nn.cut import cut_layers
from toolkit.nn.zoo import build_network
from toolkit.plan.cost import ServerInput
from toolkit.profile.schema import profile_text
from toolkit.simulate.data import FleetData
from toolkit.simulate.scenario import Scenario
from toolkit.simulate.times import fitting_profiles, scenario_plan
from toolkit.wire.job import ModelSpec
from toolkit.wire.limits import PROTOCOL_VERSION
from toolkit.wire.messages import Hello


def data_facts(scenario: Scenario, data: FleetData) -> DataFacts:
    """What the devices hold together.

    Raises: DataError: fewer than two classes in all.
    """
    summaries = [data.devices[name].summary() for name in scenario.names]
    return unite(summaries, classes=scenario.run.classes)


def model_spec(settings: Run, facts: DataFacts) -> ModelSpec:
    """The network that the fleet trains."""
    return ModelSpec(
        name=settings.model,
        input_shape=list(facts.input_shape),
        n_classes=len(facts.classes),
        options=settings.model_options,
    )


def profile_texts(scenario: Scenario, model: ModelSpec) -> dict[str, str]:
    """The profile that each device brings; empty where the scenario has none.

    Raises: ProfileError: one was measured for something else.
    """
    if not scenario.profiles:
        return dict.fromkeys(scenario.names, "")
    return {name: profile_text(profile) for name, profile in fitting_profiles(scenario, model).items()}


def hellos_of(scenario: Scenario, data: FleetData, model: ModelSpec) -> dict[str, Hello]:
    """What the devices would say, for whoever plans without a wire."""
    return {
        name: Hello(
            device=name,
            boot_nonce=bytes(16),
            protocols=[PROTOCOL_VERSION],
            software="hsee simulate",
            data=data.devices[name].summary(),
            profile=profile,
        )
        for name, profile in profile_texts(scenario, model).items()
    }


def planner_of(scenario: Scenario) -> Planner:
    """Whoever names the cuts: the user, a plan, or the profiles."""
    if scenario.cuts:
        turns = {name: scenario.cuts[i % len(scenario.cuts)] for i, name in enumerate(scenario.names)}
        return GivenCuts(turns, reason="given by --cuts")
    if scenario.plan:
        return GivenCuts(scenario_plan(scenario).cuts, reason="as the plan has it")

    def server(_model: ModelSpec, _settings: Run) -> ServerInput:
        return ServerInput(flop_per_s=scenario.server_flop_per_s)

    return ProfilePlanner(server)


def plan_fleet(scenario: Scenario, data: FleetData) -> FleetPlan:
    """Plan as the run will, without a wire; where no cut is named, as for some baselines, the deepest is as good as any.

    Raises: HseeError: cuts, exits, profiles or the model do not fit together.
    """
    facts = data_facts(scenario, data)
    model = model_spec(scenario.run, facts)
    if scenario.cuts or scenario.plan or scenario.profiles:
        planner = planner_of(scenario)
    else:
        deepest = cut_layers(build_network(model, seed=scenario.run.seed))[-1]
        planner = GivenCuts(dict.fromkeys(scenario.names, deepest))
    return planner.plan("simulated", scenario.run, facts, hellos_of(scenario, data, model))
