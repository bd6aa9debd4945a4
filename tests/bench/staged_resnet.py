"""CIFAR ResNet-18 as a cascade of four pieces, for benches; nothing heavier than torch is imported."""

from collections import OrderedDict

from torch import nn

from toolkit.export.graph import Piece
from toolkit.nn.exit_head import build_exit_head
from toolkit.nn.zoo import build_network
from toolkit.wire.job import ModelSpec


def pieces_of(width):
    """The network as four pieces: an exit after each of the first three, the classifier after the last."""
    spec = ModelSpec(name="resnet18", input_shape=[3, 32, 32], n_classes=10, options={"width": width})
    network = build_network(spec, seed=0).eval()
    stages = dict(network.stages.named_children())
    shapes = {"layer1": (width, 32, 32), "layer2": (2 * width, 16, 16), "layer3": (4 * width, 8, 8)}
    groups = [("stem", "layer1"), ("layer2",), ("layer3",)]
    pieces = [
        Piece(
            nn.Sequential(OrderedDict((name, stages[name]) for name in group)),
            build_exit_head(
                "pooled", activation_shape=shapes[group[-1]], n_classes=10, cut=group[-1], seed=0
            ),
            exit_name=group[-1],
        ).eval()
        for group in groups
    ]
    last = nn.Sequential(OrderedDict([("layer4", stages["layer4"])]))
    return [*pieces, Piece(last, network.classifier, exit_name="final", ends=True).eval()]
