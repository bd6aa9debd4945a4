"""What goes beyond the paper once more, as literally as it can be said: segments made one between rounds, exits at every
stage that teach each other, exits at the server's stages, the server as a teacher.

Like ``oracle.py`` it imports nothing that it judges, and shares with it what that module defines: a learner, the
mean, the rate. Nothing here runs unless an option asks for it; with none it is ``oracle.play`` by other words.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn.functional import cross_entropy, log_softmax

from tests.numerics.oracle import (
    Data,
    Learner,
    Round,
    Rows,
    Tensors,
    average,
    device_learner,
    learning_rate,
    mean_of,
    split,
)
from toolkit.nn.exit_head import build_exit_head
from toolkit.nn.recipe import train_recipe
from toolkit.nn.seeds import derive_seed
from toolkit.nn.zoo import build_network
from toolkit.wire.job import Job

Carry = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Device:
    """A device's learner, and what it has taken of the coordinator's: up to which round, and logits by sample."""

    learner: Learner
    taken: int = 0
    teacher: dict[int, torch.Tensor] = field(default_factory=dict)


def shallow_device(job: Job) -> Learner:
    """The paper's device, and with all exits a head behind every stage before the cut."""
    learner = device_learner(job)
    h, heads = torch.zeros(1, *job.model.input_shape), []
    with torch.no_grad():
        for name, stage in learner.rows[:-2] if job.all_exits else []:
            h, stage_name = stage.eval()(h), name.removeprefix("segment.")
            head = build_exit_head(
                job.exit_head,
                activation_shape=h.shape[1:],
                n_classes=job.model.n_classes,
                cut=stage_name,
                seed=job.seed,
            )
            heads.append((f"shallow_heads.{stage_name}", head))
    learner.rows = [*learner.rows, *heads]
    return learner


def descend(learner: Learner, rows: Rows, *, lr: float, job: Job) -> None:
    """One step of gradient descent on what has a gradient."""
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


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """t^2 KL(teacher || student) of softened distributions, a sample (B,)."""
    p, q = log_softmax(teacher / temperature, 1), log_softmax(student / temperature, 1)
    return torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(1)


def train_device(device: Device, name: str, job: Job, data: Data, *, round_: int, seq: int):
    """One device step; returns what leaves the device, and which samples they were."""
    recipe = train_recipe(
        seed=job.seed,
        device=name,
        fingerprint=data.fingerprint,
        n_train=len(data.y),
        batch_size=job.batch_size,
        round_steps=job.round_steps,
        round_=round_,
        seq=seq,
    )
    modules = dict(device.learner.rows)
    y, h, logits = data.y[recipe.indices], data.x[recipe.indices], []
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        for row in [row for row in modules if row.startswith("segment.")]:
            h = modules[row].train()(h)
            head = modules.get(row.replace("segment.", "shallow_heads."))
            if head is not None:
                logits.append(head.train()(h))
        logits.append(modules["exit_head"].train()(h))
    losses = [cross_entropy(z, y) for z in logits]
    loss = torch.stack(losses).sum() if len(losses) > 1 else losses[0]
    among, server = job.among_exits, job.from_server
    if among.weight and len(logits) > 1:
        pairs = [(s, t.detach()) for s in logits for t in logits if s is not t]
        terms = [
            among.weight * among.temperature**2 * divergence(*p, among.temperature).mean() for p in pairs
        ]
        loss = loss + torch.stack(terms).sum() / (len(logits) - 1)
    known = torch.tensor([int(i) in device.teacher for i in recipe.indices])
    if server.weight and device.teacher:
        zeros = torch.zeros(job.model.n_classes)
        said = torch.stack([device.teacher.get(int(i), zeros) for i in recipe.indices])
        for z in logits:
            of_sample = torch.where(known, divergence(z, said, server.temperature), 0.0)
            loss = loss + server.weight * server.temperature**2 * of_sample.mean()
    loss.backward()
    descend(device.learner, device.learner.rows, lr=learning_rate(job, round_), job=job)
    return h.detach(), y, recipe.indices


def shared_name(name: str, job: Job) -> str:
    """What a tensor is called among all who share it: an exit by its stage, and all by the cut where only it shares."""
    for own, exits in (("exit_head.", f"exits.{job.cut}."), ("shallow_heads.", "exits.")):
        name = name.replace(own, exits)
    return f"{job.cut}/{name}" if job.sync.mode == "same_cut" else name


def make_one(devices: dict[str, Device], jobs: dict[str, Job], present: list[str], carry: Carry) -> Tensors:
    """The mean of every tensor over the devices that gave it, in ascending order."""
    given: dict[str, list[torch.Tensor]] = {}
    for device in sorted(present):
        for name, tensor in devices[device].learner.tensors().items():
            if not name.startswith("momentum/") or jobs[device].sync.momentum == "average":
                sent = carry(tensor) if tensor.is_floating_point() else tensor
                given.setdefault(shared_name(name, jobs[device]), []).append(sent.clone())
    return {name: mean_of(values, [1] * len(values)) for name, values in given.items()}


