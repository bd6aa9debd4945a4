"""What a batch takes this board at work, told once a round; its owner hears of it where it left the board's profile."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.errors import ProfileError
from toolkit.profile.drift import Drifted, PaceSum, find_drift
from toolkit.profile.schema import Profile, fits, for_classes, parse_profile
from toolkit.wire.job import Job
from toolkit.wire.messages import Pace

ADVICE = {
    "step": "measure again when the board is as it will stay (hsee profile); the next run plans with it.",
    "upload": "measure the link again (hsee profile --broker), or send less (run.codec = int8); the next run plans "
    "with it.",
}


@dataclass(slots=True)
class _Round:
    """What a round took so far, seconds."""

    n_steps: int = 0
    step_s: float = 0.0
    n_sent: int = 0
    sent_bytes: int = 0
    uploading_s: float = 0.0


class PaceWatch:
    """Times a job at work, and compares it with the profile that its cut was chosen by.

    Args:
        profile: of this board, TOML text; empty or of another model means that nothing is compared.
        device: this board's id.
        job: that is trained.
    """

    def __init__(self, profile: str, *, device: str, job: Job) -> None:
        self._device = device
        self._job = job
        self._profile = _of_job(profile, job)
        self._round = _Round()
        self._sum = PaceSum()
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

    def round_over(self, round_: int) -> Pace | None:
        """Tell what the round that ends here took; nothing where no step was made in it."""
        done, self._round = self._round, _Round()
        if not done.n_steps:
            return None
        return Pace(
            device=self._device,
            round=round_,
            n_steps=done.n_steps,
            step_ms=done.step_s / done.n_steps * 1e3,
            n_sent=done.n_sent,
            sent_bytes=done.sent_bytes,
            upload_ms=done.uploading_s / done.n_sent * 1e3 if done.n_sent else 0.0,
        )

    def advice(self, pace: Pace) -> list[str]:
        """Say what left the profile, each thing once."""
        judged = self._sum.add(pace)
        if self._profile is None or judged is None:
            return []
        found = find_drift(self._profile, cut=self._job.cut, codec=self._job.codec, pace=judged)
        fresh = [drifted for drifted in found if drifted.what not in self._said]
        self._said |= {drifted.what for drifted in fresh}
        return [_sentence(drifted) for drifted in fresh]


def _sentence(drifted: Drifted) -> str:
    pace = "slower" if drifted.factor > 1 else "quicker"
    return f"this board is {pace} than its profile: {drifted}. Advice: {ADVICE[drifted.what]}"


def _of_job(text: str, job: Job) -> Profile | None:
    """Read the profile; nothing where it speaks of something else."""
    try:
        profile = parse_profile(text) if text else None
    except ProfileError:
        return None
    if profile is None:
        return None
    profile = for_classes(profile, job.model.n_classes)
    is_of_job = fits(profile, job.model, batch_size=job.batch_size, exit_head=job.exit_head)
    return profile if is_of_job else None
