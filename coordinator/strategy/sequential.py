"""Sequential: one network, device after device. Source: Hetero-SplitEE, arXiv 2512.09313."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Literal

from coordinator.strategy.base import RoundView, Strategy


class Sequential(Strategy):
    """Consume the devices one after the other; devices themselves may compute at the same time.

    Args:
        order: "shuffled" from the seed each round (ours), or "fixed", ascending by device id.
    """

    name = "sequential"

    def __init__(self, *, order: Literal["shuffled", "fixed"] = "shuffled") -> None:
        self._is_shuffled = order == "shuffled"

    def next_device(self, view: RoundView) -> str | None:
        """The first device of the order that still owes batches, if its next one is here."""
        device = self.turn(view)
        ready = {d.device for d in view.devices if d.n_ready}
        return device if device in ready else None

    def turn(self, view: RoundView) -> str | None:
        """The first device of the order that still owes batches; those postponed come last."""
        owing = [d for d in view.devices if d.n_applied < d.n_owed]
        if not owing:
            return None
        return min(owing, key=lambda d: (d.postponed, self._place(view, d.device))).device

    def _place(self, view: RoundView, device: str) -> tuple[bytes, str]:
        return _lot(view.seed, view.round, device) if self._is_shuffled else b"", device


@lru_cache(maxsize=4096)
def _lot(seed: int, round_: int, device: str) -> bytes:
    return hashlib.sha256(f"{seed}/{round_}/{device}".encode()).digest()
