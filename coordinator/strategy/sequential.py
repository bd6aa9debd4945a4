"""Sequential: one network, device after device. Source: Hetero-SplitEE, arXiv 2512.09313."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from coordinator.strategy.base import RoundView


class Sequential:
    """Consume the devices one after the other in an order shuffled from the seed each round (the shuffle is ours)."""

    name = "sequential"
    per_device_copies = False

    def next_device(self, view: RoundView) -> str | None:
        """The first device of the order that still owes batches, if its next one is here."""
        order = sorted(
            view.devices,
            key=lambda d: hashlib.sha256(f"{view.seed}/{view.round}/{d.device}".encode()).digest(),
        )
        for progress in order:
            if progress.n_applied < progress.n_owed:
                return progress.device if progress.n_ready else None
        return None

    def weights(self, view: RoundView) -> Mapping[str, int]:  # noqa: ARG002 - the interface's
        """No copies, no mean."""
        return {}
