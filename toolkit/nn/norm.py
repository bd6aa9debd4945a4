"""Normalisation layers: over the batch, which a device's own data shape, or over groups of channels, which they do not."""

from __future__ import annotations

from math import gcd

from torch import nn

from toolkit.errors import ModelError, did_you_mean

N_GROUPS = 8
"""Groups of a group norm; fewer where the channels can't be divided so."""
_BATCH_NORMS: dict[int, type[nn.BatchNorm1d | nn.BatchNorm2d]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
NORMS = ("batch", "group")


def make_norm(kind: str, n_channels: int, n_axes: int) -> nn.Module:
    """Make a layer that normalises (B, n_channels, ...).

    Args:
        kind: "batch" or "group".
        n_channels: C.
        n_axes: 2 for pictures, 1 for signals and tables.
    Raises: ModelError: no such kind.
    Source: of group norm, arXiv 1803.08494; that batch statistics hurt under skewed data, arXiv 1910.00189.
    """
    if kind not in NORMS:
        raise ModelError(f"There is no normalisation {kind!r}.", hint=did_you_mean(kind, NORMS))
    return (
        nn.GroupNorm(gcd(N_GROUPS, n_channels), n_channels)
        if kind == "group"
        else _BATCH_NORMS[n_axes](n_channels)
    )
