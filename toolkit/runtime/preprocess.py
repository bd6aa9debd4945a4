"""From raw values to what the network was trained on: the one normalisation of training, export and inference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import ShapeError


def normalise(x: NDArray[np.float32], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Compute ``(x - mean) / std`` per channel.

    Args:
        x: (B, C, ...), raw.
        mean: C values.
        std: C values, each greater than zero.
    Returns: (B, C, ...), float32, a new contiguous array.
    Raises: ShapeError: C differs among the three.
    """
    if x.ndim < 2 or not x.shape[1] == len(mean) == len(std):  # noqa: PLR2004 - batch and channel axes
        raise ShapeError(
            f"Samples of shape {x.shape[1:]} can't be normalised with {len(mean)} means and {len(std)} deviations.",
            hint="Normalisation is per channel, the first axis of a sample.",
            expected=len(mean),
            got=x.shape[1:],
        )
    return Normaliser(mean, std, x.ndim)(x)


class Normaliser:
    """``(x - mean) / std`` per channel, made once for many batches.

    Args:
        mean: C values.
        std: C values, each greater than zero.
        n_axes: of a batch.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], n_axes: int) -> None:
        per_channel = (1, len(mean), *[1] * (n_axes - 2))
        self._mean = np.asarray(mean, np.float32).reshape(per_channel)
        self._std = np.asarray(std, np.float32).reshape(per_channel)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalise (B, C, ...) to a new contiguous array."""
        centred: NDArray[np.float32] = np.subtract(x, self._mean, order="C")
        centred /= self._std
        return centred


def n_far_outside(x: NDArray[np.float32], low: float, high: float) -> int:
    """Count the samples with a value further outside a range than the range is wide: bytes given for [0, 1], say.

    Args:
        x: (B, ...), raw.
        low: smallest expected value.
        high: largest expected value.
    """
    flat = x.reshape(len(x), -1)
    width = high - low
    return int(np.count_nonzero((flat.min(axis=1) < low - width) | (flat.max(axis=1) > high + width)))
