"""A profile carried over to what was not measured: another batch size, and cuts between those that were.

A step's time is taken as a line over the batch size: what it costs whatever the batch, and what each sample adds. The
first grows with the layers it passes, the second with their FLOP.
"""

from __future__ import annotations

import msgspec

from toolkit.errors import ProfileError
from toolkit.profile.schema import BYTES_PER_MB, CutRow, Profile

FURTHEST = 2
"""Beyond so many times more or less than the sizes that were measured, caches make a straight line worthless."""
BYTES_PER_PARAMETER = 12
"""Float32 weight, gradient and momentum."""
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
    profile = with_every_cut(profile)
    measured = [row for row in profile.cuts if row.step_ms_mean]
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


def with_every_cut(profile: Profile) -> Profile:
    """Estimate the cuts that nobody measured from the nearest ones on either side that were; they stay marked.

    A cut with no measured one before or behind it stays without numbers: a line is not drawn beyond its ends.
    """
    if profile.training is None or not any(_lacks_times(row) for row in profile.cuts):
        return profile
    rows = list(profile.cuts)
    known = [index for index, row in enumerate(rows) if not (row.failed or row.unmeasured)]
    for index, row in enumerate(rows):
        before = max((k for k in known if k < index), default=None)
        behind = min((k for k in known if k > index), default=None)
        if _lacks_times(row) and before is not None and behind is not None:
            sides = (profile.cuts[before], profile.cuts[behind])
            rows[index] = _between(row, *sides, profile.training.batch_size)
    return msgspec.structs.replace(profile, cuts=tuple(rows))


def _lacks_times(row: CutRow) -> bool:
    return row.unmeasured and not row.step_ms_mean


def _between(row: CutRow, near: CutRow, far: CutRow, batch_size: int) -> CutRow:
    """Put a row between a shallower and a deeper one."""
    of_flop = _share(row.train_flop or row.flop, near.train_flop or near.flop, far.train_flop or far.flop)
    of_layers = _share(row.n_layers, near.n_layers, far.n_layers) if row.n_layers else of_flop
    fixed, a_sample = (
        _mean(share, of_near, of_far)
        for share, of_near, of_far in zip(
            (of_layers, of_flop), _split(near, batch_size), _split(far, batch_size), strict=True
        )
    )
    step_ms = fixed + a_sample * batch_size
    closer = near if of_flop <= 1 / 2 else far
    times = step_ms / closer.step_ms_mean
    size = 2 * row.activation_bytes / (near.activation_bytes + far.activation_bytes)
    over_the_step = _middle(_over_the_step(near), _over_the_step(far), size)
    grown, to_grow = _held_bytes(near, row, batch_size), _held_bytes(row, far, batch_size)
    return msgspec.structs.replace(
        row,
        step_ms_mean=step_ms,
        step_ms_p50=closer.step_ms_p50 * times,
        step_ms_p95=closer.step_ms_p95 * times,
        step_cpu_ms=closer.step_cpu_ms * times,
        n_steps=min(near.n_steps, far.n_steps),
        step_ms_at={n: fixed + a_sample * int(n) for n in near.step_ms_at.keys() & far.step_ms_at.keys()},
        hand_over_ms=_middle(near.hand_over_ms, far.hand_over_ms, size),
        at_work_ms={codec: step_ms + ms for codec, ms in over_the_step.items()},
        peak_memory_mb=_mean(_share(grown, 0, grown + to_grow), near.peak_memory_mb, far.peak_memory_mb),
    )


def _middle(of_near: dict[str, float], of_far: dict[str, float], size: float) -> dict[str, float]:
    """What both sides take beside the step, by codec: the mean, since one may have been disturbed, by bytes sent."""
    return {
        codec: _mean(1 / 2, of_near[codec], of_far[codec]) * size for codec in of_near.keys() & of_far.keys()
    }


def _over_the_step(row: CutRow) -> dict[str, float]:
    return {codec: max(ms - row.step_ms_mean, 0.0) for codec, ms in row.at_work_ms.items()}


def _held_bytes(row: CutRow, deeper: CutRow, batch_size: int) -> int:
    """About what training holds more at the deeper of two cuts: parameters and what belongs to them, outputs of layers."""
    outputs = max(deeper.n_layers - row.n_layers, 0) * batch_size * deeper.activation_bytes
    return max(deeper.n_parameters - row.n_parameters, 0) * BYTES_PER_PARAMETER + outputs


def _split(row: CutRow, batch_size: int) -> tuple[float, float]:
    """Split a step's ms into what it costs whatever the batch, and what each sample adds: by least squares."""
    line = _line(row, batch_size)
    mean_size = sum(size for size, _ in line) / len(line)
    mean_ms = sum(ms for _, ms in line) / len(line)
    spread = sum((size - mean_size) ** 2 for size, _ in line)
    if not spread:
        return 0.0, row.step_ms_mean / batch_size
    a_sample = max(sum((size - mean_size) * (ms - mean_ms) for size, ms in line) / spread, 0.0)
    a_sample = min(a_sample, row.step_ms_mean / batch_size)
    # Through the size that was measured longest.
    return row.step_ms_mean - a_sample * batch_size, a_sample


def _share(x: int, start: int, end: int) -> float:
    return min(max((x - start) / (end - start), 0.0), 1.0) if end > start else 1 / 2


def _mean(share: float, start: float, end: float) -> float:
    return start + share * (end - start)
