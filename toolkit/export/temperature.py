"""One temperature an exit, so that its softmax means what it says before a threshold is put on it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

COLDEST, HOTTEST = 0.05, 20.0
_GOLDEN = (math.sqrt(5) - 1) / 2
_TOLERANCE = 1e-4
"""Of the temperature's logarithm."""


def mean_nll(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> float:
    """Mean negative log-likelihood, nats.

    Args:
        logits: (N, K).
        labels: (N,).
        temperature: logits are divided by it.
    """
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(scaled).sum(axis=1))
    return float((log_sum - scaled[np.arange(len(labels)), labels]).mean())


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Find the temperature of least negative log-likelihood, by golden section over its logarithm.

    The likelihood is convex in 1 / T, so there is one minimum; where it lies beyond the range, the range's end is taken.

    Args:
        logits: (N, K) of held-out samples.
        labels: (N,).
    Returns: in [0.05, 20].
    Source: Guo et al., On Calibration of Modern Neural Networks, arXiv 1706.04599.
    """

    def nll(log_temperature: float) -> float:
        return mean_nll(logits, labels, math.exp(log_temperature))

    low, high = math.log(COLDEST), math.log(HOTTEST)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = nll(left), nll(right)
    while high - low > _TOLERANCE:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = nll(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = nll(right)
    return math.exp((low + high) / 2)
