"""A profile carried over to a batch size that was not measured: along the line through those that were."""

from __future__ import annotations

import msgspec

from toolkit.errors import ProfileError
from toolkit.profile.schema import BYTES_PER_MB, CutRow, Profile

FURTHEST = 2
"""Beyond so many times more or less than the sizes that were measured, caches make a straight line worthless."""
SAVED_PER_OUTPUT = 4
"""Arrays of a cut's size that training keeps for each sample: convolution, norm, rectifier and their gradient."""


def for_batch_size(profile: Profile, batch_size: int) -> Profile:
    """Estimate a board's rows for another batch size.

    Args:
        profile: measured; itself where it is of this batch size already.
        batch_size: samples a step.
    Raises: ProfileError: too far from what was measured.
    """
    training = profile.training
    if training is None or training.batch_size == batch_size:
        return profile
    measured = [row for row in profile.cuts if not row.failed]
    lines = {row.cut: _line(row, training.batch_size) for row in measured}
    if not all(line[0][0] / FURTHEST <= batch_size <= line[-1][0] * FURTHEST for line in lines.values()):
        raise ProfileError(
            f"Profile {profile.name!r} was measured with batches of {training.batch_size}, which says too little of "
            f"batches of {batch_size}.",
            hint=f"Measure again: hsee profile ... --batch {batch_size}",
            profile=profile.name,
        )
    scaled = {
        row.cut: _scaled(row, _on_line(lines[row.cut], batch_size), training.batch_size, batch_size)
        for row in measured
    }
    return msgspec.structs.replace(
        profile,
        training=msgspec.structs.replace(training, batch_size=batch_size),
        cuts=tuple(scaled.get(row.cut, row) for row in profile.cuts),
    )


def _line(row: CutRow, batch_size: int) -> list[tuple[int, float]]:
    """Batch sizes and the step's ms, rising; from nothing where only one size was measured."""
    points = {batch_size: row.step_ms_mean, **{int(size): ms for size, ms in row.step_ms_at.items()}}
    return sorted(points.items())


def _on_line(line: list[tuple[int, float]], batch_size: int) -> float:
    """Read a step's ms off; beyond the ends the last piece goes on, but never faster than one sample's share."""
    if len(line) == 1:
        return line[0][1] * batch_size / line[0][0]
    right = min(max(sum(size < batch_size for size, _ in line), 1), len(line) - 1)
    (x0, y0), (x1, y1) = line[right - 1], line[right]
    return max(y0 + (y1 - y0) * (batch_size - x0) / (x1 - x0), y0 * min(batch_size / x0, 1.0))


def _scaled(row: CutRow, step_ms: float, measured_size: int, batch_size: int) -> CutRow:
    times, ratio = step_ms / row.step_ms_mean, batch_size / measured_size
    more_mb = (batch_size - measured_size) * SAVED_PER_OUTPUT * row.activation_bytes / BYTES_PER_MB
    return msgspec.structs.replace(
        row,
        step_ms_mean=step_ms,
        step_ms_p50=row.step_ms_p50 * times,
        step_ms_p95=row.step_ms_p95 * times,
        step_cpu_ms=row.step_cpu_ms * times,
        step_ms_at={},
        at_work_ms={codec: step_ms + (ms - row.step_ms_mean) * ratio for codec, ms in row.at_work_ms.items()},
        hand_over_ms={codec: ms * ratio for codec, ms in row.hand_over_ms.items()},
        peak_memory_mb=row.peak_memory_mb + max(more_mb, 0.0),
    )