def take(device: Device, job: Job, made: Tensors, carry: Carry) -> None:
    """Begin from what was made one, unless a stage of this device's was never made one."""
    learner, rule = device.learner, job.sync.momentum
    names = {name: shared_name(name, job) for name in learner.tensors() if not name.startswith("momentum/")}
    if not all(of_all in made for of_all in names.values()):
        return
    if rule == "reset":
        learner.momentum.clear()
    if rule == "average":
        names |= {f"momentum/{n}": shared_name(f"momentum/{n}", job) for n in learner.momentum}
    for name, of_all in names.items():
        value = made[of_all]
        learner.put(name, carry(value) if value.is_floating_point() else value)


def begin_round(device: Device, job: Job, newest: dict[str, int], made: Tensors, said, carry: Carry) -> None:
    """Before its first step in a round a device takes what is newer than what it has."""
    if newest["segments"] > device.taken:
        take(device, job, made, carry)
    if newest["logits"] > device.taken:
        device.teacher |= said
    device.taken = max(device.taken, *newest.values())


def server_rows(jobs: dict[str, Job], exits: list[str], exit_head: str) -> dict[str, Rows]:
    """Each device's stages behind its cut, the classifier, and the exits among them; all of one network."""
    job = next(iter(jobs.values()))
    network = build_network(job.model, seed=job.seed)
    h, heads = torch.zeros(1, *job.model.input_shape), {}
    with torch.no_grad():
        for name, stage in network.stages.named_children():
            h = stage.eval()(h)
            if name in exits:
                heads[name] = build_exit_head(
                    exit_head,
                    activation_shape=h.shape[1:],
                    n_classes=job.model.n_classes,
                    cut=name,
                    seed=job.seed,
                )
    rows = {device: split(network, jobs[device].cut)[1] for device in jobs}
    return {
        d: [*of, *((f"server_exits.{n}", heads[n]) for n, _ in of if n in heads)] for d, of in rows.items()
    }


def train_server(learner: Learner, rows: Rows, sent, *, lr: float, job: Job, seed: int, exit_weight: float):
    """One server step; returns the classifier's logits before it."""
    (h, y), heads = sent, dict(rows)
    loss = 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, module in rows:
            if name.startswith("server_exits."):
                continue
            h = module.train()(h)
            if f"server_exits.{name}" in heads:
                loss = loss + exit_weight * cross_entropy(heads[f"server_exits.{name}"].train()(h), y)
    loss = cross_entropy(h, y) + loss
    loss.backward()
    descend(learner, rows, lr=lr, job=job)
    return h.detach()


def play(
    jobs: dict[str, Job],
    data: dict[str, Data],
    rounds: list[Round],
    made_one: dict[int, list[str]],
    *,
    strategy: str,
    momentum: str = "average",
    carry: Carry = lambda weights: weights,
    exits: list[str] = (),
    exit_weight: float = 0.3,
    lr_factor: float = 1.0,
) -> tuple[dict[str, Tensors], Tensors]:
    """Compute a run: device id to its tensors, and the server's with the segments that were made one."""
    devices = {name: Device(shallow_device(job)) for name, job in jobs.items()}
    job = next(iter(jobs.values()))
    rows = server_rows(jobs, list(exits), job.exit_head)
    shallowest = max(rows, key=lambda name: len(rows[name]))
    copies = {name: Learner(copy.deepcopy(of)) for name, of in rows.items()}
    servers = copies if strategy == "averaging" else dict.fromkeys(jobs, Learner(rows[shallowest]))
    made: Tensors = {}
    said: dict[str, dict[int, torch.Tensor]] = {}
    newest = {"segments": 0, "logits": 0}
    for number, round_ in enumerate(rounds, start=1):
        sent, spoken = {}, {name: {} for name in jobs}
        for name, seqs in round_.trained.items():
            device = devices[name]
            begin_round(device, jobs[name], newest, made, said.get(name, {}), carry)
            for seq in seqs:
                sent[name, seq] = train_device(device, name, jobs[name], data[name], round_=number, seq=seq)
        for name, seq in round_.applied:
            *batch, indices = sent[name, seq]
            own = [(row, dict(servers[name].rows)[row]) for row, _ in rows[name]]
            seed = derive_seed(job.seed, "server", number, name, seq)
            lr = learning_rate(job, number) * lr_factor
            z = train_server(servers[name], own, batch, lr=lr, job=job, seed=seed, exit_weight=exit_weight)
            spoken[name] |= {int(i): row for i, row in zip(indices, z, strict=True)}
        if strategy == "averaging" and round_.weights:
            average(servers, round_.weights, momentum)
        if number in made_one:
            made |= make_one(devices, jobs, made_one[number], carry)
            newest["segments"] = number
        if job.from_server.weight and number < job.rounds:
            said, newest["logits"] = spoken, number
    of_all = {f"segments/{name}": tensor for name, tensor in made.items()}
    if newest["segments"]:
        of_all["segments/round"] = torch.tensor(newest["segments"])
    return {n: d.learner.tensors() for n, d in devices.items()}, servers[shallowest].tensors() | of_all
