"""What follows a device's cut, with the coordinator's weights: the reference of a calibration, and the end of a full bundle."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from toolkit.export.graph import Piece
from toolkit.nn.suffix_weights import build_suffix
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
    suffix = build_suffix(job.model, job.cut, weights, seed=job.seed, where=where)
    *stages, (_, classifier) = suffix.named_children()
    return Piece(nn.Sequential(OrderedDict(stages)), classifier, exit_name=FINAL, ends=True)
