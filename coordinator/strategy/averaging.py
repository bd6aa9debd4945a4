"""Averaging: a copy a device, cross-layer mean at the round's end. Source: Hetero-SplitEE, arXiv 2512.09313."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.strategy.base import RoundView


class Averaging:
    """Train each device's copy as its batches arrive; every copy that was trained weighs the same (ours)."""

    name = "averaging"
    per_device_copies = True

    def next_device(self, view: RoundView) -> str | None:
        """Of the devices with a batch here, the one that is furthest behind; ties to the lower id."""
        ready = [d for d in view.devices if d.n_ready and d.n_applied < d.n_owed]
        if not ready:
            return None
        return min(ready, key=lambda d: (d.n_applied / d.n_owed, d.device)).device

    def weights(self, view: RoundView) -> Mapping[str, int]:
        """One for each device that had at least one batch applied."""
        return {d.device: 1 for d in view.devices if d.n_applied}
