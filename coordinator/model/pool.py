"""The activations of an open round, gathered until it is complete, and made into mixed batches then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordinator.model.spill import Spill
from coordinator.strategy.base import PooledBatch, SubBatch
from toolkit.wire.payloads import Batch


class ActivationPool:
    """Batches by (device, seq).

    Args:
        cap_bytes: of activations in memory; what comes after goes to disk.
        folder: where it goes; made when it is needed.
    """

    def __init__(self, *, cap_bytes: int, folder: Path) -> None:
        self._h = Spill(cap_bytes=cap_bytes, folder=folder, name="pool")
        self._y: dict[tuple[str, int], NDArray[np.int64]] = {}
        self._batches: tuple[PooledBatch, ...] = ()

    def add(self, device: str, seq: int, batch: Batch) -> None:
        """Put one batch in."""
        self._y[device, seq] = batch.y
        self._h.put(device, seq, batch.h)

    def order(self, batches: tuple[PooledBatch, ...]) -> None:
        """Say how sub-batches count the batches."""
        self._batches = batches

    def gather(self, part: SubBatch) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Collect a sub-batch's samples, in its order.

        Returns: activations (B, ...) and labels (B,).
        """
        keys = [(batch.device, batch.seq) for batch in self._batches]
        y = np.array([self._y[keys[b]][r] for b, r in zip(part.batches, part.rows, strict=True)], np.int64)
        first = self._h[keys[part.batches[0]]]
        h = np.empty((len(y), *first.shape[1:]), np.float32)
        for index in np.unique(part.batches):
            chosen = part.batches == index
            h[chosen] = self._h[keys[index]][part.rows[chosen]]
        return h, y

    def clear(self) -> None:
        """Empty the pool, on disk too."""
        self._h.clear()
        self._y.clear()
        self._batches = ()
