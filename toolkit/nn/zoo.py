"""Our models, in plain torch. Each is a function of its options, the input shape and the class count."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import nn

from toolkit.errors import ModelError, did_you_mean
from toolkit.nn.network import StagedNetwork
from toolkit.nn.seeds import derive_seed, seeded
from toolkit.wire.job import ModelSpec, Scalar

Stages = dict[str, nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a skip connection; source: He et al., arXiv 1512.03385."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample = (
            nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
            if stride != 1 or n_in != n_out
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, n_in, H, W) to (B, n_out, H / stride, W / stride)."""
        skip = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + skip)


class Stem(nn.Module):
    """The first convolution: 3x3 for small pictures (``cifar``), 7x7 and pooling for large ones (``imagenet``)."""

    def __init__(self, n_in: int, n_out: int, kind: str) -> None:
        super().__init__()
        if kind not in ("cifar", "imagenet"):
            raise ModelError(f"Stem {kind!r} is unknown.", hint=did_you_mean(kind, ("cifar", "imagenet")))
        small = kind == "cifar"
        self.conv1 = nn.Conv2d(
            n_in, n_out, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False
        )
        self.bn1 = nn.BatchNorm2d(n_out)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, n_out, H, W), or a quarter of each side for ``imagenet``."""
        y: torch.Tensor = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        return y


class PooledClassifier(nn.Module):
    """Mean over all positions, then one linear layer."""

    def __init__(self, n_in: int, n_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(n_in, n_classes)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(B, C, ...) or (B, C) to logits (B, K)."""
        pooled = h.flatten(2).mean(2) if h.ndim > 2 else h  # noqa: PLR2004 - batch and channel axes
        logits: torch.Tensor = self.fc(pooled)
        return logits


def _resnet(spec: ModelSpec, *, blocks: tuple[int, ...], width: int, stem: str) -> StagedNetwork:
    n_channels = _image_channels(spec)
    stages: Stages = {"stem": Stem(n_channels, width, stem)}
    n_in = width
    for index, n_blocks in enumerate(blocks):
        n_out = width * 2**index
        row = [
            BasicBlock(n_in if b == 0 else n_out, n_out, 2 if b == 0 and index else 1)
            for b in range(n_blocks)
        ]
        stages[f"layer{index + 1}"] = nn.Sequential(*row)
        n_in = n_out
    network = StagedNetwork(stages, PooledClassifier(n_in, spec.n_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def resnet18(spec: ModelSpec, *, width: int = 64, stem: str = "cifar") -> StagedNetwork:
    """ResNet-18 (He et al., arXiv 1512.03385); ``width`` channels in its first stage."""
    return _resnet(spec, blocks=(2, 2, 2, 2), width=width, stem=stem)


def resnet34(spec: ModelSpec, *, width: int = 64, stem: str = "cifar") -> StagedNetwork:
    """ResNet-34 (He et al., arXiv 1512.03385)."""
    return _resnet(spec, blocks=(3, 4, 6, 3), width=width, stem=stem)


def resnet_small(spec: ModelSpec, *, width: int = 16) -> StagedNetwork:
    """Three residual stages of one block each, for pictures of 8x8 to 32x32."""
    return _resnet(spec, blocks=(1, 1, 1), width=width, stem="cifar")


def mlp(spec: ModelSpec, *, width: int = 128, depth: int = 4) -> StagedNetwork:
    """``depth`` stages of linear, batch norm and ReLU, for tables; other shapes are flattened first."""
    n_in = 1
    for size in spec.input_shape:
        n_in *= size
    stages: Stages = {}
    for index in range(depth):
        layers: list[nn.Module] = [] if index else [nn.Flatten()]
        layers += [nn.Linear(width if index else n_in, width), nn.BatchNorm1d(width), nn.ReLU()]
        stages[f"hidden{index + 1}"] = nn.Sequential(*layers)
    return StagedNetwork(stages, PooledClassifier(width, spec.n_classes))


def _image_channels(spec: ModelSpec) -> int:
    if len(spec.input_shape) != 3:  # noqa: PLR2004 - channels, height, width
        raise ModelError(
            f"Model {spec.name!r} takes pictures (channels, height, width); the data has shape {spec.input_shape}.",
            hint="For tables use model 'mlp'.",
        )
    return spec.input_shape[0]


MODELS: dict[str, Callable[..., StagedNetwork]] = {
    "mlp": mlp,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet_small": resnet_small,
}


def check_model(name: str, options: Mapping[str, Scalar]) -> Callable[..., StagedNetwork]:
    """Look a model up and check that it takes these options.

    Returns: the function that makes it.
    Raises: ModelError: no such model, or options it does not take.
    """
    make = MODELS.get(name)
    if make is None:
        raise ModelError(f"There is no model {name!r}.", hint=did_you_mean(name, MODELS), model=name)
    known = {option for option, p in inspect.signature(make).parameters.items() if p.kind is p.KEYWORD_ONLY}
    for option in options:
        if option not in known:
            raise ModelError(f"Model {name!r} has no option {option!r}.", hint=did_you_mean(option, known))
    return make


def build_network(spec: ModelSpec, *, seed: int) -> StagedNetwork:
    """Build a model with the weights that the run's seed gives it, the same on coordinator and device.

    Args:
        spec: name, input shape, class count and options.
        seed: the run's seed.
    Raises: ModelError: no such model, or options it does not take.
    """
    make = check_model(spec.name, spec.options)
    with seeded(derive_seed(seed, "network")):
        return make(spec, **spec.options)
