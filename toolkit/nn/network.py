"""The network as the method sees it: named stages in a row, then a classifier."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import nn

from toolkit.errors import ModelError


class StagedNetwork(nn.Module):
    """Stages 1..L and a final classifier.

    Every stage boundary is a possible cut, because the only thing that passes it is one tensor.

    Args:
        stages: name to module, in order; each takes the output of the one before.
        classifier: takes the last stage's output, gives logits (B, K).
    """

    def __init__(self, stages: Mapping[str, nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        if not stages:
            raise ModelError("A network needs at least one stage before its classifier.")
        self.stages = nn.Sequential(OrderedDict(stages))
        self.classifier = classifier

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, input first."""
        return tuple(name for name, _ in self.stages.named_children())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits (B, K) of inputs (B, ...)."""
        logits: torch.Tensor = self.classifier(self.stages(x))
        return logits
