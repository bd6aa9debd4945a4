"""Held-out batches of an open round: the server's layers answer them when it closes, and they wait for that on disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from coordinator.model.spill import Spill
from toolkit.wire.payloads import Batch

_NO_ACTIVATIONS = np.empty((0,), np.float32)


class HeldOut:
    """Batches by device, in the order of their lists.

    Args:
        folder: where their activations wait.
    """

    def __init__(self, folder: Path) -> None:
        self._h = Spill(cap_bytes=0, folder=folder, name="held-out")
        self._rest: dict[str, list[tuple[int, Batch]]] = defaultdict(list)

    def add(self, device: str, seq: int, batch: Batch) -> None:
        """Put one batch in.

        Raises: MachineError: the disk refuses it.
        """
        self._h.put(device, seq, batch.h)
        self._rest[device].append((seq, replace(batch, h=_NO_ACTIVATIONS)))

    def of(self, device: str) -> Iterator[Batch]:
        """Read a device's batches, one at a time."""
        for seq, rest in self._rest.get(device, []):
            yield replace(rest, h=np.array(self._h[device, seq]))

    def clear(self) -> None:
        """Drop all of them, on disk too."""
        self._h.clear()
        self._rest.clear()
