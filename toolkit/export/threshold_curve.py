"""What every threshold comes to: accuracy, how many leave early, what they cost; and which one keeps a promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.manifest import CurvePoint
from toolkit.export.drop_bound import drop_upper_bound
from toolkit.runtime.exit_policy import passes

N_THRESHOLDS = 100
_STRICTEST = 1e-4


@dataclass(frozen=True, slots=True)
class Leg:
    """A piece of the way: what it costs a sample, and whether an exit behind it may answer early."""

    n_macs: int
    ms: float
    gated: bool


@dataclass(frozen=True, slots=True)
class Reference:
    """What the cascade is held against.

    Attributes:
        right: (N,), where the reference answers right; all true where nothing better is known.
        truth: (N,), what a right answer is.
        answers: (N,), the reference's; None where they are not known, and taken for right.
        origin: in words.
        accuracy: of the reference; None where it is not known.
    """

    right: NDArray[np.bool_]
    truth: NDArray[np.int64]
    answers: NDArray[np.int64] | None
    origin: str
    accuracy: float | None


def thresholds(kind: str) -> NDArray[np.float64]:
    """The grid, strictest first: fixed before any sample is seen."""
    doubt = np.geomspace(_STRICTEST, 1.0, N_THRESHOLDS)
    return doubt if kind == "entropy" else np.append(1 - doubt[:-1], _STRICTEST)


def trace_curve(
    kind: str,
    gauged: Sequence[NDArray[np.float32]],
    answers: Sequence[NDArray[np.int64]],
    reference: Reference,
    *,
    legs: Sequence[Leg],
    macs_beyond: int,
) -> list[CurvePoint]:
    """What every threshold of the grid comes to.

    Args:
        kind: of the policy.
        gauged: (N,) an exit, what the policy compares with the threshold.
        answers: (N,) an exit, class indices.
        reference: what they are held against.
        legs: in order; an exit stands behind each that is gated.
        macs_beyond: multiply-accumulates of a sample that no exit answered, after the last leg.
    """
    n = len(reference.right)
    points = []
    for threshold in thresholds(kind).tolist():
        going = np.ones(n, np.bool_)
        right = reference.right.copy()
        macs = ms = 0.0
        exit_ = 0
        for leg in legs:
            macs += leg.n_macs * float(going.mean())
            ms += leg.ms * float(going.mean())
            if not leg.gated:
                continue
            leaving = going & passes(kind, gauged[exit_], threshold)
            right[leaving] = answers[exit_][leaving] == reference.truth[leaving]
            going &= ~leaving
            exit_ += 1
        n_lost = int(np.count_nonzero(reference.right & ~right))
        n_won = int(np.count_nonzero(~reference.right & right))
        points.append(
            CurvePoint(
                threshold=threshold,
                exit_rate=1 - float(going.mean()),
                accuracy=None if reference.accuracy is None else float(right.mean()),
                drop=100 * (n_lost - n_won) / n,
                drop_upper=100 * drop_upper_bound(n_lost, n_won, n),
                mean_macs=macs + macs_beyond * float(going.mean()),
                mean_ms=ms,
            )
        )
    return points


def choose_point(curve: Sequence[CurvePoint], target_drop: float) -> int | None:
    """Walk the grid up to the first bound above the target.

    Returns: the last point before it, or None if nothing leaves early there.
    """
    accepted = None
    for index, point in enumerate(curve):
        if point.drop_upper > target_drop:
            break
        accepted = index
    return None if accepted is None or curve[accepted].exit_rate == 0 else accepted
