"""What answers offloaded samples: committed layers behind a cut, kept apart from those that are being trained."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coordinator.checkpoints import Generation, committed_generations
from toolkit.errors import CheckpointError
from toolkit.nn.suffix_weights import build_suffix
from toolkit.wire.messages import Ask

KEPT_ROUTES = 8
"""Routes in memory; the one used longest ago leaves first."""


@dataclass(frozen=True, slots=True)
class Route:
    """The layers behind a cut as they stood after a round."""

    round: int
    layers: nn.Sequential
    device: torch.device | str

    @torch.inference_mode()
    def logits(self, h: NDArray[np.float32]) -> NDArray[np.float32]:
        """Activations (M, ...) to logits (M, K), in evaluation mode."""
        logits: NDArray[np.float32] = self.layers(torch.from_numpy(h).to(self.device)).cpu().numpy()
        return logits


@dataclass(frozen=True, slots=True)
class Served:
    """What can be answered: rounds whose layers are kept, oldest first, and the activation shape at every cut."""

    rounds: tuple[int, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def route_for(self, ask: Ask) -> tuple[int, str] | None:
        """Round and cut of the layers that answer: of the question's own round, else of the newest; None: nobody."""
        if ask.cut not in self.shapes:
            return None
        return (ask.round if ask.round in self.rounds else self.rounds[-1]), ask.cut


class Routes:
    """The routes of a run, read from its checkpoints; nothing is written.

    Args:
        folder: of the checkpoints.
        device: where to compute.
    """

    def __init__(self, folder: Path, *, device: torch.device | str = "cpu") -> None:
        self._folder = folder
        self._device = device
        self._made: OrderedDict[tuple[int, str], Route] = OrderedDict()

    def served(self) -> Served:
        """What can be answered now.

        Raises: CheckpointError: the newest checkpoint is damaged.
        """
        kept = [generation for generation in committed_generations(self._folder) if generation.round > 0]
        if not kept:
            return Served((), {})
        state = kept[-1].state()
        shapes = {state.cuts[device]: tuple(shape) for device, shape in state.activation_shapes.items()}
        return Served(tuple(generation.round for generation in kept), shapes)

    def get(self, round_: int, cut: str) -> Route:
        """The route behind a cut after a round that is kept.

        Raises: CheckpointError: its checkpoint is gone or damaged.
        """
        route = self._made.pop((round_, cut), None) or self._make(round_, cut)
        self._made[round_, cut] = route
        if len(self._made) > KEPT_ROUTES:
            self._made.popitem(last=False)
        return route

    def _make(self, round_: int, cut: str) -> Route:
        generation = next((g for g in committed_generations(self._folder) if g.round == round_), None)
        if generation is None:
            raise CheckpointError(f"The layers of round {round_} are not kept any more.", round=round_)
        return self._load(generation, cut)

    def _load(self, generation: Generation, cut: str) -> Route:
        job = generation.state().common
        layers = build_suffix(job.model, cut, generation.tensors(), seed=job.seed, where=str(generation.path))
        layers.eval().requires_grad_(requires_grad=False).to(self._device)
        return Route(generation.round, layers, self._device)
