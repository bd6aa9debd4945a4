"""What follows a device's cut, with the coordinator's weights: the reference of a calibration, and the end of a full bundle."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from toolkit.export.graph import Piece
from toolkit.nn.network import CLASSIFIER
from toolkit.nn.server_exits import SERVER_EXITS, SuffixWithExits
from toolkit.nn.suffix_weights import build_suffix
from toolkit.wire.job import Job

FINAL = "final"
"""The exit name of the network's own end."""


@dataclass(frozen=True, slots=True)
class ServerWeights:
    """The coordinator's layers by name.

    Attributes:
        tensors: of all that it trained.
        origin: where they come from, in words.
        exits: stages at whose ends it trained exits, and ``exit_head``, the kind of their heads.
    """

    tensors: Mapping[str, torch.Tensor]
    origin: str
    exits: Sequence[str] = ()
    exit_head: str = "pooled"


def build_final_route(job: Job, server: ServerWeights) -> Piece:
    """Build the stages after a job's cut and the classifier, as one piece.

    Raises: CheckpointError: the weights are of another network.
    """
    suffix = build_suffix(job.model, job.cut, server.tensors, seed=job.seed, where=server.origin)
    *stages, (_, classifier) = suffix.named_children()
    return Piece(nn.Sequential(OrderedDict(stages)), classifier, exit_name=FINAL, ends=True)


def build_server_pieces(job: Job, server: ServerWeights) -> list[Piece]:
    """Build the same as a cascade: a piece for each exit that the server trained behind the job's cut, then the end.

    Raises: CheckpointError: the weights are of another network.
    """
    suffix = build_suffix(
        job.model,
        job.cut,
        server.tensors,
        seed=job.seed,
        where=server.origin,
        exits=server.exits,
        exit_head=server.exit_head,
    )
    heads = dict(suffix.server_exits.named_children()) if isinstance(suffix, SuffixWithExits) else {}
    stages = [
        (name, module) for name, module in suffix.named_children() if name not in (SERVER_EXITS, CLASSIFIER)
    ]
    classifier = dict(suffix.named_children())[CLASSIFIER]
    return [
        *split_at_exits(stages, heads),
        Piece(_after(stages, heads), classifier, exit_name=FINAL, ends=True),
    ]


def split_at_exits(stages: Sequence[tuple[str, nn.Module]], heads: Mapping[str, nn.Module]) -> list[Piece]:
    """Cut stages in a row behind each that has an exit; what follows the last exit is left out."""
    pieces, row = [], []
    for name, module in stages:
        row.append((name, module))
        if name in heads:
            pieces.append(Piece(nn.Sequential(OrderedDict(row)), heads[name], exit_name=name))
            row = []
    return pieces


def _after(stages: Sequence[tuple[str, nn.Module]], heads: Mapping[str, nn.Module]) -> nn.Sequential:
    """The stages that follow the last exit."""
    last = max((i for i, (name, _) in enumerate(stages) if name in heads), default=-1)
    return nn.Sequential(OrderedDict(stages[last + 1 :]))
