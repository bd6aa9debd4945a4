"""Does this board still keep the pace of its profile? Told once for steps and once for the link; nothing changes by it."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.errors import ProfileError
from toolkit.profile.schema import CutRow, Profile, parse_profile
from toolkit.wire.job import Job

FACTOR = 1.5
"""So much slower than its profile is worth a word: twice what a busy hour costs, less than a wrong cut."""


@dataclass(slots=True)
class _Round:
    """What a round took so far, seconds."""

    n_steps: int = 0
    step_s: float = 0.0
    n_sent: int = 0
    sent_bytes: int = 0
    uploading_s: float = 0.0


class Drift:
    """Compares a job at work with the profile that its cut was chosen by.

    Args:
        profile: of this board, TOML text; empty or of another model means that nothing is compared.
        job: that is trained.
        factor: how much slower is worth a word.
    """

    def __init__(self, profile: str, job: Job, *, factor: float = FACTOR) -> None:
        self._factor = factor
        self._profile, self._row = _expected(profile, job)
        self._round = _Round()
        self._said: set[str] = set()
        self._last_look_s: float | None = None

    def stepped(self, seconds: float) -> None:
        """One training step was made."""
        self._round.n_steps += 1
        self._round.step_s += seconds

    def sent(self, n_bytes: int) -> None:
        """One payload was handed to the link."""
        self._round.n_sent += 1
        self._round.sent_bytes += n_bytes

    def looked(self, now_s: float, outstanding_bytes: int) -> None:
        """The link was looked at: whether it is at work. Between two looks it counts as what it was at the first."""
        if self._last_look_s is not None:
            self._round.uploading_s += now_s - self._last_look_s
        self._last_look_s = now_s if outstanding_bytes else None

    def round_over(self) -> list[str]:
        """Say what drifted in the round that ends here, each thing once."""
        done, self._round = self._round, _Round()
        if self._row is None or not done.n_steps:
            return []
        step_ms = done.step_s / done.n_steps * 1e3
        found = {"step": self._step(step_ms, self._row.step_ms_mean)}
        if done.n_sent:
            found["upload"] = self._upload(done, step_ms)
        fresh = {kind: text for kind, text in found.items() if text and kind not in self._said}
        self._said |= fresh.keys()
        return list(fresh.values())

    def _step(self, step_ms: float, expected_ms: float) -> str:
        if step_ms <= expected_ms * self._factor:
            return ""
        return (
            f"slower than its profile: {step_ms:.3g} ms a step, and the plan counted on {expected_ms:.3g} ms. "
            "Advice: measure again when the board is as it will stay (hsee profile); the next run plans with it."
        )

    def _upload(self, done: _Round, step_ms: float) -> str:
        link = self._profile.link if self._profile is not None else None
        if link is None or link.provenance == "assumed":
            return ""
        # The link is looked at between steps only: what seems to last no longer than a step may be much shorter.
        upload_ms = done.uploading_s / done.n_sent * 1e3
        expected_ms = max(link.upload_ms(done.sent_bytes // done.n_sent), step_ms)
        if upload_ms <= expected_ms * self._factor:
            return ""
        return (
            f"the link is slower than its profile: {upload_ms:.3g} ms a batch, and the plan counted on "
            f"{link.upload_ms(done.sent_bytes // done.n_sent):.3g} ms. Advice: measure it again "
            "(hsee profile --broker), or send less (run.codec = int8); the next run plans with it."
        )


def _expected(text: str, job: Job) -> tuple[Profile | None, CutRow | None]:
    """Find what the profile says of the job's cut; nothing where it speaks of something else."""
    try:
        profile = parse_profile(text) if text else None
    except ProfileError:
        return None, None
    if profile is None or profile.model is None or profile.training is None:
        return None, None
    of_job = (
        profile.model.name,
        profile.model.options,
        profile.training.batch_size,
        profile.training.exit_head,
    )
    if of_job != (job.model.name, job.model.options, job.batch_size, job.exit_head):
        return None, None
    row = next((row for row in profile.cuts if row.cut == job.cut and not row.failed), None)
    return profile, row
