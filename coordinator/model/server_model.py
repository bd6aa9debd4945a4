"""The coordinator's half of the network: one network, a copy a device that becomes one, or a pool it is trained from."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from coordinator.model.aggregate import CrossLayerMean
from coordinator.model.copies import CopyShelf, Place, TensorShelf
from coordinator.model.held_out import HeldOut
from coordinator.model.pool import ActivationPool
from coordinator.model.segments import IN_CHECKPOINT, Segments
from coordinator.model.server_logits import ServerLogits
from coordinator.store.checkpoints import MODEL_FILE, Generation
from coordinator.store.server_spec import ServerSpec
from coordinator.strategy.base import PooledBatch, Strategy, SubBatch
from toolkit.errors import TrainingError
from toolkit.nn.cut import depth_of
from toolkit.nn.seeds import derive_seed
from toolkit.nn.server_exits import build_server_exits, take_suffix_with
from toolkit.nn.steps import (
    lr_at,
    make_optimizer,
    mixed_server_step,
    server_eval,
    server_step,
)
from toolkit.nn.weights import (
    MOMENTUM,
    UNSAVED,
    content_of,
    load_training_state,
    tensors_of,
    training_state,
)
from toolkit.nn.zoo import build_network
from toolkit.wire.job import ModelSpec, OptimizerSpec
from toolkit.wire.payloads import Batch
from toolkit.wire.weights import FlatWeights

COPIES_BUDGET_BYTES = 512 * 1024 * 1024
"""Memory for copies where the strategy names no number of them."""
POOL_CAP_BYTES = 256 * 1024 * 1024
"""Pooled activations in memory; what comes after goes to disk."""
_OF_DEVICE, _COPY, _SUFFIX = "of-", "copy-", ".safetensors"
_TENSORS_A_COPY = 3
"""A trained parameter stands there three times: itself, its gradient, its momentum."""


class ServerModel:
    """Theta: layers behind the shallowest cut, and what trains them.

    Args:
        model: the whole network's spec; its first layers are built and left alone.
        cuts: device id to cut layer.
        optimizer: of the server's steps.
        rounds: of the run, for the schedule.
        seed: of the run.
        strategy: says whether batches train theta, copies of it, or a pool.
        scratch: folder for what does not fit the memory; nothing in it outlives the process.
        device: where to compute.
        segments: of the devices, where they are made one between rounds.
        server: what only the server's training knows.
        logits: kept to be handed down, where the server teaches the devices.

    Raises: CutError, ModelError: there is no such exit.
    """

    def __init__(
        self,
        model: ModelSpec,
        *,
        cuts: Mapping[str, str],
        optimizer: OptimizerSpec,
        rounds: int,
        seed: int,
        strategy: Strategy,
        scratch: Path,
        device: torch.device | str = "cpu",
        segments: Segments | None = None,
        server: ServerSpec = ServerSpec(),  # noqa: B008 - frozen
        logits: ServerLogits | None = None,
    ) -> None:
        self._network = build_network(model, seed=seed).to(device)
        self._cuts = dict(cuts)
        self._optimizer_spec = msgspec.structs.replace(optimizer, lr=optimizer.lr * server.lr_factor)
        self._exit_weight = server.exit_weight
        self._n_classes = model.n_classes
        self._logits = logits
        self._rounds = rounds
        self._seed = seed
        self._device = device
        self._mode = strategy.mode
        self._rules = strategy.copy_rules
        self._shallowest = min(cuts.values(), key=lambda cut: depth_of(self._network, cut))
        heads = build_server_exits(
            self._network, model, server.exits, exit_head=server.exit_head, seed=seed, behind=self._shallowest
        )
        for head in heads.values():
            head.to(device)
        self._suffixes = {cut: take_suffix_with(self._network, cut, heads) for cut in set(cuts.values())}
        self._theta = self._suffixes[self._shallowest]
        self._optimizer = make_optimizer(self._theta, self._optimizer_spec)
        n_resident = self._rules.resident or max(1, COPIES_BUDGET_BYTES // max(1, self._copy_bytes()))
        self._shelf = CopyShelf(
            self._build_place, cuts=self._cuts, begin=self._begin_copy, n_resident=n_resident, folder=scratch
        )
        self._pool = ActivationPool(cap_bytes=POOL_CAP_BYTES, folder=scratch)
        self._held_out = HeldOut(scratch)
        self._kept = TensorShelf(scratch, "momentum")
        self.segments = segments

    @property
    def resident(self) -> frozenset[str]:
        """Devices whose copy is in memory."""
        return self._shelf.resident

    @property
    def n_free_copies(self) -> int:
        """Copies that can be opened before another has to leave the memory."""
        return self._shelf.n_free

    def apply(self, device: str, batch: Batch, *, round_: int, seq: int) -> float:
        """Train on one delivered batch.

        Returns: mean cross-entropy, nats.
        Raises: TrainingError: the loss is not finite.
        """
        if self._mode == "copies":
            held = self._shelf.take(device)
            suffix, optimizer = held.suffix, held.optimizer
        else:
            suffix, optimizer = self._suffixes[self._cuts[device]], self._optimizer
        optimizer.lr = lr_at(self._optimizer_spec, round_=round_, rounds=self._rounds)
        h, y = self._tensors(batch)
        seed = derive_seed(self._seed, "server", round_, device, seq)
        made = server_step(suffix, optimizer, h, y, seed=seed, exit_weight=self._exit_weight)
        optimizer.zero_grad()  # a copy that rests keeps no gradients
        of = f"batch {seq} of device {device!r}"
        _check_loss(made.objective, of, device=device, round_=round_, step=seq)
        if self._logits is not None:
            self._logits.add(device, made.logits)
        return made.loss

    def pool(self, device: str, batch: Batch, *, seq: int) -> None:
        """Keep one delivered batch for the round's mixed steps."""
        self._pool.add(device, seq, batch)

    def begin_mixing(self, batches: Sequence[PooledBatch]) -> None:
        """Say how the round's sub-batches count its batches."""
        self._pool.order(tuple(batches))
        if self._logits is not None:
            self._logits.begin_mixing(batches, n_classes=self._n_classes)

    def apply_mixed(self, parts: Sequence[SubBatch], *, round_: int, step: int) -> list[float]:
        """Train on samples of several devices: one optimizer step.

        Returns: mean cross-entropy of each sub-batch, nats.
        Raises: TrainingError: a loss is not finite.
        """
        self._optimizer.lr = lr_at(self._optimizer_spec, round_=round_, rounds=self._rounds)
        gathered = []
        for part in parts:
            h, y = (torch.from_numpy(array).to(self._device) for array in self._pool.gather(part))
            gathered.append((self._suffixes[part.cut], h, y))
        seed = derive_seed(self._seed, "server mix", round_, step)
        made = mixed_server_step(self._optimizer, gathered, seed=seed, exit_weight=self._exit_weight)
        for part, forward in zip(parts, made, strict=True):
            of = f"mixed step {step} (cut {part.cut!r})"
            _check_loss(forward.objective, of, device="", round_=round_, step=step)
            if self._logits is not None:
                self._logits.put(part, forward.logits)
        return [forward.loss for forward in made]

    def aggregate(self, weights: Mapping[str, int]) -> None:
        """End a period: theta becomes the copies' cross-layer mean, and every copy is dropped."""
        mean = CrossLayerMean(bn=self._rules.bn)
        left_out = (UNSAVED,) if self._rules.momentum == "average" else (UNSAVED, MOMENTUM)
        for device, state in self._shelf.states():
            if self._rules.momentum == "keep":
                self._kept.put(device, {n: state[n] for n in state if n.startswith(MOMENTUM)})
            if device in weights:
                mean.add(state, weights[device], without=left_out)
        self._shelf.clear()
        made = training_state(self._theta, self._optimizer) | mean.result()
        load_training_state(self._theta, self._optimizer, made)

    def gather(self, device: str, segment: Mapping[str, torch.Tensor]) -> None:
        """Keep a device's segment until its round closes."""
        if self.segments is not None:
            self.segments.gather(device, segment)

    def make_segments_one(self, devices: Collection[str], *, round_: int) -> None:
        """Average the segments that a round gathered."""
        if self.segments is not None:
            self.segments.make_one(devices, round_=round_)

    @property
    def lowered_round(self) -> int:
        """The round whose results are handed down to devices; 0 for none."""
        of_logits = self._logits.round if self._logits is not None else 0
        return max(of_logits, self.segments.round if self.segments is not None else 0)

    def lowered(self, device: str, *, taken: int) -> tuple[FlatWeights | None, NDArray[np.float32] | None]:
        """What a device is handed down that has taken what round ``taken`` came to: its segment, the server's logits."""
        segments = self.segments
        weights = segments.of(device) if segments is not None and segments.round > taken else None
        logits = self._logits.of(device) if self._logits is not None else None
        return weights, None if logits is None else logits.numpy()

    def end_round(self, round_: int) -> None:
        """Forget what was gathered for the round; what it came to can be handed down from here on."""
        self._pool.clear()
        self._held_out.clear()
        if self._logits is not None and round_ < self._rounds:
            self._logits.close(round_)

    def hold_out(self, device: str, batch: Batch, *, seq: int) -> None:
        """Keep one held-out batch until the round closes."""
        self._held_out.add(device, seq, batch)

    def held_out(self, device: str) -> Iterator[Batch]:
        """Read a device's held-out batches of the round, one at a time."""
        return self._held_out.of(device)

    def n_correct(self, device: str, batch: Batch) -> dict[str, int]:
        """Count the held-out samples of a device that its routes through the server classify right."""
        h, y = self._tensors(batch)
        return server_eval(self._suffixes[self._cuts[device]], h, y)

    def state(self) -> dict[str, torch.Tensor]:
        """Parameters, buffers and momentum of theta by name, and the devices' segments that were made one."""
        of_devices = self.segments.state() if self.segments is not None else {}
        return training_state(self._theta, self._optimizer) | of_devices

    def kept(self) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
        """What of the state belongs to one device each, read one at a time: its momentum under the rule "keep", logits."""
        logits = dict(self._logits.kept()) if self._logits is not None else {}
        for device in sorted({*logits, *self._kept.devices}):
            yield device, {**self._kept.get(device), **logits.get(device, {})}

    def load_state(
        self,
        state: Mapping[str, torch.Tensor],
        kept: Iterable[tuple[str, Mapping[str, torch.Tensor]]] = (),
    ) -> None:
        """Put back what :meth:`state` and :meth:`kept` gave.

        Raises: CheckpointError: it is of another network.
        """
        if self.segments is not None:
            self.segments.load_state(state)
        own = {name: tensor for name, tensor in state.items() if not name.startswith(IN_CHECKPOINT)}
        load_training_state(self._theta, self._optimizer, own)
        for device, tensors in kept:
            self._load_kept(device, tensors)

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of each file that a commit keeps, one at a time: theta, kept momentum, open copies."""
        yield MODEL_FILE, content_of(self.state())
        for device, tensors in self.kept():
            yield f"{_OF_DEVICE}{device}{_SUFFIX}", content_of(tensors)
        for device, tensors in self._shelf.states():
            yield f"{_COPY}{device}{_SUFFIX}", content_of(tensors)

    def load(self, generation: Generation) -> None:
        """Put back what :meth:`files` gave.

        Raises: CheckpointError: damaged, or of another network.
        """
        for name in generation.names():
            tensors = tensors_of(generation.read(name), where=generation.path / name)
            if name == MODEL_FILE:
                self.load_state(tensors)
            elif name.startswith(_OF_DEVICE):
                self._load_kept(name.removeprefix(_OF_DEVICE).removesuffix(_SUFFIX), tensors)
            elif name.startswith(_COPY):
                self._shelf.put(name.removeprefix(_COPY).removesuffix(_SUFFIX), tensors)

    def _load_kept(self, device: str, tensors: Mapping[str, torch.Tensor]) -> None:
        momentum = {name: tensor for name, tensor in tensors.items() if name.startswith(MOMENTUM)}
        if momentum:
            self._kept.put(device, momentum)
        if self._logits is not None:
            self._logits.load(device, tensors)

    def _build_place(self) -> Place:
        suffixes = copy.deepcopy(self._suffixes)
        return Place(suffixes, make_optimizer(suffixes[self._shallowest], self._optimizer_spec))

    def _begin_copy(self, device: str) -> Mapping[str, torch.Tensor]:
        theta = training_state(self._theta, self._optimizer)
        if self._rules.momentum != "keep":
            return theta
        weights = {name: tensor for name, tensor in theta.items() if not name.startswith(MOMENTUM)}
        return {**weights, **self._kept.get(device)}

    def _copy_bytes(self) -> int:
        return _TENSORS_A_COPY * sum(p.numel() * p.element_size() for p in self._theta.parameters())

    def _tensors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(batch.h).to(self._device), torch.from_numpy(batch.y).to(self._device)


def _check_loss(loss: float, of: str, *, device: str, round_: int, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"The server's loss is {loss} on {of} in round {round_}.",
            hint="Lower the learning rate (run.lr) or look at that device's data.",
            device=device,
            round=round_,
            step=step,
        )
