"""How long something takes, where single times can't be trusted: blocks, a settled start, medians.

A process under a CPU quota runs at full speed until the quota of a period is used up, and then stands still: one step
of a few milliseconds takes its true time or much longer. So times are taken over blocks of many periods, and the
median of the blocks' means counts; it is unmoved by a block in which another program was at work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from toolkit.profile.schema import Limits


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to measure.

    Attributes:
        block_s: length of a block of steps; many scheduler periods long.
        settled_within: warming up ends when two blocks in a row differ by at most this share.
        warm_max_s: or after this long.
        n_min: steps to time at least.
        min_s: time to measure at least.
        max_s: and at most, whatever else is asked.
    """

    block_s: float
    settled_within: float
    warm_max_s: float
    n_min: int
    min_s: float
    max_s: float

    def at_most(self, max_s: float) -> Pace:
        """The same pace, bounded: warming up and measuring together take about ``max_s``."""
        return replace(self, warm_max_s=min(self.warm_max_s, max_s / 4), max_s=min(self.max_s, max_s * 3 / 4))


QUICK = Pace(block_s=0.1, settled_within=0.1, warm_max_s=0.4, n_min=5, min_s=0.8, max_s=2.0)
THOROUGH = Pace(block_s=0.5, settled_within=0.03, warm_max_s=5.0, n_min=20, min_s=4.0, max_s=20.0)


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one step, ms of wall time; ``cpu_ms`` is processor time of the whole process."""

    mean_ms: float
    p50_ms: float
    p95_ms: float
    cpu_ms: float
    n_steps: int

    def within(self, limits: Limits | None, *, threads: int, factor: float) -> Timing:
        """The same steps on the board that limits make of this machine.

        Where the limits give less than the threads could use, a step lasts its processor time over the share that is
        given: so it is the board's time, whatever else this machine is busy with.

        Args:
            limits: of the emulated board; None for this machine itself.
            threads: that compute.
            factor: what single times are multiplied by where nothing enforces the limits, else 1.
        """
        if limits is None:
            return self
        is_bound = limits.cpu_percent <= 100 * threads
        return replace(
            self,
            mean_ms=self.cpu_ms * 100 / limits.cpu_percent if is_bound else self.mean_ms * factor,
            p50_ms=self.p50_ms * factor,
            p95_ms=self.p95_ms * factor,
        )


def time_steps(step: Callable[[int], object], pace: Pace) -> Timing:
    """Time a step again and again, once its times have settled.

    Args:
        step: takes the number of the call.
        pace: how long; a step slower than ``max_s`` is timed once.
    """
    began = time.perf_counter()
    n_called = 0
    previous_ms = 0.0
    while time.perf_counter() - began < pace.warm_max_s:
        block = _block(step, n_called, pace, pace.warm_max_s)
        n_called += len(block.times_ms)
        if previous_ms and abs(block.mean_ms - previous_ms) <= pace.settled_within * previous_ms:
            break
        previous_ms = block.mean_ms
    blocks: list[_Block] = []
    began = time.perf_counter()
    while True:
        blocks.append(_block(step, n_called, pace, pace.max_s))
        n_called += len(blocks[-1].times_ms)
        elapsed_s = time.perf_counter() - began
        n_timed = sum(len(b.times_ms) for b in blocks)
        if elapsed_s >= pace.max_s or (n_timed >= pace.n_min and elapsed_s >= pace.min_s):
            break
    times = np.concatenate([b.times_ms for b in blocks])
    p50, p95 = np.percentile(times, [50, 95])
    return Timing(
        mean_ms=float(np.median([b.mean_ms for b in blocks])),
        p50_ms=float(p50),
        p95_ms=float(p95),
        cpu_ms=float(np.median([b.cpu_ms for b in blocks])),
        n_steps=len(times),
    )


@dataclass(frozen=True, slots=True)
class _Block:
    times_ms: list[float]
    mean_ms: float
    cpu_ms: float


def _block(step: Callable[[int], object], first: int, pace: Pace, max_s: float) -> _Block:
    times_ms: list[float] = []
    cpu = time.process_time()
    began = last = time.perf_counter()
    while not times_ms or last - began < min(pace.block_s, max_s):
        step(first + len(times_ms))
        now = time.perf_counter()
        times_ms.append((now - last) * 1e3)
        last = now
    n = len(times_ms)
    return _Block(times_ms, (last - began) * 1e3 / n, (time.process_time() - cpu) * 1e3 / n)
