"""Does a board still keep the pace of its profile? What it measured at work against what its profile says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from toolkit.profile.link import Link
from toolkit.profile.schema import CutRow, Profile
from toolkit.wire.messages import Pace

FACTOR = 1.5
"""So far from its profile is worth a word: twice what a busy hour costs, less than a wrong cut."""

JUDGED_MS = 2000.0
"""A pace is judged over so much work at least: under a quota of processor time the means of a few steps jump."""


@dataclass(frozen=True, slots=True)
class Drifted:
    """A time that has left its profile: ms of a training step or of one payload's upload."""

    what: Literal["step", "upload"]
    measured_ms: float
    expected_ms: float

    @property
    def factor(self) -> float:
        """Above 1 where it takes longer now."""
        return self.measured_ms / self.expected_ms

    def __str__(self) -> str:
        noun = "a step" if self.what == "step" else "an upload"
        return f"{noun} takes {self.measured_ms:.3g} ms, and its profile says {self.expected_ms:.3g} ms"


class PaceSum:
    """Joins the paces of rounds until there is enough work in them to be judged."""

    def __init__(self) -> None:
        self._forget()

    def add(self, pace: Pace) -> Pace | None:
        """Take a round in.

        Returns: the pace of all rounds since the last that was returned; None while they hold too little work.
        """
        self._n_steps += pace.n_steps
        self._step_ms += pace.step_ms * pace.n_steps
        self._n_sent += pace.n_sent
        self._sent_bytes += pace.sent_bytes
        self._upload_ms += pace.upload_ms * pace.n_sent
        if max(self._step_ms, self._upload_ms) < JUDGED_MS:
            return None
        joined = msgspec.structs.replace(
            pace,
            n_steps=self._n_steps,
            step_ms=self._step_ms / self._n_steps,
            n_sent=self._n_sent,
            sent_bytes=self._sent_bytes,
            upload_ms=self._upload_ms / max(1, self._n_sent),
        )
        self._forget()
        return joined

    def _forget(self) -> None:
        self._n_steps = self._n_sent = self._sent_bytes = 0
        self._step_ms = self._upload_ms = 0.0


def find_drift(
    profile: Profile, *, cut: str, codec: str, pace: Pace, factor: float = FACTOR
) -> tuple[Drifted, ...]:
    """List the times of a round that have left their profile by more than a factor.

    Args:
        profile: of the board that the pace is of.
        cut: that it trains; a profile without it is compared with nothing.
        codec: that its activations travel in.
        pace: what its batches took, over enough work: see :class:`PaceSum`.
        factor: how much slower, or quicker, is worth a word.
    """
    row = next((row for row in profile.cuts if row.cut == cut and row.step_ms_mean), None)
    if row is None:
        return ()
    step, upload = _step(profile, row, codec, pace), _upload(profile.link, pace, factor)
    steps = () if step is None or 1 / factor <= step.factor <= factor else (step,)
    return steps if upload is None else (*steps, upload)


def at_pace(profile: Profile, found: Sequence[Drifted]) -> Profile:
    """The same board as it is at work: every step and every upload so much slower, or quicker, as one was found to be."""
    for drifted in found:
        if drifted.what == "step":
            rows = tuple(_slower(row, drifted.factor) for row in profile.cuts)
            profile = msgspec.structs.replace(profile, cuts=rows)
        elif profile.link is not None:
            profile = msgspec.structs.replace(profile, link=_slower_link(profile.link, drifted.factor))
    return profile


def _step(profile: Profile, row: CutRow, codec: str, pace: Pace) -> Drifted | None:
    if not pace.step_ms:
        return None  # a clock too coarse to tell
    limits = profile.provenance.limits
    if limits is not None and limits.mechanism == "factor":
        return None  # nothing slows the agent as the measured times were multiplied
    # At work the step is slower by what the rest of the agent takes from the caches: no more than all of it together.
    most_ms = max(row.step_ms_mean, row.at_work_ms.get(codec, 0.0))
    expected_ms = min(max(pace.step_ms, row.step_ms_mean), most_ms)
    return Drifted("step", pace.step_ms, expected_ms)


def _upload(link: Link | None, pace: Pace, factor: float) -> Drifted | None:
    if link is None or link.provenance == "assumed" or not pace.n_sent:
        return None
    said_ms = link.upload_ms(pace.sent_bytes // pace.n_sent)
    # A device looks at its link between steps only: what seems to last no longer than a step may be much shorter.
    is_slow = pace.upload_ms > factor * max(said_ms, pace.step_ms)
    return Drifted("upload", pace.upload_ms, said_ms) if is_slow else None


def _slower(row: CutRow, factor: float) -> CutRow:
    if row.failed:
        return row
    return msgspec.structs.replace(
        row,
        step_ms_mean=row.step_ms_mean * factor,
        step_ms_p50=row.step_ms_p50 * factor,
        step_ms_p95=row.step_ms_p95 * factor,
        step_ms_at={size: ms * factor for size, ms in row.step_ms_at.items()},
        hand_over_ms={codec: ms * factor for codec, ms in row.hand_over_ms.items()},
        at_work_ms={codec: ms * factor for codec, ms in row.at_work_ms.items()},
    )


def _slower_link(link: Link, factor: float) -> Link:
    transfers = tuple(
        msgspec.structs.replace(t, up_bytes_per_s=t.up_bytes_per_s / factor) for t in link.transfers
    )
    return msgspec.structs.replace(link, up_bytes_per_s=link.up_bytes_per_s / factor, transfers=transfers)
