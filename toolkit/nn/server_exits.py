"""Exits at the server's stages: heads behind stages that no device may hold, trained in the server's steps.

Only these make a cascade beyond the cut: another device's exit is not valid behind this device's segment.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from toolkit.errors import CutError, did_you_mean
from toolkit.nn.cut import activation_shapes, depth_of, take_suffix
from toolkit.nn.exit_head import build_exit_head
from toolkit.nn.network import StagedNetwork
from toolkit.wire.job import ModelSpec

SERVER_EXITS = "server_exits"
"""What the heads are called among the modules of a suffix: ``server_exits.<stage>.<name>``."""


class SuffixWithExits(nn.Sequential):
    """Stages behind a cut and the classifier, in a row, and heads beside some of them; gives the classifier's logits.

    Args:
        suffix: stages and classifier by name, in order.
        heads: by the stage at whose end they stand.
    """

    def __init__(self, suffix: nn.Sequential, heads: Mapping[str, nn.Module]) -> None:
        super().__init__(OrderedDict(suffix.named_children()))
        self.server_exits = nn.ModuleDict(heads)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Compute logits (B, K) of activations (B, ...)."""
        return self.with_exits(h)[0]

    def with_exits(self, h: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the classifier's logits (B, K), and each exit's by its stage."""
        exits = {}
        for name, module in self.named_children():
            if name == SERVER_EXITS:
                continue
            h = module(h)
            if name in self.server_exits:
                exits[name] = self.server_exits[name](h)
                h = h.clone()  # the next stage may work in place, and the head needs what it saw
        return h, exits


def check_server_exits(stages: Sequence[str], names: Sequence[str], *, depth: int = 1) -> None:
    """Check that every exit stands behind the shallowest cut.

    Args:
        stages: at whose ends exits are wanted.
        names: of the network's stages, input first.
        depth: stages before the shallowest cut; while no cut is chosen yet, that of the shallowest there can be.
    Raises: CutError: a stage that there is not behind that cut.
    """
    behind = names[depth:]
    for stage in stages:
        if stage not in behind:
            raise CutError(
                f"The server has no stage {stage!r} to put an exit at; behind {names[depth - 1]!r} "
                f"{'stands' if len(behind) == 1 else 'stand'} {', '.join(behind) or 'none'}.",
                hint=did_you_mean(stage, behind) or "Leave it out of run.server_exits.",
                cut=stage,
            )


def build_server_exits(
    network: StagedNetwork, model: ModelSpec, stages: Sequence[str], *, exit_head: str, seed: int, behind: str
) -> dict[str, nn.Module]:
    """Build heads at the ends of stages behind a cut, with the weights that (seed, stage) give them.

    Args:
        network: whose stages they are.
        model: its spec.
        stages: at whose ends they stand.
        exit_head: kind of head.
        seed: of the run.
        behind: the shallowest cut.
    Raises: CutError: a stage that there is not behind that cut. ModelError: a head that does not fit.
    """
    check_server_exits(stages, network.stage_names, depth=depth_of(network, behind))
    shapes = activation_shapes(network.stages, model.input_shape) if stages else {}
    return {
        stage: build_exit_head(
            exit_head, activation_shape=shapes[stage], n_classes=model.n_classes, cut=stage, seed=seed
        )
        for stage in stages
    }


def take_suffix_with(network: StagedNetwork, cut: str, heads: Mapping[str, nn.Module]) -> nn.Sequential:
    """Stages behind a cut and the classifier with those of ``heads`` that stand among them; sharing their modules."""
    suffix = take_suffix(network, cut)
    own = {stage: head for stage, head in heads.items() if stage in dict(suffix.named_children())}
    return SuffixWithExits(suffix, own) if own else suffix
