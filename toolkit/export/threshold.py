"""A first entropy threshold from held-out samples; calibration replaces it where there is a route to compare with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DEFAULT_THRESHOLD = 0.5
MIN_SAMPLES = 100
MIN_SURE = 30
ERROR_SHARE = 0.5


def choose_threshold(entropy: NDArray[np.float32], right: NDArray[np.bool_]) -> tuple[float, str]:
    """Choose the largest threshold below which answers err at most half as often as all answers do.

    The rule is ours. It looks at the same samples that accuracy is then reported on, so it flatters a little.

    Args:
        entropy: (N,), normalised, of held-out samples at the exit.
        right: (N,), true where the exit's answer is the label.
    Returns: the threshold in (0, 1], and in words where it comes from.
    """
    n = len(entropy)
    if n < MIN_SAMPLES:
        return DEFAULT_THRESHOLD, f"default: {n} labelled samples are too few to choose from ({MIN_SAMPLES})"
    order = np.argsort(entropy, kind="stable")
    ascending = entropy[order].astype(np.float64)
    error_of_first = np.cumsum(~right[order]) / np.arange(1, n + 1)
    target = ERROR_SHARE * error_of_first[-1]
    # A cut lies between two different entropies: equal ones leave or stay together.
    separable = np.append(ascending[1:] > ascending[:-1], True)
    fits = np.flatnonzero(separable & (error_of_first <= target) & (np.arange(1, n + 1) >= MIN_SURE))
    if not fits.size:
        return (
            DEFAULT_THRESHOLD,
            f"default: no {MIN_SURE} of the {n} held-out samples are answered with half the errors of all",
        )
    last = int(fits[-1])
    threshold = 1.0 if last == n - 1 else float(ascending[last] + ascending[last + 1]) / 2
    return threshold, (
        f"largest on {n} held-out samples whose sure answers err at most half as often as all: "
        f"{error_of_first[last]:.1%} of {last + 1} against {error_of_first[-1]:.1%}"
    )
