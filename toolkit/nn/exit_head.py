"""Exit heads: what turns activations at a cut into logits on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from toolkit.errors import ModelError, did_you_mean
from toolkit.nn.norm import make_norm
from toolkit.nn.seeds import derive_seed, seeded
from toolkit.nn.zoo import PooledClassifier


def pooled(activation_shape: Sequence[int], n_classes: int) -> nn.Module:
    """Mean over positions and one linear layer: the cheapest head."""
    return PooledClassifier(activation_shape[0], n_classes)


def conv(activation_shape: Sequence[int], n_classes: int, *, norm: str = "batch") -> nn.Module:
    """One convolution of size 3 and stride 2, then the pooled head: for shallow cuts, whose channels say little each.

    Raises: ModelError: the activations are no planes (C, H, W) and no signals (C, W).
    """
    kinds: dict[int, type[nn.Conv1d | nn.Conv2d]] = {2: nn.Conv1d, 3: nn.Conv2d}
    if len(activation_shape) not in kinds:
        raise ModelError(
            "Exit head 'conv' needs activations (channels, height, width) or (channels, time); this cut gives "
            f"{tuple(activation_shape)}.",
            hint="Use exit head 'pooled'.",
        )
    convolution = kinds[len(activation_shape)]
    n_in = activation_shape[0]
    n_hidden = 2 * n_in
    return nn.Sequential(
        convolution(n_in, n_hidden, 3, 2, 1, bias=False),
        make_norm(norm, n_hidden, len(activation_shape) - 1),
        nn.ReLU(),
        PooledClassifier(n_hidden, n_classes),
    )


def auto(activation_shape: Sequence[int], n_classes: int) -> nn.Module:
    """``conv`` on activations of pictures, ``pooled`` on all others."""
    return (conv if len(activation_shape) == 3 else pooled)(activation_shape, n_classes)  # noqa: PLR2004 - C, H, W


EXIT_HEADS: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "auto": auto,
    "conv": conv,
    "conv_group": partial(conv, norm="group"),
    "pooled": pooled,
}


def check_exit_head(kind: str) -> None:
    """Check that there is such a head.

    Raises: ModelError: there is none.
    """
    if kind not in EXIT_HEADS:
        raise ModelError(f"There is no exit head {kind!r}.", hint=did_you_mean(kind, EXIT_HEADS))


def build_exit_head(
    kind: str, *, activation_shape: Sequence[int], n_classes: int, cut: str, seed: int
) -> nn.Module:
    """Build an exit head with the weights that (seed, cut) give it: equal on all devices of one cut.

    Args:
        kind: "auto", "conv", "conv_group" (with group norm) or "pooled".
        activation_shape: of one sample at the cut.
        n_classes: K.
        cut: the cut layer it stands at.
        seed: the run's seed.
    Raises: ModelError: no such head, or it does not fit the activations.
    """
    check_exit_head(kind)
    with seeded(derive_seed(seed, "exit_head", cut)):
        return EXIT_HEADS[kind](activation_shape, n_classes)
