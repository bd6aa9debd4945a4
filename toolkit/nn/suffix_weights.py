"""The layers behind a cut with the coordinator's weights: what answers offloaded samples, and ends a full bundle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from toolkit.errors import CheckpointError
from toolkit.nn.cut import take_suffix
from toolkit.nn.zoo import build_network
from toolkit.wire.job import ModelSpec


def build_suffix(
    model: ModelSpec, cut: str, weights: Mapping[str, torch.Tensor], *, seed: int, where: str
) -> nn.Sequential:
    """Build the stages after a cut and the classifier.

    Args:
        model: the whole network.
        cut: the cut layer.
        weights: of the coordinator by name; more than needed where another device cuts earlier.
        seed: of the run.
        where: these come from, for messages.
    Raises: CheckpointError: they are of another network.
    """
    suffix = take_suffix(build_network(model, seed=seed), cut)
    try:
        suffix.load_state_dict({name: weights[name] for name in suffix.state_dict()})
    except (KeyError, RuntimeError) as exc:
        raise CheckpointError(
            f"The weights in {where} are not those of {model.name} after {cut}: {exc}", path=where
        ) from exc
    return suffix
