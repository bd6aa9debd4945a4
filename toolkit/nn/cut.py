"""Cutting a network at a stage boundary: the device's segment before it, the coordinator's suffix after it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from toolkit.errors import CutError, did_you_mean
from toolkit.nn.network import CLASSIFIER, StagedNetwork, pass_through


def cut_layers(network: StagedNetwork) -> tuple[str, ...]:
    """Stages after which the network can be cut, shallow first; the last stage keeps the classifier company."""
    return network.stage_names[:-1] if len(network.stage_names) > 1 else network.stage_names


def depth_of(network: StagedNetwork, cut: str) -> int:
    """Number of stages before the cut.

    Raises: CutError: the network has no such cut layer.
    """
    names = cut_layers(network)
    if cut not in names:
        raise no_such_cut(cut, names)
    return names.index(cut) + 1


def no_such_cut(cut: str, names: Sequence[str]) -> CutError:
    """Make the error for a cut that is none of a model's."""
    return CutError(
        f"The model can't be cut after {cut!r}; its cut layers are {', '.join(names)}.",
        hint=did_you_mean(cut, names),
        cut=cut,
    )


def take_segment(network: StagedNetwork, cut: str) -> nn.Sequential:
    """Stages 1..cut, sharing the network's modules.

    Raises: CutError: the network has no such cut layer.
    """
    return nn.Sequential(OrderedDict(list(network.stages.named_children())[: depth_of(network, cut)]))


def take_suffix(network: StagedNetwork, cut: str) -> nn.Sequential:
    """Stages cut+1..L and the classifier, sharing the network's modules.

    Raises: CutError: the network has no such cut layer.
    """
    stages = list(network.stages.named_children())[depth_of(network, cut) :]
    return nn.Sequential(OrderedDict([*stages, (CLASSIFIER, network.classifier)]))


def activation_shapes(segment: nn.Module, input_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shape of one sample behind each stage, without the batch axis; runs the segment once in eval mode.

    Raises: ModelError: the stages do not chain on this input.
    """
    was_training = segment.training
    segment.eval()
    try:
        return dict(pass_through(list(segment.named_children()), input_shape))
    finally:
        segment.train(was_training)


def activation_shape(segment: nn.Module, input_shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of one sample's activations at the segment's end.

    Raises: ModelError: the stages do not chain on this input.
    """
    *_, shape = activation_shapes(segment, input_shape).values()
    return shape


@dataclass(frozen=True, slots=True)
class StageFacts:
    """What one stage costs a sample; ``flop`` is 2 x MAC of its forward pass, ``shape`` that of its output."""

    name: str
    shape: tuple[int, ...]
    flop: int
    n_parameters: int
    is_cut_layer: bool

    @property
    def activation_bytes(self) -> int:
        """One sample's output, float32."""
        return 4 * torch.Size(self.shape).numel()


def describe(network: StagedNetwork, input_shape: Sequence[int]) -> list[StageFacts]:
    """Count what each stage and the classifier, the last row, cost.

    Args:
        network: put in eval mode.
        input_shape: one sample's, without the batch axis.
    Raises: ModelError: the stages do not chain on this input.
    """
    # Imported here: it brings torch's compiler, 80 MB that training has no need of.
    from torch.utils.flop_counter import FlopCounterMode

    flop: list[int] = []
    shapes = []
    network.eval()
    rows = pass_through(network.rows, input_shape)
    while True:
        with FlopCounterMode(display=False) as counter:
            row = next(rows, None)
        if row is None:
            break
        shapes.append(row)
        flop.append(int(counter.get_total_flops()))
    modules = dict(network.rows)
    cuts = cut_layers(network)
    return [
        StageFacts(name, shape, n, sum(p.numel() for p in modules[name].parameters()), name in cuts)
        for (name, shape), n in zip(shapes, flop, strict=True)
    ]
