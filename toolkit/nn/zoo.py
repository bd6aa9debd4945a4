"""Models by name: ours, in plain torch, and the way to a user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import nn

from toolkit.errors import ModelError, did_you_mean
from toolkit.nn.custom_model import check_options, find_maker, is_custom, make_custom
from toolkit.nn.network import StagedNetwork
from toolkit.nn.norm import make_norm
from toolkit.nn.seeds import derive_seed, seeded
from toolkit.wire.job import OWN_MODEL, ModelSpec, Scalar

Stages = dict[str, nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a skip connection; source: He et al., arXiv 1512.03385."""

    def __init__(self, n_in: int, n_out: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = make_norm(norm, n_out, 2)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = make_norm(norm, n_out, 2)
        self.downsample = (
            nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), make_norm(norm, n_out, 2))
            if stride != 1 or n_in != n_out
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, n_in, H, W) to (B, n_out, H / stride, W / stride)."""
        skip = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + skip)


class Stem(nn.Module):
    """The first convolution, by the size of pictures.

    3x3 for small ones (``cifar``), 3x3 with stride 2 for twice that size or a quarter of the compute (``strided``), 7x7
    with stride 2 and pooling for large ones (``imagenet``).
    """

    def __init__(self, n_in: int, n_out: int, kind: str, norm: str) -> None:
        super().__init__()
        shapes = {"cifar": (3, 1, 1), "strided": (3, 2, 1), "imagenet": (7, 2, 3)}
        if kind not in shapes:
            raise ModelError(f"Stem {kind!r} is unknown.", hint=did_you_mean(kind, shapes))
        self.conv1 = nn.Conv2d(n_in, n_out, *shapes[kind], bias=False)
        self.bn1 = make_norm(norm, n_out, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if kind == "imagenet" else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, n_out, H, W), half of each side for ``strided``, a quarter for ``imagenet``."""
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


