"""Timing what will be compared: in turns, so that a busy moment of the machine hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def interleaved_ms(runs: Sequence[Callable[[], object]], *, n_times: int = 50) -> list[float]:
    """Time several things in turns: the median of each, milliseconds; arguments as of :func:`in_turns`."""
    return [statistics.median(taken) * 1000 for taken in in_turns(runs, n_times=n_times)]


def in_turns(runs: Sequence[Callable[[], object]], *, n_times: int) -> list[list[float]]:
    """Time several things in turns.

    Args:
        runs: each is called once to warm up, which is not counted, and then ``n_times``.
        n_times: rounds of turns.
    Returns: the seconds of each round, for each.
    """
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(n_times):
        for run, taken in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            taken.append(time.perf_counter() - started)
    return times
