"""The two training steps of the method, and nothing else: read this file to know what is computed.

Device i holds a segment f_i and an exit head e_i; the coordinator holds the layers after the cut, theta.

    device step:  h = f_i(x);  loss_i = CE(e_i(h), y);  backward;  step on f_i, e_i;  hand over (h, y)
    server step:  loss_s = CE(theta(h), y);             backward;  step on theta

``h`` is that of the forward pass before the update, detached: the graph is cut, and nothing the server computes
reaches a device. Source: Hetero-SplitEE, arXiv 2512.09313.

Beyond the paper, each of these adds a term to a loss, and is off unless a job asks for it:

    exits at every stage of the segment    + CE(e_s(f_s(x)), y) for each stage s before the cut
    exits that teach each other            + w t^2 KL(p_j, p_s), mean over the other exits j, for each exit s
    the server teaches                     + w t^2 KL(p_server, p_s) for each exit s; its logits are an earlier round's
    exits at the server's stages           + w CE(e_s(h_s), y) for each named stage s behind the cut
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from toolkit.nn.cut import activation_shapes, take_segment
from toolkit.nn.exit_head import build_exit_head
from toolkit.nn.seeds import seeded
from toolkit.nn.server_exits import SuffixWithExits
from toolkit.nn.sgd import Sgd
from toolkit.nn.zoo import build_network
from toolkit.wire.job import Distillation, ModelSpec, OptimizerSpec

NO_TEACHING = Distillation()
SERVER_ROUTE = "server"
"""The route that ends at the classifier; a route that ends at an exit is called by its stage."""


@dataclass(frozen=True, slots=True)
class DeviceModel:
    """What a device trains; ``shallow_heads`` are those at stages before the cut, by stage, none by default."""

    segment: nn.Module
    exit_head: nn.Module
    optimizer: Sgd
    activation_shape: tuple[int, ...]
    shallow_heads: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def modules(self) -> nn.ModuleDict:
        """Segment and exit heads under their names, sharing parameters: what a checkpoint of the device holds."""
        made = nn.ModuleDict({"segment": self.segment, "exit_head": self.exit_head})
        if self.shallow_heads:
            made["shallow_heads"] = nn.ModuleDict(self.shallow_heads)
        return made

    def set_training(self, training: bool) -> None:  # noqa: FBT001 - as torch's own train(mode)
        """Put segment and heads in training or in evaluation mode."""
        for part in (self.segment, self.exit_head, *self.shallow_heads.values()):
            part.train(training)


@dataclass(frozen=True, slots=True)
class Forward:
    """One pass over a batch.

    Attributes:
        h: activations (B, ...), detached.
        loss: mean cross-entropy of the exit at the cut, nats.
        n_correct: samples that it classified right.
        shallow_correct: likewise of the exits before the cut, shallow first.
        objective: what a training step descended: ``loss`` and all that a job adds to it.
    """

    h: torch.Tensor
    loss: float
    n_correct: int
    shallow_correct: tuple[int, ...] = ()
    objective: float = 0.0


@dataclass(frozen=True, slots=True)
class Teacher:
    """The server's logits (B, K) of a batch's samples, where they are ``known`` (B,)."""

    logits: torch.Tensor
    known: torch.Tensor


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
    all_exits: bool = False,
) -> DeviceModel:
    """Build a device's segment and exit heads, as the run's seed initialises them.

    Raises: ModelError, CutError: the job names a model, cut or head that does not exist.
    """
    segment = take_segment(build_network(model, seed=seed), cut)
    shapes = activation_shapes(segment, model.input_shape)
    wanted = shapes if all_exits else {cut: shapes[cut]}
    heads = {
        stage: build_exit_head(
            exit_head, activation_shape=shape, n_classes=model.n_classes, cut=stage, seed=seed
        )
        for stage, shape in wanted.items()
    }
    head = heads.pop(cut)
    every = nn.ModuleList([segment, head, *heads.values()]).to(device)
    return DeviceModel(segment, head, make_optimizer(every, optimizer), shapes[cut], heads)


def device_step(
    model: DeviceModel,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    seed: int,
    among_exits: Distillation = NO_TEACHING,
    from_server: Distillation = NO_TEACHING,
    teacher: Teacher | None = None,
) -> Forward:
    """Train segment and exit heads on one batch.

    Args:
        model: changed in place.
        x: inputs (B, ...), normalised.
        y: labels (B,), int64.
        seed: of this batch's recipe; dropout draws from it.
        among_exits: how much the exits teach each other.
        from_server: how much ``teacher`` teaches each of them.
        teacher: what the server said of these samples; None where it said nothing.
    Returns: activations and exit loss of the forward pass before the update.
    """
    model.set_training(True)
    with seeded(seed):
        h, logits = through_segment(model, x)
    losses = [cross_entropy(of_exit, y) for of_exit in logits]
    objective = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
    if among_exits.weight and len(logits) > 1:
        objective = objective + _among(logits, among_exits)
    if from_server.weight and teacher is not None:
        for of_exit in logits:
            objective = objective + distillation(of_exit, teacher.logits, from_server, known=teacher.known)
    model.optimizer.zero_grad()
    objective.backward()  # type: ignore[no-untyped-call]
    model.optimizer.step()
    return _forward(h.detach(), logits, y, loss=losses[-1].item(), objective=objective.item())


@torch.no_grad()
def device_remake(model: DeviceModel, x: torch.Tensor, y: torch.Tensor, *, seed: int) -> Forward:
    """Make a batch again: the forward pass of :func:`device_step`, changing no parameter, buffer or generator."""
    buffers = {name: b.clone() for name, b in model.modules.named_buffers()}
    model.set_training(True)
    with seeded(seed):
        h, logits = through_segment(model, x)
    for name, buffer in model.modules.named_buffers():
        buffer.copy_(buffers[name])
    return _forward(h, logits, y, loss=cross_entropy(logits[-1], y).item())


@torch.no_grad()
def device_eval(model: DeviceModel, x: torch.Tensor, y: torch.Tensor) -> Forward:
    """Pass held-out samples through segment and exits in eval mode; ``x`` stays as it is."""
    model.set_training(False)
    h, logits = through_segment(model, x.clone())
    return _forward(h, logits, y, loss=cross_entropy(logits[-1], y).item())


def distillation(
    student: torch.Tensor, teacher: torch.Tensor, spec: Distillation, *, known: torch.Tensor | None = None
) -> torch.Tensor:
    """What a teacher adds to a student's loss: ``w t^2 KL(teacher / t, student / t)``, mean over the batch.

    Args:
        student: logits (B, K).
        teacher: logits (B, K); nothing flows back into them.
        spec: weight w and temperature t.
        known: (B,), the samples that the teacher knows; others add nothing. By default all.
    Source: Hinton et al., arXiv 1503.02531; the factor t^2 keeps the gradient's size over temperatures.
    """
    student, teacher = (log_softmax(z / spec.temperature, 1) for z in (student, teacher.detach()))
    of_sample = kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    if known is not None:
        of_sample = torch.where(known, of_sample, 0.0)
    return spec.weight * spec.temperature**2 * of_sample.mean()


def _among(logits: Sequence[torch.Tensor], spec: Distillation) -> torch.Tensor:
    """Every exit learns from every other, shallow ones from deep ones and back. Source: DepthFL, ICLR 2023."""
    pairs = [(student, teacher) for student in logits for teacher in logits if student is not teacher]
    return torch.stack([distillation(*pair, spec) for pair in pairs]).sum() / (len(logits) - 1)


def through_segment(model: DeviceModel, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Activations at the cut, and the logits of every exit, shallow first."""
    h, logits = x, []
    for stage, module in model.segment.named_children():
        h = module(h)
        if stage in model.shallow_heads:
            logits.append(model.shallow_heads[stage](h))
            h = h.clone()  # the next stage may work in place, and the head needs what it saw
    return h, [*logits, model.exit_head(h)]


