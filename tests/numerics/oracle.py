"""The method once more, in plain torch and as literally as it can be said: what the real run must equal, bit for bit.

Nothing here is clever, shared or fast. Every device has its own modules; under Averaging every device, absent or
not, has a whole copy of the network of its own at the server. The optimizer and the mean are written out by hand.
Of the product it takes only what it does not judge: models, exit heads, the recipe of a batch, seeds, the job.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from toolkit.nn.exit_head import build_exit_head
from toolkit.nn.recipe import train_recipe
from toolkit.nn.seeds import derive_seed
from toolkit.nn.zoo import build_network
from toolkit.wire.job import Job

Sent = tuple[torch.Tensor, torch.Tensor]
Tensors = dict[str, torch.Tensor]
Rows = list[tuple[str, nn.Module]]


@dataclass(frozen=True)
class Data:
    """Training samples of a device: x (N, ...) normalised, y (N,) in the run's class order."""

    x: torch.Tensor
    y: torch.Tensor
    fingerprint: str


@dataclass(frozen=True)
class Round:
    """Who took part with what.

    ``trained``: device to the seqs it trained on, in order. ``applied``: (device, seq) as the server took them.
    ``weights``: of the copies in the mean at the round's end; a device that is not named was absent.
    """

    trained: dict[str, list[int]]
    applied: list[tuple[str, int]]
    weights: dict[str, int]


class Learner:
    """Named modules in a row, the last of which gives logits, and their momentum."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.momentum = rows, {}

    def tensors(self) -> Tensors:
        """Parameters and buffers, and the momentum under ``momentum/<parameter>``."""
        weights = {f"{row}.{name}": t for row, module in self.rows for name, t in module.state_dict().items()}
        return weights | {f"momentum/{name}": t for name, t in self.momentum.items()}

    def put(self, name: str, value: torch.Tensor) -> None:
        """Replace one tensor; a learner that does not hold its layer stays as it is."""
        held = name.removeprefix("momentum/")
        if held in self.tensors() and held != name:
            self.momentum[held] = value.clone()
        elif held in self.tensors():
            self.tensors()[name].copy_(value)


def step(
    learner: Learner, rows: Rows, x: torch.Tensor, y: torch.Tensor, *, lr: float, job: Job, seed: int
) -> torch.Tensor:
    """Train ``rows`` of a learner, and only these, on one batch; returns what went into the last of them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        h = x
        for _, module in rows[:-1]:
            module.train()
            h = module(h)
        rows[-1][1].train()
        loss = cross_entropy(rows[-1][1](h), y)
    loss.backward()
    decay, momentum = job.optimizer.weight_decay, job.optimizer.momentum
    with torch.no_grad():
        for name, p in [(f"{row}.{n}", p) for row, m in rows for n, p in m.named_parameters()]:
            change = p.grad.add(p, alpha=decay) if decay else p.grad.clone()
            if momentum:
                if name in learner.momentum:
                    change = learner.momentum[name] * momentum + change
                learner.momentum[name] = change
            p.add_(change, alpha=-lr)
            p.grad = None
    return h.detach()


def split(network: nn.Module, cut: str) -> tuple[Rows, Rows]:
    """The stages up to the cut, and those after it with the classifier."""
    stages = list(network.stages.named_children())
    depth = [name for name, _ in stages].index(cut) + 1
    return stages[:depth], [*stages[depth:], ("classifier", network.classifier)]


def device_learner(job: Job) -> Learner:
    """A segment and its exit head, as the run's seed makes them."""
    segment, _ = split(build_network(job.model, seed=job.seed), job.cut)
    h = torch.zeros(1, *job.model.input_shape)
    with torch.no_grad():
        for _, stage in segment:
            h = stage.eval()(h)
    shape, n_classes = h.shape[1:], job.model.n_classes
    head = build_exit_head(
        job.exit_head, activation_shape=shape, n_classes=n_classes, cut=job.cut, seed=job.seed
    )
    return Learner([*((f"segment.{name}", stage) for name, stage in segment), ("exit_head", head)])


