"""What answers offloaded samples: committed layers behind a cut, kept apart from those that are being trained."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coordinator.store.checkpoints import Generation, committed_generations
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
        self._names: tuple[str, ...] = ()
        self._generations: dict[int, Generation] = {}
        self._served = Served((), {})
        self._made: OrderedDict[tuple[str, str], Route] = OrderedDict()

    def served(self) -> Served:
        """What can be answered now; a damaged checkpoint counts as none."""
        kept = committed_generations(self._folder) if self._folder.is_dir() else []
        names = tuple(generation.path.name for generation in kept)
        if names != self._names:
            self._names = names
            self._generations, self._served = self._look(kept)
        return self._served

    def _look(self, kept: Sequence[Generation]) -> tuple[dict[int, Generation], Served]:
        chosen: dict[int, Generation] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for generation in kept:
            if generation.round == 0:
                continue
            try:
                state = generation.state()
            except CheckpointError:
                continue
            # A commit within a round holds layers on the way to the next one: only where there is no other.
            if state.open is None or state.round not in chosen:
                chosen[state.round] = generation
            shapes = {state.cuts[device]: tuple(shape) for device, shape in state.activation_shapes.items()}
        return chosen, Served(tuple(sorted(chosen)), shapes)

    def get(self, round_: int, cut: str) -> Route:
        """The route behind a cut after a round that is served.

        Raises: CheckpointError: its checkpoint is gone or damaged.
        """
        generation = self._generations.get(round_)
        if generation is None:
            raise CheckpointError(f"The layers of round {round_} are not kept any more.", round=round_)
        key = (generation.path.name, cut)
        route = self._made.pop(key, None) or self._load(generation, cut)
        self._made[key] = route
        if len(self._made) > KEPT_ROUTES:
            self._made.popitem(last=False)
        return route

    def _load(self, generation: Generation, cut: str) -> Route:
        job = generation.state().common
        layers = build_suffix(job.model, cut, generation.tensors(), seed=job.seed, where=str(generation.path))
        layers.eval().requires_grad_(requires_grad=False).to(self._device)
        return Route(generation.round, layers, self._device)