def _forward(
    h: torch.Tensor, logits: Sequence[torch.Tensor], y: torch.Tensor, *, loss: float, objective: float = 0.0
) -> Forward:
    *shallow, at_cut = (_n_correct(of_exit, y) for of_exit in logits)
    return Forward(h, loss, at_cut, tuple(shallow), objective)


@dataclass(frozen=True, slots=True)
class ServerForward:
    """One training pass at the server.

    Attributes:
        logits: the classifier's (B, K), detached.
        loss: its mean cross-entropy before the update, nats.
        objective: what the step descended: ``loss`` and what exits on the way add.
    """

    logits: torch.Tensor
    loss: float
    objective: float


def server_step(
    suffix: nn.Module,
    optimizer: Sgd,
    h: torch.Tensor,
    y: torch.Tensor,
    *,
    seed: int,
    exit_weight: float = 0.0,
) -> ServerForward:
    """Train the layers after a cut on one delivered batch; layers before it keep no gradient and do not move.

    Args:
        suffix: layers cut+1..L and the classifier, with exits on the way or without; changed in place.
        optimizer: over these layers, or over more of the same network.
        h: activations (B, ...).
        y: labels (B,), int64.
        seed: of this batch at the server; dropout draws from it.
        exit_weight: of each exit's cross-entropy in the loss.
    """
    (forward,) = mixed_server_step(optimizer, [(suffix, h, y)], seed=seed, exit_weight=exit_weight)
    return forward


def mixed_server_step(
    optimizer: Sgd,
    parts: Sequence[tuple[nn.Module, torch.Tensor, torch.Tensor]],
    *,
    seed: int,
    exit_weight: float = 0.0,
) -> list[ServerForward]:
    """Train one network on sub-batches that enter it at different cuts: the sample-weighted mean of their losses.

    Args:
        optimizer: over all layers that any sub-batch runs through.
        parts: for each sub-batch the suffix of its cut, activations (B, ...) and labels (B,).
        seed: of this step; dropout draws from it.
        exit_weight: of each exit's cross-entropy in a sub-batch's loss.
    """
    n_samples = sum(len(y) for _, _, y in parts)
    optimizer.zero_grad()
    made = []
    with seeded(seed):
        for suffix, h, y in parts:
            suffix.train()
            logits, exits = through_suffix(suffix, h)
            loss = objective = cross_entropy(logits, y)
            for of_exit in exits.values():
                objective = objective + exit_weight * cross_entropy(of_exit, y)
            share = len(y) / n_samples
            if objective.requires_grad:  # layers without parameters have nothing to learn
                (objective * share if len(parts) > 1 else objective).backward()  # type: ignore[no-untyped-call]
            made.append(ServerForward(logits.detach(), loss.item(), objective.item()))
    optimizer.step()
    return made


@torch.no_grad()
def server_eval(suffix: nn.Module, h: torch.Tensor, y: torch.Tensor) -> dict[str, int]:
    """Count the held-out samples classified right: under "server" at the classifier, under its stage at each exit."""
    suffix.eval()
    logits, exits = through_suffix(suffix, h)
    return {route: _n_correct(z, y) for route, z in {SERVER_ROUTE: logits, **exits}.items()}


def through_suffix(suffix: nn.Module, h: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The classifier's logits (B, K), and those of every exit on the way by its stage."""
    return suffix.with_exits(h) if isinstance(suffix, SuffixWithExits) else (suffix(h), {})


def _n_correct(logits: torch.Tensor, y: torch.Tensor) -> int:
    return int((logits.argmax(1) == y).sum())
