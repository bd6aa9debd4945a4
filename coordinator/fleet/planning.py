"""From joined devices to jobs: which cut each gets, and all else that a run fixes before its first round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import msgspec
import tomlkit

from coordinator.fleet.registry import DataFacts, refusal_of_model
from coordinator.fleet.wishes import wishes_of
from coordinator.store.commit_time import time_commit_ms
from coordinator.store.server_spec import ServerSpec
from toolkit.config import Run
from toolkit.errors import ModelError, PlanError, ProfileError, did_you_mean
from toolkit.nn.cut import depth_of
from toolkit.nn.recipe import eval_batches_in_round, steps_in_round
from toolkit.nn.server_exits import check_server_exits
from toolkit.nn.sizes import device_part, sizes_of_cuts
from toolkit.nn.zoo import build_network
from toolkit.plan.choose import choose_cuts
from toolkit.plan.cost import DeviceInput, ServerInput
from toolkit.plan.schema import plan_text
from toolkit.profile.measure import measure_server
from toolkit.profile.schema import Profile, for_classes, misfit, parse_profile
from toolkit.wire.job import Distillation, Job, ModelSpec, OptimizerSpec, SyncSpec, influence
from toolkit.wire.messages import DataSummary, Hello, MeasureRequest
from toolkit.wire.tensors import check_codec


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The plan of a run and what follows from it for each device.

    Attributes:
        text: plan.toml.
        reasons: device id to why it is cut where it is, in words.
        lists: device id to (training batches, held-out batches) in a round.
        activation_shapes: of one sample at the device's cut.
    """

    version: int
    text: str
    reasons: dict[str, str]
    jobs: dict[str, Job]
    lists: dict[str, tuple[int, int]]
    activation_shapes: dict[str, list[int]]
    classes: tuple[str, ...]

    @property
    def influence(self) -> str:
        """How the coordinator reaches devices' weights, in words; empty where it does not."""
        return next(iter(self.jobs.values())).influence

    @property
    def cuts(self) -> dict[str, str]:
        """Device id to cut layer."""
        return {device: job.cut for device, job in self.jobs.items()}


class Planner(Protocol):
    """Decides the cut of every device."""

    def refusal_of(self, settings: Run, hello: Hello) -> tuple[str, str] | None:
        """Say why the run can't be planned with a device that comes first: (code, message), if it can't."""
        ...

    def needs_measuring(self, settings: Run, hello: Hello) -> MeasureRequest | None:
        """Say what a device must measure before it can be planned for, if anything."""
        ...

    def plan(self, run: str, settings: Run, facts: DataFacts, hellos: Mapping[str, Hello]) -> FleetPlan:
        """Plan for the devices that take part.

        Raises: ModelError: the model or its exits can't be built on this data. PlanError: a device has no feasible cut.
            CutError: there is no such cut, or no such stage behind the shallowest for an exit of the server.
        """
        ...


def measured_server(model: ModelSpec, settings: Run) -> ServerInput:
    """Measure this machine's server steps."""
    return ServerInput(
        step_ms=measure_server(
            model, batch_size=settings.batch_size, exit_head=settings.exit_head, threads=settings.threads
        )
    )


