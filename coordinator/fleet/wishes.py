"""What the settings of a run wish of its plan: an objective, a least exit accuracy, cuts that are given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.config import Run
from toolkit.errors import PlanError
from toolkit.plan.cost import Objective
from toolkit.plan.schema import Plan, read_plan
from toolkit.profile.locate import find_model
from toolkit.profile.model_profile import ModelProfile, read_model_profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What :func:`toolkit.plan.choose.choose_cuts` is asked for beside the devices and the server."""

    objective: Objective = "makespan"
    slack: float = 0.05
    memory_share: float = 0.8
    min_exit_accuracy: float = 0.0
    exits: ModelProfile | None = None
    pins: dict[str, str] = field(default_factory=dict)


def wishes_of(settings: Run, devices: Iterable[str]) -> Wishes:
    """Gather the wishes of a run.

    A plan file gives the cut of every device that it names, and its objective, slack and memory share to those that
    it does not; devices that it names and that did not join are passed over.

    Args:
        settings: of the run.
        devices: that take part.
    Raises: ProfileError: the model's profile can't be read. PlanError: the plan can't, or it is for another job.
    """
    exits = read_model_profile(find_model(settings.model_profile)) if settings.model_profile else None
    if not settings.plan:
        return Wishes(
            objective=settings.objective,
            slack=settings.slack,
            min_exit_accuracy=settings.min_exit_accuracy,
            exits=exits,
        )
    plan = read_plan(Path(settings.plan).expanduser())
    _check_plan(plan, settings)
    return Wishes(
        objective=plan.objective,
        slack=plan.slack,
        memory_share=plan.memory_share,
        min_exit_accuracy=settings.min_exit_accuracy,
        exits=exits,
        pins={device: plan.cuts[device] for device in devices if device in plan.cuts},
    )


def _check_plan(plan: Plan, settings: Run) -> None:
    wrong = [
        f"{name} is {got!r}, the run's is {wanted!r}"
        for name, got, wanted in (
            ("model", plan.model.name, settings.model),
            ("model_options", plan.model.options, settings.model_options),
            ("batch_size", plan.batch_size, settings.batch_size),
            ("exit_head", plan.exit_head, settings.exit_head),
        )
        if got != wanted
    ]
    if wrong:
        raise PlanError(
            f"The plan {settings.plan} was made for something else: {'; '.join(wrong)}.",
            hint="Plan again from profiles of this job (hsee plan), or change the run's settings (--set).",
            file=settings.plan,
        )
