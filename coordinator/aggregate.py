"""The cross-layer mean: layer l becomes the weighted mean over the copies that hold it.

Source: Hetero-SplitEE, arXiv 2512.09313. Sums run in float64 with integer weights and one cast at the end, so a
layer with one holder comes back bit for bit: (w * x) / w is exact while w < 2**29.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


class CrossLayerMean:
    """Running sums over copies, added one at a time in ascending device id.

    Tensors are told apart by name; a copy that lacks a layer simply lacks its names. Floating tensors are averaged,
    others (counters of batch norm) take the maximum.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._weights: dict[str, int] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    def add(self, tensors: Mapping[str, torch.Tensor], weight: int) -> None:
        """Add one copy with a positive integer weight."""
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                held = self._sums.get(name)
                self._sums[name] = tensor.clone() if held is None else torch.maximum(held, tensor)
                continue
            term = tensor.to(torch.float64) * weight
            if name in self._sums:
                self._sums[name] += term
            else:
                self._sums[name] = term
            self._weights[name] = self._weights.get(name, 0) + weight
            self._dtypes[name] = tensor.dtype

    def result(self) -> dict[str, torch.Tensor]:
        """The means of every layer that any added copy held; other layers stay as they were."""
        return {
            name: (total / self._weights[name]).to(self._dtypes[name]) if name in self._weights else total
            for name, total in self._sums.items()
        }
