"""Activations that wait for the end of a round: in memory up to a cap, beyond it on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import writing


class Spill:
    """Activations by (device, seq). What is on disk is not synced: it is sent again after a restart.

    Args:
        cap_bytes: in memory; what comes after goes to disk.
        folder: where it goes; made when it is needed.
        name: begins the names of its files.

    Raises: MachineError: of ``put``, where the disk refuses it.
    """

    def __init__(self, *, cap_bytes: int, folder: Path, name: str) -> None:
        self._left_bytes = self._cap_bytes = cap_bytes
        self._folder = folder
        self._name = name
        self._held: dict[tuple[str, int], NDArray[np.float32] | Path] = {}

    def put(self, device: str, seq: int, h: NDArray[np.float32]) -> None:
        """Put the activations of one batch in."""
        if h.nbytes <= self._left_bytes:
            self._left_bytes -= h.nbytes
            self._held[device, seq] = h
            return
        path = self._folder / f"{self._name}-{device}-{seq}.npy"
        with writing(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            np.save(path, h, allow_pickle=False)
        self._held[device, seq] = path

    def __getitem__(self, key: tuple[str, int]) -> NDArray[np.float32]:
        """The activations of one batch; from the disk where they are read, and not to be written into."""
        held = self._held[key]
        return np.load(held, mmap_mode="r", allow_pickle=False) if isinstance(held, Path) else held

    def clear(self) -> None:
        """Drop all of it, on disk too."""
        for held in self._held.values():
            if isinstance(held, Path):
                held.unlink(missing_ok=True)
        self._held.clear()
        self._left_bytes = self._cap_bytes
