"""Presets: recipes of settings by one name. What is set by hand anywhere wins over them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OFF: Mapping[str, Any] = {
    "client_sync": "none",
    "all_exits": False,
    "self_distillation": 0.0,
    "server_logits": 0.0,
    "server_exits": [],
    "server_lr_factor": 1.0,
}
"""Everything that goes beyond the paper, off."""
PRESETS: dict[str, Mapping[str, Any]] = {
    "default": {},
    "paper": {**OFF, "exit_head": "pooled"},
    "best": {
        "client_sync": "prefix",
        "sync_every": 1,
        "sync_momentum": "average",
        "server_logits": 1.0,
        "lr": 0.2,
        "server_lr_factor": 0.25,
        "round_steps": 5,
        "eval_every": 5,
        "exit_head": "auto",
    },
}
"""By ``run.preset``, values of ``run``. docs/results/extensions.md says what was measured."""
OF_STRATEGY: dict[str, dict[str, Mapping[str, Any]]] = {
    "paper": {
        "sequential": {},
        "averaging": {"momentum": "keep", "bn": "mean", "weights": "equal"},
        "consolidated": {},
    }
}
"""Likewise options of a strategy that is named."""


def preset_values(preset: str, strategy: str) -> dict[str, Any]:
    """What a preset says of ``run``; empty for a name that there is not, which is refused elsewhere."""
    values = dict(PRESETS.get(preset, {}))
    options = OF_STRATEGY.get(preset, {}).get(strategy, {})
    return values | ({"strategy_options": dict(options)} if options else {})