def learning_rate(job: Job, round_: int) -> float:
    """Constant, or a half cosine over the run's rounds."""
    falls = 0.5 * (1 + math.cos(math.pi * (round_ - 1) / job.rounds))
    return job.optimizer.lr * (1 if job.optimizer.schedule == "constant" else falls)


def train_alone(learner: Learner, device: str, job: Job, data: Data, *, round_: int, seq: int) -> Sent:
    """One device step; returns what leaves the device."""
    recipe = train_recipe(
        seed=job.seed,
        device=device,
        fingerprint=data.fingerprint,
        n_train=len(data.y),
        batch_size=job.batch_size,
        round_steps=job.round_steps,
        round_=round_,
        seq=seq,
    )
    y = data.y[recipe.indices]
    lr = learning_rate(job, round_)
    return step(learner, learner.rows, data.x[recipe.indices], y, lr=lr, job=job, seed=recipe.seed), y


def mean_of(values: list[torch.Tensor], weights: list[int]) -> torch.Tensor:
    """The weighted mean in float64 with one cast; counters take the maximum; a single value comes back as it is."""
    if len(values) == 1:
        return values[0].clone()
    if not values[0].is_floating_point():
        return torch.stack(values).max(0).values
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for value, weight in zip(values, weights, strict=True):
        total = total + value.to(torch.float64) * weight
    return (total / sum(weights)).to(values[0].dtype)


def average(copies: dict[str, Learner], weights: dict[str, int], momentum: str) -> None:
    """Every layer becomes the mean over those that took part and hold it, in every copy that holds it."""
    present = sorted(weights)
    before = {device: {n: t.clone() for n, t in copies[device].tensors().items()} for device in copies}
    for name in sorted({name for device in present for name in before[device]}):
        if name.startswith("momentum/") and momentum == "keep":
            continue
        holders = [device for device in present if name in before[device]]
        mean = mean_of([before[d][name] for d in holders], [weights[d] for d in holders])
        for learner in copies.values():
            learner.put(name, mean)
    for learner in copies.values() if momentum == "reset" else ():
        learner.momentum.clear()


def play(
    jobs: dict[str, Job],
    data: dict[str, Data],
    rounds: list[Round],
    *,
    strategy: str,
    momentum: str = "average",
    transport: Callable[[torch.Tensor], torch.Tensor] = lambda h: h,
) -> tuple[dict[str, Tensors], Tensors]:
    """Compute a run: device id to its tensors, and the server's, those behind the shallowest cut."""
    devices = {device: device_learner(jobs[device]) for device in jobs}
    job = next(iter(jobs.values()))
    network = build_network(job.model, seed=job.seed)
    suffixes = {device: split(network, jobs[device].cut)[1] for device in jobs}
    shallowest = max(suffixes, key=lambda device: len(suffixes[device]))
    if strategy == "averaging":
        servers = {device: Learner(copy.deepcopy(suffixes[device])) for device in jobs}
    else:
        servers = dict.fromkeys(jobs, Learner(suffixes[shallowest]))
    for number, round_ in enumerate(rounds, start=1):
        sent: dict[tuple[str, int], Sent] = {}
        for name, seq in [(name, seq) for name, seqs in round_.trained.items() for seq in seqs]:
            made = train_alone(devices[name], name, jobs[name], data[name], round_=number, seq=seq)
            sent[name, seq] = made
        for device, seq in round_.applied:
            h, y = sent[device, seq]
            rows = servers[device].rows[-len(suffixes[device]) :]
            seed = derive_seed(job.seed, "server", number, device, seq)
            step(servers[device], rows, transport(h), y, lr=learning_rate(job, number), job=job, seed=seed)
        if strategy == "averaging" and round_.weights:
            average(servers, round_.weights, momentum)
    return {d: learner.tensors() for d, learner in devices.items()}, servers[shallowest].tensors()
