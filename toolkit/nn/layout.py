"""How a segment's tensors lie in the rows that travel (PROTOCOL.md 19): ascending by name, end to end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from toolkit.errors import RemoteProtocolError
from toolkit.nn.weights import MOMENTUM
from toolkit.wire.weights import FlatWeights, RowLengths

_N = TypeVar("_N", bound=np.generic)
_Places = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class SegmentLayout:
    """Names and shapes of each row's tensors, in order; ``momentum`` is empty where it does not travel."""

    values: _Places
    counters: _Places
    momentum: _Places

    @property
    def lengths(self) -> RowLengths:
        """Numbers in each row."""
        return RowLengths(*(sum(prod(shape) for _, shape in row) for row in self._rows))

    @property
    def names(self) -> list[str]:
        """Every tensor's, momentum included."""
        return [name for row in self._rows for name, _ in row]

    @property
    def _rows(self) -> tuple[_Places, _Places, _Places]:
        return self.values, self.counters, self.momentum

    def flatten(self, state: Mapping[str, torch.Tensor]) -> FlatWeights:
        """Lay a training state end to end; momentum that there is not yet becomes zero."""
        momentum = (state[n] if n in state else torch.zeros(shape) for n, shape in self.momentum)
        return FlatWeights(
            _end_to_end((state[name] for name, _ in self.values), np.float32),
            _end_to_end((state[name] for name, _ in self.counters), np.int64),
            _end_to_end(momentum, np.float32),
        )

    def named(self, weights: FlatWeights) -> dict[str, torch.Tensor]:
        """Take rows of the right lengths apart again; tensors share their memory.

        Raises: RemoteProtocolError: a running variance is below zero.
        """
        rows: tuple[NDArray[Any], ...] = (weights.values, weights.counters, weights.momentum)
        found = dict(
            pair for places, row in zip(self._rows, rows, strict=True) for pair in _apart(places, row)
        )
        for name, tensor in found.items():
            # PROTOCOL.md 19: "A receiver MUST refuse a running variance below zero."
            if name.endswith("running_var") and bool((tensor < 0).any()):
                raise RemoteProtocolError(f"Weights have a running variance below zero: {name}.")
        return found


def layout_of(modules: nn.Module, *, with_momentum: bool) -> SegmentLayout:
    """Find out how a device's segment and exit heads lie in their rows."""
    state = sorted(modules.state_dict().items())
    parameters = sorted(modules.named_parameters()) if with_momentum else []
    return SegmentLayout(
        tuple((name, tuple(t.shape)) for name, t in state if t.is_floating_point()),
        tuple((name, tuple(t.shape)) for name, t in state if not t.is_floating_point()),
        tuple((MOMENTUM + name, tuple(p.shape)) for name, p in parameters),
    )


def _end_to_end(tensors: Iterable[torch.Tensor], dtype: type[_N]) -> NDArray[_N]:
    kind = torch.float32 if dtype is np.float32 else torch.int64
    parts = [tensor.detach().cpu().to(kind).contiguous().numpy().reshape(-1) for tensor in tensors]
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _apart(places: _Places, row: NDArray[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    start = 0
    for name, shape in places:
        stop = start + prod(shape)
        yield name, torch.from_numpy(row[start:stop].reshape(shape))
        start = stop
