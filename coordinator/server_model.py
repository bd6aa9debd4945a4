"""The coordinator's half of the network: one network, or a copy a device that becomes one at the round's end."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from coordinator.aggregate import CrossLayerMean
from toolkit.errors import TrainingError
from toolkit.nn.cut import depth_of, take_suffix
from toolkit.nn.seeds import derive_seed
from toolkit.nn.sgd import Sgd
from toolkit.nn.steps import lr_at, make_optimizer, server_eval, server_step
from toolkit.nn.weights import load_training_state, training_state
from toolkit.nn.zoo import build_network
from toolkit.wire.job import ModelSpec, OptimizerSpec
from toolkit.wire.payloads import Batch

MOMENTUM_MODES = ("average", "reset")
"""What becomes of the copies' momentum at an aggregation: averaged like parameters, or started anew."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A device's own suffix and its optimizer, for one round."""

    suffix: nn.Module
    optimizer: Sgd


class ServerModel:
    """Theta: layers behind the shallowest cut, and what trains them.

    Args:
        model: the whole network's spec; its first layers are built and left alone.
        cuts: device id to cut layer.
        optimizer: of the server's steps.
        rounds: of the run, for the schedule.
        seed: of the run.
        per_device_copies: as the strategy says.
        momentum: one of :data:`MOMENTUM_MODES`.
        device: where to compute.
    """

    def __init__(
        self,
        model: ModelSpec,
        *,
        cuts: Mapping[str, str],
        optimizer: OptimizerSpec,
        rounds: int,
        seed: int,
        per_device_copies: bool,
        momentum: str = "average",
        device: torch.device | str = "cpu",
    ) -> None:
        self._network = build_network(model, seed=seed).to(device)
        self._cuts = dict(cuts)
        self._optimizer_spec = optimizer
        self._rounds = rounds
        self._seed = seed
        self._momentum = momentum
        self._device = device
        self._per_device_copies = per_device_copies
        self._suffixes = {cut: take_suffix(self._network, cut) for cut in set(cuts.values())}
        shallowest = min(self._suffixes, key=lambda cut: depth_of(self._network, cut))
        self._theta = self._suffixes[shallowest]
        self._optimizer = make_optimizer(self._theta, optimizer)
        self._copies: dict[str, Copy] = {}

    def apply(self, device: str, batch: Batch, *, round_: int, seq: int) -> float:
        """Train on one delivered batch.

        Returns: mean cross-entropy, nats.
        Raises: TrainingError: the loss is not finite.
        """
        if self._per_device_copies:
            held = self._copies.get(device) or self._open_copy(device)
            suffix, optimizer = held.suffix, held.optimizer
        else:
            suffix, optimizer = self._suffixes[self._cuts[device]], self._optimizer
        optimizer.lr = lr_at(self._optimizer_spec, round_=round_, rounds=self._rounds)
        h, y = self._tensors(batch)
        loss = server_step(
            suffix, optimizer, h, y, seed=derive_seed(self._seed, "server", round_, device, seq)
        )
        if not torch.isfinite(torch.tensor(loss)):
            raise TrainingError(
                f"The server's loss is {loss} on batch {seq} of device {device!r} in round {round_}.",
                hint="Lower the learning rate (run.lr) or look at that device's data.",
                device=device,
                round=round_,
                step=seq,
            )
        return loss

    def aggregate(self, weights: Mapping[str, int]) -> None:
        """End a round of copies: theta becomes their cross-layer mean, and every copy is dropped."""
        mean = CrossLayerMean()
        for device in sorted(weights):
            held = self._copies[device]
            mean.add(training_state(held.suffix, held.optimizer), weights[device])
        self._copies.clear()
        state = training_state(self._theta, self._optimizer) | mean.result()
        if self._momentum == "reset":
            state = {name: tensor for name, tensor in state.items() if not name.startswith("momentum/")}
        load_training_state(self._theta, self._optimizer, state)

    def n_correct(self, device: str, batch: Batch) -> int:
        """Count the held-out samples of a device that its route through the server classifies right."""
        h, y = self._tensors(batch)
        return server_eval(self._suffixes[self._cuts[device]], h, y)

    def state(self) -> dict[str, torch.Tensor]:
        """Parameters, buffers and momentum of theta by name."""
        return training_state(self._theta, self._optimizer)

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back what :meth:`state` gave.

        Raises: CheckpointError: it is of another network.
        """
        load_training_state(self._theta, self._optimizer, state)

    def _open_copy(self, device: str) -> Copy:
        suffix = copy.deepcopy(self._suffixes[self._cuts[device]])
        optimizer = make_optimizer(suffix, self._optimizer_spec)
        names = {name for name, _ in suffix.named_parameters()} | {name for name, _ in suffix.named_buffers()}
        state = training_state(self._theta, self._optimizer)
        load_training_state(
            suffix,
            optimizer,
            {name: t for name, t in state.items() if name.removeprefix("momentum/") in names},
        )
        self._copies[device] = Copy(suffix, optimizer)
        return self._copies[device]

    def _tensors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(batch.h).to(self._device), torch.from_numpy(batch.y).to(self._device)
