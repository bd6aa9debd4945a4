"""How much worse may it really be? The upper 95 % bound of an accuracy drop counted on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

CONFIDENCE = 0.95
_Z = 1.6448536269514722
"""The normal quantile of 0.95, one-sided."""
_HALVINGS = 60
BOUND = (
    "one-sided 95 %: Tango's score bound for paired proportions, and never less than the exact binomial bound "
    "where no answer got better"
)


def drop_upper_bound(n_lost: int, n_won: int, n: int) -> float:
    """Bound a drop from above, one-sided at 95 %.

    Args:
        n_lost: samples that only the reference answers right.
        n_won: samples that only what is judged answers right.
        n: all samples, at least 1.
    Returns: the largest share of all samples, net, that may be lost; in [0, 1].
    Source: score bound of T. Tango, Statistics in Medicine 17:891-908 (1998); exact bound of C. Clopper and
        E. Pearson, Biometrika 26:404-413 (1934). The score bound alone is a little too low where ``n_won`` is 0.
    """

    def too_low(drop: float) -> bool:
        return _score(drop, n_lost, n_won, n) > -_Z

    bound = _bisect(too_low, max(0.0, (n_lost - n_won) / n))
    return bound if n_won else max(bound, binomial_upper_bound(n_lost, n))


def binomial_upper_bound(n_events: int, n: int) -> float:
    """Bound a probability from above, one-sided at 95 %, exactly.

    Args:
        n_events: how often it happened.
        n: trials, at least 1.
    """
    if n_events >= n:
        return 1.0
    k = np.arange(n_events + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_ways = log_factorial[n] - log_factorial[k] - log_factorial[n - k]

    def too_low(p: float) -> bool:
        log_terms = log_ways + k * math.log(p) + (n - k) * math.log1p(-p)
        return float(np.exp(log_terms).sum()) > 1 - CONFIDENCE

    return _bisect(too_low, n_events / n)


def samples_needed(drop: float) -> int:
    """Smallest number of samples on which a drop can be accepted at all, were none lost.

    Args:
        drop: allowed share, in (0, 1].
    """
    return 1 if drop >= 1 else math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-drop))


def _score(drop: float, n_lost: int, n_won: int, n: int) -> float:
    """Tango's statistic for a true difference of ``drop``: standard normal under it, falling in ``drop``."""
    a = 2 * n
    b = (2 * n - n_lost + n_won) * drop - n_lost - n_won
    c = -n_won * drop * (1 - drop)
    p_won = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * p_won + drop * (1 - drop))
    distance = n_lost - n_won - n * drop
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _bisect(too_low: Callable[[float], bool], low: float) -> float:
    high = 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if too_low(middle):
            low = middle
        else:
            high = middle
    return high
