"""Consolidated: a complete round's activations, shuffled across devices, train one network in mixed steps.

Ours, after Ampere (arXiv 2507.07130) and CycleSL (arXiv 2511.18611).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coordinator.strategy.base import PoolView, Strategy, SubBatch
from toolkit.errors import StrategyError
from toolkit.nn.seeds import derive_seed

MIN_SUB_BATCH = 8
"""Batch norm sees each sub-batch by itself: a cut with few samples takes part in fewer steps, not in smaller parts."""


class Consolidated(Strategy):
    """Pool by cut, shuffle within each pool, and let every step take a share of each.

    Args:
        step_batches: a step takes as many samples as so many batches, all its sub-batches together. With 1 a round
            has as many steps as it has full batches.
    """

    name = "consolidated"
    mode = "pooled"

    def __init__(self, *, step_batches: float = 1.0) -> None:
        if not step_batches > 0:
            raise StrategyError(f"step_batches is above 0, not {step_batches}.")
        self._step_batches = step_batches

    def mixed_steps(self, pool: PoolView) -> Sequence[Sequence[SubBatch]]:
        """Spread each cut's shuffled samples evenly over the round's steps; cuts ascend by name within a step."""
        n_samples = sum(batch.n_samples for batch in pool.batches)
        n_steps = max(1, round(n_samples / (pool.batch_size * self._step_batches)))
        steps: list[list[SubBatch]] = [[] for _ in range(n_steps)]
        for cut in sorted({batch.cut for batch in pool.batches}):
            batches, rows = _shuffled(pool, cut)
            n_parts = max(1, min(n_steps, len(rows) // MIN_SUB_BATCH))
            parts = zip(np.array_split(batches, n_parts), np.array_split(rows, n_parts), strict=True)
            for part, (of_batches, of_rows) in enumerate(parts):
                steps[part * n_steps // n_parts].append(SubBatch(cut, of_batches, of_rows))
        return [step for step in steps if step]


def _shuffled(pool: PoolView, cut: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every sample of a cut as (index of its batch, row in it), in an order that the seed gives."""
    members = [(index, batch.n_samples) for index, batch in enumerate(pool.batches) if batch.cut == cut]
    batches = np.repeat([index for index, _ in members], [n for _, n in members])
    rows = np.concatenate([np.arange(n) for _, n in members])
    generator = np.random.default_rng(derive_seed(pool.seed, "pool", pool.round, cut))
    order = generator.permutation(len(rows))
    return batches[order].astype(np.int64), rows[order].astype(np.int64)
