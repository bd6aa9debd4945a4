"""What a device can't be asked: each cut against its constraints, and what would help, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.errors import PlanError
from toolkit.plan.cost import CutCost
from toolkit.plan.reason import duration
from toolkit.plan.schema import Infeasible
from toolkit.profile.model_profile import ModelProfile
from toolkit.profile.schema import BYTES_PER_MB, CutRow, Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """What every cut of a plan must keep.

    Attributes:
        memory_share: of a board's memory that training may use, in (0, 1].
        deadline_ms: longest round; None for none.
        commit_ms: of it, what the commit takes.
        min_exit_accuracy: of each device's exit in the central run, in [0, 1]; 0 for none.
        exits: the model's profile; needed where an accuracy is asked for.
    Raises: PlanError: a number is out of range, or nobody knows the exits' accuracies.
    """

    memory_share: float = 0.8
    deadline_ms: float | None = None
    commit_ms: float = 0.0
    min_exit_accuracy: float = 0.0
    exits: ModelProfile | None = None

    def __post_init__(self) -> None:
        if not 0 < self.memory_share <= 1:
            raise PlanError(
                f"The memory share is above 0 and at most 1, not {self.memory_share}.",
                hint="80 % is written 0.8.",
            )
        if self.deadline_ms is not None and not 0 < self.deadline_ms < math.inf:
            raise PlanError(
                f"The deadline is above 0, not {self.deadline_ms / 1e3:g} s.",
                hint="It is in seconds; without --deadline there is none.",
            )
        if not 0 <= self.min_exit_accuracy <= 1:
            raise PlanError(
                f"The least exit accuracy is a share from 0 to 1, not {self.min_exit_accuracy}.",
                hint="95 % is written 0.95.",
            )
        if self.min_exit_accuracy and self.exits is None:
            raise PlanError(
                f"Exits must reach {self.min_exit_accuracy:.1%}, but no model profile says what they reach.",
                hint="Give one with --model-profile (run.model_profile), such as resnet_small-digits; "
                "python -m toolkit.profile.central makes one.",
            )

    @property
    def limit_ms(self) -> float:
        """What the deadline leaves beside the commit, or infinity."""
        return math.inf if self.deadline_ms is None else self.deadline_ms - self.commit_ms

    def accuracy_at(self, cut: str) -> float | None:
        """Accuracy of a cut's exit in the central run, where it is known."""
        row = self.exits.exit_at(cut) if self.exits is not None else None
        return None if row is None else row.accuracy

    def barred_by_profile(self, profile: Profile, row: CutRow) -> Infeasible | None:
        """Say why a cut is out before anything is computed: it failed, needs memory, or its exit is too weak."""
        if row.failed:
            return Infeasible(
                cut=row.cut,
                constraint="measurement",
                detail=f"it could not be measured: {row.failed}",
                fix="a board with more memory or a smaller batch, then hsee profile again",
            )
        if not row.step_ms_mean:
            return Infeasible(
                cut=row.cut,
                constraint="measurement",
                detail="nobody measured it, and it does not lie between cuts that were measured",
                fix=f"hsee profile again, with {row.cut} among its --cuts",
            )
        return self._memory(profile, row) or self._accuracy(row)

    def barred_by_deadline(self, cost: CutCost, *, n_batches: int) -> Infeasible | None:
        """Say why a cut is out once its round is known."""
        if cost.device_ms <= self.limit_ms:
            return None
        slow = "computing" if cost.compute_ms >= cost.upload_ms else "the upload"
        most = max(int(self.limit_ms // max(cost.compute_ms, cost.upload_ms)), 0)
        fixes = [f"--deadline {math.ceil((cost.device_ms + self.commit_ms) / 100) / 10:g}"]
        fixes += [f"--batches {most} or fewer"] if most else []
        fixes += ["a smaller codec (int8) or a faster link"] if slow == "the upload" else ["a faster board"]
        return Infeasible(
            cut=cost.cut,
            constraint="deadline",
            detail=f"{slow} takes {duration(cost.device_ms)} for {n_batches} batches, and the deadline is "
            f"{duration(self.deadline_ms or 0.0)}{self._commit_words()}",
            fix=" or ".join(fixes),
        )

    def _commit_words(self) -> str:
        return f", of which the commit takes {duration(self.commit_ms)}" if self.commit_ms else ""

    def _memory(self, profile: Profile, row: CutRow) -> Infeasible | None:
        board_mb = profile.board.memory_bytes / BYTES_PER_MB
        allowed_mb = board_mb * self.memory_share
        if row.peak_memory_mb <= allowed_mb:
            return None
        share = math.ceil(row.peak_memory_mb / board_mb * 100) / 100
        fixes = [f"--memory-share {share:.2f}"] if share <= 0.95 else []  # noqa: PLR2004 - the system needs the rest
        fixes += [f"a board with {math.ceil(row.peak_memory_mb / self.memory_share)} MB", "a smaller batch"]
        return Infeasible(
            cut=row.cut,
            constraint="memory",
            detail=f"training there takes {row.peak_memory_mb:.0f} MB of memory, and {allowed_mb:.0f} MB may be used "
            f"({self.memory_share:.0%} of {board_mb:.0f})",
            fix=" or ".join(fixes),
        )

    def _accuracy(self, row: CutRow) -> Infeasible | None:
        if not self.min_exit_accuracy or self.exits is None:
            return None
        known = self.exits.exit_at(row.cut)
        if known is None:
            return Infeasible(
                cut=row.cut,
                constraint="exit accuracy",
                detail=f"model profile {self.exits.name!r} does not know its exit",
                fix="a model profile of this model",
            )
        if known.accuracy >= self.min_exit_accuracy:
            return None
        good = [e for e in self.exits.exits if e.accuracy >= self.min_exit_accuracy]
        lower = math.floor(known.accuracy * 1000) / 1000
        fixes = [f"the cut {good[0].cut} ({good[0].accuracy:.1%})"] if good else []
        return Infeasible(
            cut=row.cut,
            constraint="exit accuracy",
            detail=f"its exit answers {known.accuracy:.1%} right in the central run, and {self.min_exit_accuracy:.1%} "
            "are asked for",
            fix=" or ".join([*fixes, f"--min-exit-accuracy {lower:g}"]),
        )


def no_cut_error(
    device: str, profile: Profile, infeasible: tuple[Infeasible, ...], *, pin: str | None
) -> PlanError:
    """Make the error for a device that no cut, or not its pinned one, is left for."""
    memory_mb = profile.board.memory_bytes / BYTES_PER_MB
    inference_only = (
        f"With {memory_mb:.0f} MB this board is for inference only (hsee infer); training needs about 512 MB."
    )
    if not infeasible:
        return PlanError(
            f"The profile of device {device!r} has no cuts.",
            hint=inference_only if profile.inference_only else "Run hsee profile again.",
            device=device,
        )
    asked = [i for i in infeasible if pin in (None, i.cut)]
    easiest = asked[0]
    what = (
        f"Device {device!r} can't be cut after {easiest.cut!r}" if pin else f"No cut fits device {device!r}"
    )
    others = [f"{i.cut}: {i.detail}" for i in infeasible if i is not easiest] if pin is None else []
    return PlanError(
        f"{what}: {'' if pin else f'after {easiest.cut!r}, '}{easiest.detail}"
        f"{''.join(f'; {other}' for other in others)}.",
        hint=inference_only if profile.inference_only else f"What would help: {_what_helps(asked)}.",
        device=device,
        constraint=easiest.constraint,
        cut=easiest.cut,
    )


def _what_helps(infeasible: Sequence[Infeasible]) -> str:
    """The least of each kind of fix: shallow cuts take least time and memory, deep ones have the best exits."""
    fixes: dict[str, str] = {}
    for i in infeasible:
        if i.constraint == "exit accuracy" or i.constraint not in fixes:
            fixes[i.constraint] = i.fix
    return "; or ".join(fixes.values())
