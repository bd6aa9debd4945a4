"""From joined devices to jobs: which cut each gets, and all else that a run fixes before its first round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from coordinator.registry import DataFacts
from toolkit.config import Run
from toolkit.errors import ProfileError
from toolkit.nn.cut import activation_shape, take_segment
from toolkit.nn.recipe import eval_batches_in_round, steps_in_round
from toolkit.nn.zoo import build_network
from toolkit.plan.choose import choose_cuts
from toolkit.plan.cost import DeviceInput, ServerInput
from toolkit.plan.schema import Plan, plan_text
from toolkit.profile.measure import measure_server
from toolkit.profile.schema import Profile, misfit, parse_profile
from toolkit.wire.job import Job, ModelSpec, OptimizerSpec
from toolkit.wire.messages import Hello, MeasureRequest
from toolkit.wire.tensors import check_codec


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The plan of a run and what follows from it for each device.

    Attributes:
        lists: device id to (training batches, held-out batches) in a round.
        activation_shapes: of one sample at the device's cut.
    """

    version: int
    choice: Plan
    jobs: dict[str, Job]
    lists: dict[str, tuple[int, int]]
    activation_shapes: dict[str, list[int]]
    classes: tuple[str, ...]

    @property
    def text(self) -> str:
        """plan.toml."""
        return plan_text(self.choice)


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
    wanted = _for_classes(profile, model.n_classes)
    return (
        request
        if misfit(wanted, model, batch_size=settings.batch_size, exit_head=settings.exit_head)
        else None
    )


def make_plan(run: str, settings: Run, facts: DataFacts, hellos: Mapping[str, Hello]) -> FleetPlan:
    """Choose every device's cut and write its job.

    Args:
        run: its id.
        settings: of the run.
        facts: what the joined devices hold together.
        hellos: of the devices that take part, each with a profile that fits.
    Raises: ModelError: the model can't be built on this data. PlanError: a device has no feasible cut.
    """
    model = ModelSpec(
        name=settings.model,
        input_shape=list(facts.input_shape),
        n_classes=len(facts.classes),
        options=settings.model_options,
    )
    network = build_network(model, seed=settings.seed)
    lists = {
        device: (
            steps_in_round(hello.data.n_train, settings.batch_size, settings.round_steps),
            eval_batches_in_round(hello.data.n_eval, settings.batch_size, settings.eval_samples),
        )
        for device, hello in hellos.items()
    }
    codec = check_codec(settings.codec)
    choice = choose_cuts(
        [
            DeviceInput(
                name=device,
                profile=_for_classes(parse_profile(hello.profile, where=device), model.n_classes),
                n_batches=lists[device][0],
                codec=codec.partition("+")[0],
            )
            for device, hello in hellos.items()
        ],
        server=ServerInput(
            step_ms=measure_server(
                model, batch_size=settings.batch_size, exit_head=settings.exit_head, threads=settings.threads
            )
        ),
    )
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
            optimizer=OptimizerSpec(
                lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
            ),
            exit_head=settings.exit_head,
            codec=codec,
            threads=settings.threads,
        )
        for device, cut in choice.cuts.items()
    }
    shapes = {
        device: list(activation_shape(take_segment(network, job.cut), model.input_shape))
        for device, job in jobs.items()
    }
    return FleetPlan(1, choice, jobs, lists, shapes, facts.classes)


def _for_classes(profile: Profile, n_classes: int) -> Profile:
    """The same profile for another class count: it changes only the exit's last row, which costs nothing to speak of."""
    if profile.model is None:
        return profile
    return msgspec.structs.replace(profile, model=msgspec.structs.replace(profile.model, n_classes=n_classes))
