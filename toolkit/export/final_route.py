"""What follows a device's cut, with the coordinator's weights: the reference of a calibration, and the end of a full bundle."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from toolkit.errors import CheckpointError
from toolkit.export.graph import Piece
from toolkit.nn.cut import take_suffix
from toolkit.nn.zoo import build_network
from toolkit.wire.job import Job

FINAL = "final"
"""The exit name of the network's own end."""


def build_final_route(job: Job, weights: Mapping[str, torch.Tensor], *, where: str) -> Piece:
    """Build the stages after a job's cut and the classifier.

    Args:
        job: of the device.
        weights: of the coordinator by name; more than needed where another device cuts earlier.
        where: these come from, for messages.
    Raises: CheckpointError: they are of another network.
    """
    suffix = take_suffix(build_network(job.model, seed=job.seed), job.cut)
    try:
        suffix.load_state_dict({name: weights[name] for name in suffix.state_dict()})
    except (KeyError, RuntimeError) as exc:
        raise CheckpointError(
            f"The weights in {where} are not those of {job.model.name} after {job.cut}: {exc}", path=where
        ) from exc
    *stages, (_, classifier) = suffix.named_children()
    return Piece(nn.Sequential(OrderedDict(stages)), classifier, exit_name=FINAL, ends=True)