class ProfilePlanner:
    """Chooses cuts from the devices' profiles.

    Args:
        server: says how fast the server is; by default it is measured.
        scratch: a folder on the run's disk, where a commit is timed; None takes it for nothing.
    """

    def __init__(
        self,
        server: Callable[[ModelSpec, Run], ServerInput] = measured_server,
        *,
        scratch: Path | None = None,
    ) -> None:
        self._server = server
        self._scratch = scratch

    def refusal_of(self, settings: Run, hello: Hello) -> tuple[str, str] | None:
        """Refuse samples that the run's model can't be built for."""
        return refusal_of_model(settings, hello.data.input_shape)

    def needs_measuring(self, settings: Run, hello: Hello) -> MeasureRequest | None:
        """Ask a device to measure itself that brings no profile of this job."""
        return needs_measuring(settings, hello)

    def plan(self, run: str, settings: Run, facts: DataFacts, hellos: Mapping[str, Hello]) -> FleetPlan:
        """See :class:`Planner`; each hello brings a profile that fits."""
        model, lists = _model(settings, facts), _lists(settings, hellos)
        codec = check_codec(settings.codec)
        wishes = wishes_of(settings, hellos)
        server = self._server(model, settings)
        if self._scratch is not None:
            server = replace(server, commit_ms=time_commit_ms(self._scratch, model))
        choice = choose_cuts(
            [
                DeviceInput(
                    name=device,
                    profile=for_classes(parse_profile(hello.profile, where=device), model.n_classes),
                    n_batches=lists[device][0],
                    n_held_out_batches=-(-hello.data.n_eval // settings.batch_size),
                    n_eval_batches=lists[device][1] / settings.eval_every,
                    codec=codec,
                    sync=sync_of(settings),
                )
                for device, hello in hellos.items()
            ],
            server=server,
            objective=wishes.objective,
            memory_share=wishes.memory_share,
            slack=wishes.slack,
            min_exit_accuracy=wishes.min_exit_accuracy,
            exits=wishes.exits,
            pins=wishes.pins,
        )
        reasons = {d.device: f"{d.reason} ({d.known})" for d in choice.devices}
        return _fleet_plan(run, settings, facts, lists, choice.cuts, text=plan_text(choice), reasons=reasons)


class GivenCuts:
    """Takes cuts that somebody named.

    Args:
        cuts: device id to cut layer.
        reason: where they come from, in words.
    """

    def __init__(self, cuts: Mapping[str, str], *, reason: str = "given") -> None:
        self._cuts = dict(cuts)
        self._reason = reason

    def refusal_of(self, settings: Run, hello: Hello) -> tuple[str, str] | None:
        """Refuse samples that the run's model can't be built for."""
        return refusal_of_model(settings, hello.data.input_shape)

    def needs_measuring(self, settings: Run, hello: Hello) -> MeasureRequest | None:
        """Ask for nothing: no time is weighed."""
        del settings, hello
        return None

    def plan(self, run: str, settings: Run, facts: DataFacts, hellos: Mapping[str, Hello]) -> FleetPlan:
        """See :class:`Planner`.

        Raises: PlanError: a device has no cut.
        """
        for device in hellos:
            if device not in self._cuts:
                raise PlanError(
                    f"No cut is given for device {device!r}.",
                    hint=did_you_mean(device, self._cuts),
                    device=device,
                )
        cuts = {device: self._cuts[device] for device in hellos}
        document = tomlkit.document()
        document.add(tomlkit.comment(f"Cut layers of a fleet: {self._reason}."))
        document.add("cuts", tomlkit.item(cuts))
        return _fleet_plan(
            run,
            settings,
            facts,
            _lists(settings, hellos),
            cuts,
            text=tomlkit.dumps(document),
            reasons=dict.fromkeys(cuts, self._reason),
        )


def needs_measuring(settings: Run, hello: Hello) -> MeasureRequest | None:
    """Say what a device must measure before it can be planned for; None if the profile it brings will do."""
    model = ModelSpec(
        name=settings.model,
        input_shape=hello.data.input_shape,
        n_classes=max(2, len(settings.classes) or len(hello.data.classes)),
        options=settings.model_options,
    )
    request = MeasureRequest(model=model, batch_size=settings.batch_size, exit_head=settings.exit_head)
    if not hello.profile:
        return request
    try:
        profile = parse_profile(hello.profile, where=f"the profile of {hello.device}")
    except ProfileError:
        return request
    wanted = for_classes(profile, model.n_classes)
    if misfit(wanted, model, batch_size=settings.batch_size, exit_head=settings.exit_head):
        return request
    if not _is_of_this_model(profile):
        return request
    # Another version's times are another program's; a profile that names none is taken at its word.
    measured_by = profile.provenance.software.get("hsee")
    is_stale = (
        measured_by is not None
        and hello.software.startswith("hsee ")
        and hello.software != f"hsee {measured_by}"
    )
    return request if is_stale else None


def _is_of_this_model(profile: Profile) -> bool:
    """Whether a profile's cuts are those of the model as it is now: a user's own changes under the same name."""
    if profile.model is None or profile.training is None:
        return False
    now = _sizes(msgspec.json.encode(profile.model), profile.training.exit_head)
    same = all(
        row.failed or now.get(row.cut) == (row.n_parameters, row.activation_bytes) for row in profile.cuts
    )
    return same and (profile.partial or {row.cut for row in profile.cuts} == now.keys())


@lru_cache(maxsize=8)
def _sizes(model: bytes, exit_head: str) -> dict[str, tuple[int, int]]:
    """Size a model's cuts once for all devices that bring a profile of it; none where it can't be built."""
    try:
        sizes = sizes_of_cuts(msgspec.json.decode(model, type=ModelSpec), exit_head=exit_head)
    except ModelError:
        return {}
    return {size.cut: (size.n_parameters, size.activation_bytes) for size in sizes}


def influence_of(settings: Run) -> str:
    """How a run with these settings reaches devices' weights, in words; empty where it does not."""
    return influence(sync_of(settings), _teaching(settings, settings.server_logits))


def server_spec(settings: Run) -> ServerSpec:
    """What only the server's training knows, as the settings have it."""
    return ServerSpec(
        exits=settings.server_exits,
        exit_head=settings.exit_head,
        exit_weight=settings.server_exit_weight,
        lr_factor=settings.server_lr_factor,
    )


def _teaching(settings: Run, weight: float) -> Distillation:
    return Distillation(weight=weight, temperature=settings.distillation_temperature)


def sync_of(settings: Run) -> SyncSpec:
    """How devices' segments are made one, as the settings have it."""
    return SyncSpec(
        mode=settings.client_sync,
        every=settings.sync_every,
        momentum=settings.sync_momentum,
        codec=check_codec(settings.sync_codec),
    )


def _model(settings: Run, facts: DataFacts) -> ModelSpec:
    return ModelSpec(
        name=settings.model,
        input_shape=list(facts.input_shape),
        n_classes=len(facts.classes),
        options=settings.model_options,
    )


def _lists(settings: Run, hellos: Mapping[str, Hello]) -> dict[str, tuple[int, int]]:
    return {device: list_of(settings, hello.data) for device, hello in hellos.items()}


def list_of(owed: Run | Job, data: DataSummary) -> tuple[int, int]:
    """How many batches a device owes a round: those it trains on, and held-out ones."""
    return (
        steps_in_round(data.n_train, owed.batch_size, owed.round_steps),
        eval_batches_in_round(data.n_eval, owed.batch_size, owed.eval_samples),
    )


def _fleet_plan(
    run: str,
    settings: Run,
    facts: DataFacts,
    lists: dict[str, tuple[int, int]],
    cuts: Mapping[str, str],
    *,
    text: str,
    reasons: dict[str, str],
) -> FleetPlan:
    model = _model(settings, facts)
    network = build_network(model, seed=settings.seed)
    jobs = {
        device: Job(
            run=run,
            model=model,
            cut=cut,
            classes=list(facts.classes),
            mean=list(facts.mean),
            std=list(facts.std),
            seed=settings.seed,
            rounds=settings.rounds,
            batch_size=settings.batch_size,
            round_steps=settings.round_steps,
            eval_samples=settings.eval_samples,
            eval_every=settings.eval_every,
            optimizer=OptimizerSpec(
                lr=settings.lr,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                schedule=settings.schedule,
            ),
            exit_head=settings.exit_head,
            codec=check_codec(settings.codec),
            threads=settings.threads,
            all_exits=settings.all_exits,
            among_exits=_teaching(settings, settings.self_distillation),
            sync=sync_of(settings),
            from_server=_teaching(settings, settings.server_logits),
        )
        for device, cut in cuts.items()
    }
    shapes = {
        cut: list(device_part(network, model, cut, exit_head=settings.exit_head, seed=settings.seed)[1])
        for cut in set(cuts.values())
    }
    shallowest = min(depth_of(network, cut) for cut in shapes)
    check_server_exits(settings.server_exits, network.stage_names, depth=shallowest)
    return FleetPlan(
        version=1,
        text=text,
        reasons=reasons,
        jobs=jobs,
        lists=lists,
        activation_shapes={device: shapes[cut] for device, cut in cuts.items()},
        classes=facts.classes,
    )
