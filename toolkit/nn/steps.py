"""The two training steps of the method, and nothing else: read this file to know what is computed.

Device i holds a segment f_i and an exit head e_i; the coordinator holds the layers after the cut, theta.

    device step:  h = f_i(x);  loss_i = CE(e_i(h), y);  backward;  step on f_i, e_i;  hand over (h, y)
    server step:  loss_s = CE(theta(h), y);             backward;  step on theta

``h`` is that of the forward pass before the update, detached: the graph is cut, and nothing the server computes
reaches a device. Source: Hetero-SplitEE, arXiv 2512.09313.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from toolkit.nn.cut import activation_shape, take_segment
from toolkit.nn.exit_head import build_exit_head
from toolkit.nn.seeds import seeded
from toolkit.nn.sgd import Sgd
from toolkit.nn.zoo import build_network
from toolkit.wire.job import ModelSpec, OptimizerSpec


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """What a device trains."""

    segment: nn.Module
    exit_head: nn.Module
    optimizer: Sgd
    activation_shape: tuple[int, ...]

    @property
    def modules(self) -> nn.ModuleDict:
        """Segment and exit head under their names, sharing parameters: what a checkpoint of the device holds."""
        return nn.ModuleDict({"segment": self.segment, "exit_head": self.exit_head})


@dataclass(frozen=True, slots=True)
class Forward:
    """One pass over a batch.

    Attributes:
        h: activations (B, ...), detached.
        loss: the exit's mean cross-entropy, nats.
        n_correct: samples that the exit classified right.
    """

    h: torch.Tensor
    loss: float
    n_correct: int


def make_optimizer(module: nn.Module, spec: OptimizerSpec) -> Sgd:
    """SGD over all parameters of a module. A parameter with no gradient is not moved, decayed, nor its momentum."""
    return Sgd(module.parameters(), lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)


def lr_at(spec: OptimizerSpec, *, round_: int, rounds: int) -> float:
    """Learning rate of a round (from 1): a function of the round alone, so that absence never shifts it."""
    if spec.schedule == "constant":
        return spec.lr
    return spec.lr * 0.5 * (1 + math.cos(math.pi * (round_ - 1) / rounds))


def build_device_model(
    model: ModelSpec,
    *,
    cut: str,
    exit_head: str,
    optimizer: OptimizerSpec,
    seed: int,
    device: torch.device | str = "cpu",
) -> DeviceModel:
    """Build a device's segment and exit head, as the run's seed initialises them.

    Raises: ModelError, CutError: the job names a model, cut or head that does not exist.
    """
    segment = take_segment(build_network(model, seed=seed), cut)
    shape = activation_shape(segment, model.input_shape)
    head = build_exit_head(exit_head, activation_shape=shape, n_classes=model.n_classes, cut=cut, seed=seed)
    both = nn.ModuleList([segment, head]).to(device)
    return DeviceModel(segment, head, make_optimizer(both, optimizer), shape)


def device_step(model: DeviceModel, x: torch.Tensor, y: torch.Tensor, *, seed: int) -> Forward:
    """Train segment and exit head on one batch.

    Args:
        model: changed in place.
        x: inputs (B, ...), normalised.
        y: labels (B,), int64.
        seed: of this batch's recipe; dropout draws from it.
    Returns: activations and exit loss of the forward pass before the update.
    """
    model.segment.train()
    model.exit_head.train()
    with seeded(seed):
        h = model.segment(x)
        logits = model.exit_head(h)
    loss = cross_entropy(logits, y)
    model.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    model.optimizer.step()
    return Forward(h.detach(), loss.item(), _n_correct(logits, y))


@torch.no_grad()
def device_remake(model: DeviceModel, x: torch.Tensor, y: torch.Tensor, *, seed: int) -> Forward:
    """Make a batch again: the forward pass of :func:`device_step`, changing no parameter, buffer or generator."""
    buffers = {name: b.clone() for name, b in model.modules.named_buffers()}
    model.segment.train()
    model.exit_head.train()
    with seeded(seed):
        h = model.segment(x)
        logits = model.exit_head(h)
    for name, buffer in model.modules.named_buffers():
        buffer.copy_(buffers[name])
    return Forward(h, cross_entropy(logits, y).item(), _n_correct(logits, y))


@torch.no_grad()
def device_eval(model: DeviceModel, x: torch.Tensor, y: torch.Tensor) -> Forward:
    """Pass held-out samples through segment and exit in eval mode."""
    model.segment.eval()
    model.exit_head.eval()
    h = model.segment(x)
    logits = model.exit_head(h)
    return Forward(h, cross_entropy(logits, y).item(), _n_correct(logits, y))


def server_step(suffix: nn.Module, optimizer: Sgd, h: torch.Tensor, y: torch.Tensor, *, seed: int) -> float:
    """Train the layers after a cut on one delivered batch; layers before it keep no gradient and do not move.

    Args:
        suffix: layers cut+1..L and the classifier; changed in place.
        optimizer: over these layers, or over more of the same network.
        h: activations (B, ...).
        y: labels (B,), int64.
        seed: of this batch at the server; dropout draws from it.
    Returns: mean cross-entropy before the update, nats.
    """
    suffix.train()
    with seeded(seed):
        loss = cross_entropy(suffix(h), y)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def mixed_server_step(
    optimizer: Sgd, parts: Sequence[tuple[nn.Module, torch.Tensor, torch.Tensor]], *, seed: int
) -> list[float]:
    """Train one network on sub-batches that enter it at different cuts: the sample-weighted mean of their losses.

    Args:
        optimizer: over all layers that any sub-batch runs through.
        parts: for each sub-batch the suffix of its cut, activations (B, ...) and labels (B,).
        seed: of this step; dropout draws from it.
    Returns: mean cross-entropy of each sub-batch before the update, nats.
    """
    n_samples = sum(len(y) for _, _, y in parts)
    optimizer.zero_grad()
    losses = []
    with seeded(seed):
        for suffix, h, y in parts:
            suffix.train()
            loss = cross_entropy(suffix(h), y)
            (loss * (len(y) / n_samples)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
    optimizer.step()
    return losses


@torch.no_grad()
def server_eval(suffix: nn.Module, h: torch.Tensor, y: torch.Tensor) -> int:
    """Count the held-out samples that the server's route classifies right."""
    suffix.eval()
    return _n_correct(suffix(h), y)


def _n_correct(logits: torch.Tensor, y: torch.Tensor) -> int:
    return int((logits.argmax(1) == y).sum())
