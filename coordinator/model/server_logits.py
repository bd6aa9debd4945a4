"""The server's logits of a round's training samples, kept to be handed down. Source: FedGKT, arXiv 2007.14513."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from coordinator.strategy.base import PooledBatch, SubBatch

_LOGITS, _ROUND, _OPEN = "lowered/logits", "lowered/round", "lowered/open"


class ServerLogits:
    """Gathers logits batch by batch; what the last closed round came to can be handed down."""

    def __init__(self) -> None:
        self._open: dict[str, list[torch.Tensor]] = {}
        self._pooled: list[tuple[str, int]] = []
        self._closed: dict[str, torch.Tensor] = {}
        self.round = 0

    def add(self, device: str, logits: torch.Tensor) -> None:
        """Keep the logits (B, K) of a device's next batch."""
        self._open.setdefault(device, []).append(logits.cpu())

    def begin_mixing(self, batches: Sequence[PooledBatch], *, n_classes: int) -> None:
        """Make room for the batches of a pool, in its order, which is that of each device's list."""
        self._pooled = []
        for batch in batches:
            self._pooled.append((batch.device, len(self._open.setdefault(batch.device, []))))
            self._open[batch.device].append(torch.zeros(batch.n_samples, n_classes))

    def put(self, part: SubBatch, logits: torch.Tensor) -> None:
        """Keep the logits of a mixed step's sub-batch, row by row."""
        for index, row, of_row in zip(part.batches.tolist(), part.rows.tolist(), logits.cpu(), strict=True):
            device, place = self._pooled[index]
            self._open[device][place][row] = of_row

    def close(self, round_: int) -> None:
        """End a round: its logits can be handed down from here on."""
        self._closed = {device: torch.cat(batches) for device, batches in self._open.items()}
        self._open, self._pooled = {}, []
        self.round = round_

    def of(self, device: str) -> torch.Tensor | None:
        """Logits (n, K) of a device's samples in the round, in the order of its list; None where it had none."""
        return self._closed.get(device)

    def kept(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """What a checkpoint keeps for each device: of the last closed round, and of the one that is open."""
        for device in sorted({*self._closed, *self._open}):
            kept = {}
            if device in self._closed:
                kept = {_LOGITS: self._closed[device], _ROUND: torch.tensor(self.round)}
            if device in self._open:
                kept[_OPEN] = torch.cat(self._open[device])
            yield device, kept

    def load(self, device: str, kept: Mapping[str, torch.Tensor]) -> None:
        """Put back what a checkpoint kept for a device; other names are left alone."""
        if _LOGITS in kept:
            self._closed[device] = kept[_LOGITS]
            self.round = int(kept[_ROUND])
        if _OPEN in kept:
            self._open[device] = [kept[_OPEN]]
