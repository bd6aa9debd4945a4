"""What a batch is made of: a pure function of (run seed, device, data fingerprint, round, seq).

Nothing of it is stored; any process of the device makes the same batch again (PROTOCOL.md, "Work").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from toolkit.nn.seeds import derive_seed

MIN_BATCH = 2
"""Batch norm has no statistics over one sample: a last partial batch counts from two."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sample indices (B,) of the batch, and the seed that its random layers draw from."""

    indices: NDArray[np.int64]
    seed: int


def n_batches_of(n_samples: int, batch_size: int) -> int:
    """Batches in one pass over the data: the full ones, and a last partial one of at least two samples."""
    full, rest = divmod(n_samples, batch_size)
    return full + (rest >= MIN_BATCH)


def steps_in_round(n_train: int, batch_size: int, round_steps: int) -> int:
    """Training batches a device owes in a round; ``round_steps`` 0 means one local epoch."""
    return round_steps or n_batches_of(n_train, batch_size)


def eval_batches_in_round(n_eval: int, batch_size: int, eval_samples: int) -> int:
    """Held-out batches a device sends at a round's end; here a batch of one counts too."""
    return -(-min(n_eval, eval_samples) // batch_size)


def train_recipe(
    *,
    seed: int,
    device: str,
    fingerprint: str,
    n_train: int,
    batch_size: int,
    round_steps: int,
    round_: int,
    seq: int,
) -> Recipe:
    """Recipe of a training batch.

    Args:
        seed: the run's.
        device: its id.
        fingerprint: of its data.
        n_train: training samples it holds.
        batch_size: of the job.
        round_steps: of the job.
        round_: from 1.
        seq: from 1 within the round.
    """
    per_epoch = n_batches_of(n_train, batch_size)
    batch = (round_ - 1) * steps_in_round(n_train, batch_size, round_steps) + seq - 1
    epoch, position = divmod(batch, per_epoch)
    order = _epoch_order(derive_seed(seed, "order", device, fingerprint, epoch), n_train)
    return Recipe(
        order[position * batch_size : (position + 1) * batch_size],
        derive_seed(seed, "batch", device, fingerprint, round_, seq),
    )


@lru_cache(maxsize=32)
def _epoch_order(seed: int, n_train: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(n_train)
