"""How large a device's part is at every cut: parameters and activations, counted without computing anything of use."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from toolkit.nn.cut import activation_shape, cut_layers, take_segment
from toolkit.nn.exit_head import build_exit_head
from toolkit.nn.network import StagedNetwork
from toolkit.nn.zoo import build_network
from toolkit.wire.job import ModelSpec

FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class CutSize:
    """One cut; ``shape`` is that of one sample's activations, parameters are those of segment and exit head."""

    cut: str
    shape: tuple[int, ...]
    n_parameters: int

    @property
    def activation_bytes(self) -> int:
        """One sample's activations, float32."""
        size = FLOAT32_BYTES
        for side in self.shape:
            size *= side
        return size


def device_part(
    network: StagedNetwork, model: ModelSpec, cut: str, *, exit_head: str, seed: int
) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Put a segment and its exit head together.

    Args:
        network: whose modules the segment shares.
        model: of the network.
        cut: after which it is cut.
        exit_head: of the segment.
        seed: of the head.
    Returns: segment and head, and the shape of one sample's activations between them.
    Raises: CutError, ModelError: there is no such cut or head.
    """
    segment = take_segment(network, cut)
    shape = activation_shape(segment, model.input_shape)
    head = build_exit_head(exit_head, activation_shape=shape, n_classes=model.n_classes, cut=cut, seed=seed)
    return nn.Sequential(segment, head), shape


def sizes_of_cuts(model: ModelSpec, *, exit_head: str) -> list[CutSize]:
    """Size a device's part at every cut of a model, shallow first.

    Raises: ModelError: the model or the head can't be built.
    """
    network = build_network(model, seed=0)
    sizes = []
    for cut in cut_layers(network):
        part, shape = device_part(network, model, cut, exit_head=exit_head, seed=0)
        sizes.append(CutSize(cut, shape, sum(p.numel() for p in part.parameters())))
    return sizes
