"""The layers behind a cut with the coordinator's weights: what answers offloaded samples, and ends a full bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from toolkit.errors import CheckpointError
from toolkit.nn.cut import depth_of
from toolkit.nn.server_exits import build_server_exits, take_suffix_with
from toolkit.nn.zoo import build_network
from toolkit.wire.job import ModelSpec


def build_suffix(
    model: ModelSpec,
    cut: str,
    weights: Mapping[str, torch.Tensor],
    *,
    seed: int,
    where: str,
    exits: Sequence[str] = (),
    exit_head: str = "pooled",
) -> nn.Sequential:
    """Build the stages after a cut and the classifier.

    Args:
        model: the whole network.
        cut: the cut layer.
        weights: of the coordinator by name; more than needed where another device cuts earlier.
        seed: of the run.
        where: these come from, for messages.
        exits: stages at whose ends the server trained exits; those behind the cut come along.
        exit_head: kind of their heads.
    Raises: CheckpointError: they are of another network.
    """
    network = build_network(model, seed=seed)
    behind = network.stage_names[depth_of(network, cut) :]
    heads = build_server_exits(
        network,
        model,
        [stage for stage in exits if stage in behind],
        exit_head=exit_head,
        seed=seed,
        behind=cut,
    )
    suffix = take_suffix_with(network, cut, heads)
    try:
        suffix.load_state_dict({name: weights[name] for name in suffix.state_dict()})
    except (KeyError, RuntimeError) as exc:
        raise CheckpointError(
            f"The weights in {where} are not those of {model.name} after {cut}: {exc}", path=where
        ) from exc
    return suffix
