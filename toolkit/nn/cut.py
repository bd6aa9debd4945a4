"""Cutting a network at a stage boundary: the device's segment before it, the coordinator's suffix after it."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from toolkit.errors import CutError, ModelError, did_you_mean
from toolkit.nn.network import StagedNetwork


def cut_layers(network: StagedNetwork) -> tuple[str, ...]:
    """Stages after which the network can be cut, shallow first; the last stage keeps the classifier company."""
    return network.stage_names[:-1] if len(network.stage_names) > 1 else network.stage_names


def depth_of(network: StagedNetwork, cut: str) -> int:
    """Number of stages before the cut.

    Raises: CutError: the network has no such cut layer.
    """
    names = cut_layers(network)
    if cut not in names:
        raise CutError(
            f"The model can't be cut after {cut!r}; its cut layers are {', '.join(names)}.",
            hint=did_you_mean(cut, names),
            cut=cut,
        )
    return names.index(cut) + 1


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
    return nn.Sequential(OrderedDict([*stages, ("classifier", network.classifier)]))


def activation_shape(segment: nn.Module, input_shape: tuple[int, ...] | list[int]) -> tuple[int, ...]:
    """Shape of one sample's activations, without the batch axis; runs the segment once in eval mode.

    Raises: ModelError: the stages do not chain on this input.
    """
    was_training = segment.training
    segment.eval()
    try:
        with torch.no_grad():
            device = next((p.device for p in segment.parameters()), torch.device("cpu"))
            h = segment(torch.zeros(1, *input_shape, device=device))
    except RuntimeError as exc:
        raise ModelError(
            f"The model's stages do not chain on an input of shape {tuple(input_shape)}: {exc}"
        ) from exc
    finally:
        segment.train(was_training)
    return tuple(h.shape[1:])
