"""The activations of an open round, gathered until it is complete: in memory up to a cap, beyond it on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordinator.strategy.base import PooledBatch, SubBatch
from toolkit.errors import writing
from toolkit.wire.payloads import Batch


class ActivationPool:
    """Batches by (device, seq).

    Args:
        cap_bytes: of activations in memory; what comes after goes to disk.
        folder: where it goes; made when it is needed.
    """

    def __init__(self, *, cap_bytes: int, folder: Path) -> None:
        self._left_bytes = self._cap_bytes = cap_bytes
        self._folder = folder
        self._h: dict[tuple[str, int], NDArray[np.float32] | Path] = {}
        self._y: dict[tuple[str, int], NDArray[np.int64]] = {}
        self._batches: tuple[PooledBatch, ...] = ()

    def add(self, device: str, seq: int, batch: Batch) -> None:
        """Put one batch in."""
        self._y[device, seq] = batch.y
        if batch.h.nbytes <= self._left_bytes:
            self._left_bytes -= batch.h.nbytes
            self._h[device, seq] = batch.h
            return
        path = self._folder / f"pool-{device}-{seq}.npy"
        with writing(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            np.save(path, batch.h, allow_pickle=False)
        self._h[device, seq] = path

    def order(self, batches: tuple[PooledBatch, ...]) -> None:
        """Say how sub-batches count the batches."""
        self._batches = batches

    def gather(self, part: SubBatch) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Collect a sub-batch's samples, in its order.

        Returns: activations (B, ...) and labels (B,).
        """
        keys = [(batch.device, batch.seq) for batch in self._batches]
        y = np.array([self._y[keys[b]][r] for b, r in zip(part.batches, part.rows, strict=True)], np.int64)
        first = self._read(keys[part.batches[0]])
        h = np.empty((len(y), *first.shape[1:]), np.float32)
        for index in np.unique(part.batches):
            chosen = part.batches == index
            h[chosen] = self._read(keys[index])[part.rows[chosen]]
        return h, y

    def clear(self) -> None:
        """Empty the pool, on disk too."""
        for held in self._h.values():
            if isinstance(held, Path):
                held.unlink(missing_ok=True)
        self._h.clear()
        self._y.clear()
        self._batches = ()
        self._left_bytes = self._cap_bytes

    def _read(self, key: tuple[str, int]) -> NDArray[np.float32]:
        held = self._h[key]
        return np.load(held, mmap_mode="r", allow_pickle=False) if isinstance(held, Path) else held
