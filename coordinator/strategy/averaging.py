"""Averaging: a copy a device, cross-layer mean at the round's end. Source: Hetero-SplitEE, arXiv 2512.09313."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from coordinator.strategy.base import (
    BnRule,
    CopyRules,
    DeviceProgress,
    MomentumRule,
    RoundView,
    Strategy,
    furthest_behind,
)


class Averaging(Strategy):
    """Train each device's copy on its own batches; a period is a round (ours).

    Copies do not meet within a period, so which are in memory is only a question of time: a copy that waits for its
    device leaves the memory once another device can't go on without the place.

    Args:
        resident_copies: in memory at a time; 0 means what a byte budget holds.
        weights: in the mean: every copy "equal" (ours), or by "samples".
        momentum: at an aggregation: "average", "reset" or "keep".
        bn: running statistics: "mean" or "pooled".
    """

    name = "averaging"
    mode = "copies"

    def __init__(
        self,
        *,
        resident_copies: int = 0,
        weights: Literal["equal", "samples"] = "equal",
        momentum: MomentumRule = "average",
        bn: BnRule = "mean",
    ) -> None:
        self.copy_rules = CopyRules(momentum, bn, resident_copies)
        self._by_samples = weights == "samples"

    def next_device(self, view: RoundView) -> str | None:
        """A device whose copy is here; else one that can have a free place; else one that is stuck without one."""
        ready = [d for d in view.devices if d.n_ready]
        here = [d for d in ready if d.has_copy]
        n_done = sum(d.has_copy and d.n_applied >= d.n_owed for d in view.devices)
        if here or view.n_free_copies or n_done:
            return furthest_behind(here or ready)
        return furthest_behind([d for d in ready if _is_held_back(d)])

    def weights(self, view: RoundView) -> Mapping[str, int]:
        """Weigh each copy that had at least one batch applied."""
        return {d.device: d.n_samples if self._by_samples else 1 for d in view.devices if d.n_applied}


def _is_held_back(device: DeviceProgress) -> bool:
    """Whether a device sends nothing more before the server goes on with it: waiting longer can't help it."""
    return device.n_ready >= min(device.window, device.n_owed - device.n_applied)