def _resnet(spec: ModelSpec, *, blocks: tuple[int, ...], width: int, stem: str, norm: str) -> StagedNetwork:
    n_channels = _image_channels(spec)
    stages: Stages = {"stem": Stem(n_channels, width, stem, norm)}
    n_in = width
    for index, n_blocks in enumerate(blocks):
        n_out = width * 2**index
        row = [
            BasicBlock(n_in if b == 0 else n_out, n_out, 2 if b == 0 and index else 1, norm)
            for b in range(n_blocks)
        ]
        stages[f"layer{index + 1}"] = nn.Sequential(*row)
        n_in = n_out
    network = StagedNetwork(stages, PooledClassifier(n_in, spec.n_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def resnet18(spec: ModelSpec, *, width: int = 64, stem: str = "cifar", norm: str = "batch") -> StagedNetwork:
    """ResNet-18 (He et al., arXiv 1512.03385); ``width`` channels in its first stage, ``norm`` batch or group."""
    return _resnet(spec, blocks=(2, 2, 2, 2), width=width, stem=stem, norm=norm)


def resnet34(spec: ModelSpec, *, width: int = 64, stem: str = "cifar", norm: str = "batch") -> StagedNetwork:
    """ResNet-34 (He et al., arXiv 1512.03385)."""
    return _resnet(spec, blocks=(3, 4, 6, 3), width=width, stem=stem, norm=norm)


def resnet_small(spec: ModelSpec, *, width: int = 16, norm: str = "batch") -> StagedNetwork:
    """Three residual stages of one block each, for pictures of 8x8 to 32x32."""
    return _resnet(spec, blocks=(1, 1, 1), width=width, stem="cifar", norm=norm)


def cnn1d(spec: ModelSpec, *, width: int = 32, depth: int = 4, norm: str = "batch") -> StagedNetwork:
    """``depth`` stages of convolution over time, norm and ReLU, for windows of sensor signals (F, W).

    Each stage but the first halves the window and doubles the channels, ``width`` in the first.
    """
    if len(spec.input_shape) != 2:  # noqa: PLR2004 - features, window
        raise ModelError(
            f"Model {spec.name!r} takes windows (features, time steps); the data has shape {spec.input_shape}.",
            hint="For tables use model 'mlp', for pictures 'resnet_small'.",
        )
    stages: Stages = {}
    n_in = spec.input_shape[0]
    for index in range(depth):
        n_out = width * 2**index
        stages[f"conv{index + 1}"] = nn.Sequential(
            nn.Conv1d(n_in, n_out, 5, 2 if index else 1, 2, bias=False),
            make_norm(norm, n_out, 1),
            nn.ReLU(),
        )
        n_in = n_out
    return StagedNetwork(stages, PooledClassifier(n_in, spec.n_classes))


def mlp(spec: ModelSpec, *, width: int = 128, depth: int = 4, norm: str = "batch") -> StagedNetwork:
    """``depth`` stages of linear, norm and ReLU, for tables; other shapes are flattened first."""
    n_in = 1
    for size in spec.input_shape:
        n_in *= size
    stages: Stages = {}
    for index in range(depth):
        layers: list[nn.Module] = [] if index else [nn.Flatten()]
        layers += [nn.Linear(width if index else n_in, width), make_norm(norm, width, 1), nn.ReLU()]
        stages[f"hidden{index + 1}"] = nn.Sequential(*layers)
    return StagedNetwork(stages, PooledClassifier(width, spec.n_classes))


def _image_channels(spec: ModelSpec) -> int:
    if len(spec.input_shape) != 3:  # noqa: PLR2004 - channels, height, width
        raise ModelError(
            f"Model {spec.name!r} takes pictures (channels, height, width); the data has shape {spec.input_shape}.",
            hint="For tables use model 'mlp', for windows of signals 'cnn1d'.",
        )
    return spec.input_shape[0]


def torchvision_state(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename a ResNet's tensors as torchvision names them.

    Args:
        state: ``state_dict()`` of our resnet18 or resnet34.
    Returns: the same tensors without the prefixes ``stages.stem.``, ``stages.`` and ``classifier.``: what
        torchvision's ``load_state_dict`` takes where width is 64 and stem is "imagenet".
    """
    return {_torchvision_name(name): tensor for name, tensor in state.items()}


def from_torchvision_state(
    network: StagedNetwork, state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Name the tensors of a torchvision ResNet as our network does: the way back from :func:`torchvision_state`.

    Raises: ModelError: tensors are missing.
    """
    names = {_torchvision_name(name): name for name in network.state_dict()}
    missing = sorted(set(names) - set(state))
    if missing:
        raise ModelError(
            f"The state has {len(missing)} tensors too few for this network, the first is {missing[0]!r}."
        )
    return {ours: state[theirs] for theirs, ours in names.items()}


def _torchvision_name(name: str) -> str:
    for prefix in ("stages.stem.", "stages.", "classifier."):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


MODELS: dict[str, Callable[..., StagedNetwork]] = {
    "cnn1d": cnn1d,
    "mlp": mlp,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet_small": resnet_small,
}


_USUAL_SHAPES: dict[str, list[int]] = {"cnn1d": [1, 16], "mlp": [1]}


def stage_names(name: str, options: Mapping[str, Scalar]) -> tuple[str, ...]:
    """Stages of one of our models, input first, which do not depend on its data.

    Args:
        name: of the model.
        options: of the model.
    Returns: empty for a user's own: nothing is known of it before its data are.
    Raises: ModelError: no such model, or options it does not take.
    """
    make = check_model(name, options)
    if is_custom(name):
        return ()
    shape = _USUAL_SHAPES.get(name, [3, 32, 32])
    return make(ModelSpec(name=name, input_shape=shape, n_classes=2, options=dict(options))).stage_names


def check_model(name: str, options: Mapping[str, Scalar]) -> Callable[[ModelSpec], StagedNetwork]:
    """Look a model up and check that it takes these options.

    Args:
        name: one of :data:`MODELS`, or a user's own as ``python:package.module:make_model``.
        options: of the model.
    Returns: a function that makes it.
    Raises: ModelError: no such model, or options it does not take.
    """
    if is_custom(name):
        maker = find_maker(name)
        check_options(name, maker, options)
        return lambda spec: make_custom(spec, maker)
    make = MODELS.get(name)
    if make is None:
        raise ModelError(
            f"There is no model {name!r}.",
            hint=f"{did_you_mean(name, MODELS)} Your own: {OWN_MODEL}package.module:make_model.",
            model=name,
        )
    known = {
        option: p for option, p in inspect.signature(make).parameters.items() if p.kind is p.KEYWORD_ONLY
    }
    for option, value in options.items():
        if option not in known:
            raise ModelError(f"Model {name!r} has no option {option!r}.", hint=did_you_mean(option, known))
        _check_value(name, option, value, known[option].default)
    return lambda spec: make(spec, **spec.options)


def _check_value(name: str, option: str, value: Scalar, default: Scalar) -> None:
    """Our options are whole numbers from 1, or words."""
    if type(value) is not type(default) or (isinstance(value, int) and value < 1):
        expected = "a whole number from 1" if isinstance(default, int) else "a word"
        raise ModelError(
            f"Model {name!r}: option {option!r} is {value!r}; expected {expected}.",
            hint=f"Its default is {default!r}.",
            model=name,
        )


def build_network(spec: ModelSpec, *, seed: int) -> StagedNetwork:
    """Build a model with the weights that the run's seed gives it, the same on coordinator and device.

    Args:
        spec: name, input shape, class count and options.
        seed: the run's seed.
    Raises: ModelError: no such model, options it does not take, or a user's model that does not work.
    """
    make = check_model(spec.name, spec.options)
    with seeded(derive_seed(seed, "network")):
        return make(spec)
