"""What a run came to: every route's answers on own and on common samples, and digests of all weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from coordinator.store.checkpoints import Checkpoints
from device_agent.state import TRAINING_FILE
from device_agent.trainer import TAKEN
from toolkit.nn.cut import depth_of
from toolkit.nn.datasets import Dataset
from toolkit.nn.server_exits import build_server_exits, take_suffix_with
from toolkit.nn.steps import DeviceModel, build_device_model, through_segment, through_suffix
from toolkit.nn.weights import bytes_of, load_tensors, load_training_state
from toolkit.nn.zoo import build_network
from toolkit.runtime.preprocess import normalise
from toolkit.simulate.data import FleetData
from toolkit.simulate.results import Accuracy
from toolkit.wire import tensors
from toolkit.wire.job import Job

AT_STAGE = "at "
EVAL_BATCH = 256


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples (N, ...) normalised, and labels (N,) in the run's class order."""

    x: torch.Tensor
    y: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Answers:
    """Logits (N, K) of each route on the same samples, and their labels (N,)."""

    logits: Mapping[str, NDArray[np.float32]]
    labels: NDArray[np.int64]

    def accuracy(self, route: str) -> float:
        """Share of samples whose largest logit is their label's."""
        return float((self.logits[route].argmax(axis=1) == self.labels).mean())


@dataclass(frozen=True, slots=True)
class DeviceAnswers:
    """One device's routes, on its own held-out samples and on the common test set where there is one."""

    own: Answers
    common: Answers | None

    def accuracy(self) -> dict[str, Accuracy]:
        """Accuracy by route, of the exit at the cut and of the end."""
        return {route: self._of(route) for route in self.own.logits if not route.startswith(AT_STAGE)}

    def exits(self) -> dict[str, Accuracy]:
        """Accuracy of every other exit on the device's route, by its stage, input first."""
        others = [route for route in self.own.logits if route.startswith(AT_STAGE)]
        return {route.removeprefix(AT_STAGE): self._of(route) for route in others}

    def _of(self, route: str) -> Accuracy:
        return Accuracy(
            self.own.accuracy(route), None if self.common is None else self.common.accuracy(route)
        )


@dataclass(frozen=True, slots=True)
class EvaluatedRun:
    """A run's devices.

    Attributes:
        answers: by device; routes are "exit" and "server", and ``AT_STAGE`` and its stage for every exit besides.
        jobs: by device.
        activation_shapes: of one sample at a device's cut, by device.
        digests: SHA-256 of the parameters and buffers of each device, and ``server_digest`` of the server.
    """

    answers: Mapping[str, DeviceAnswers]
    jobs: Mapping[str, Job]
    activation_shapes: Mapping[str, Sequence[int]]
    digests: Mapping[str, str]
    server_digest: str


def evaluate_run(path: Path, data: FleetData, *, compute: torch.device | str = "cpu") -> EvaluatedRun:
    """Evaluate the last state of a finished run, every route over all its samples.

    Args:
        path: of the run folder.
        data: that it was trained on.
        compute: where.
    Raises: CheckpointError: the folder is damaged.
    """
    newest = Checkpoints(path / "checkpoints").kept()[-1]
    state, theta = newest.state(), newest.tensors()
    weights = {name: tensor for name, tensor in theta.items() if not name.startswith("momentum/")}
    network = build_network(state.common.model, seed=state.common.seed)
    cuts = set(state.cuts.values())
    heads = build_server_exits(
        network,
        state.common.model,
        state.server.exits,
        exit_head=state.server.exit_head,
        seed=state.common.seed,
        behind=min(cuts, key=lambda cut: depth_of(network, cut)),
    )
    suffixes = {cut: take_suffix_with(network, cut, heads) for cut in cuts}
    for suffix in suffixes.values():
        suffix.load_state_dict({name: weights[name] for name in suffix.state_dict()})
        suffix.to(compute)
    common = None if data.test is None else prepare(data.test, state.common)
    found, digests = {}, {}
    for device, job in state.jobs.items():
        own = path / "devices" / device / TRAINING_FILE
        model = build_device_model(
            job.model,
            cut=job.cut,
            exit_head=job.exit_head,
            optimizer=job.optimizer,
            seed=job.seed,
            all_exits=job.all_exits,
        )
        if own.exists():  # a device that was lost in its first round has nothing but what it began with
            trained = {name: t for name, t in load_tensors(own).items() if not name.startswith(TAKEN)}
            del trained["cursor"]
            load_training_state(model.modules, model.optimizer, trained)
        digests[device] = digest_of(model.modules.state_dict())
        model.modules.to(compute)
        route = SplitRoute(model, suffixes[job.cut], job.codec)
        found[device] = answers_of(route, prepare(data.devices[device].held_out, job), common)
    return EvaluatedRun(found, state.jobs, state.activation_shapes, digests, digest_of(weights))


def answers_of(route: nn.Module, own: Samples, common: Samples | None) -> DeviceAnswers:
    """Ask a device's routes; see :func:`ask`."""
    return DeviceAnswers(ask(route, own), None if common is None else ask(route, common))


@torch.no_grad()
def ask(route: nn.Module, samples: Samples) -> Answers:
    """Pass samples through routes, in eval mode.

    Args:
        route: takes samples (B, ...) to a mapping of logits (B, K) by route.
        samples: all of them, :data:`EVAL_BATCH` at a time.
    """
    route.eval()
    compute = next(iter(route.parameters())).device
    found: dict[str, list[NDArray[np.float32]]] = {}
    for start in range(0, len(samples.y), EVAL_BATCH):
        x = samples.x[start : start + EVAL_BATCH].to(compute, copy=True)  # a stage may work in place
        for name, logits in route(x).items():
            found.setdefault(name, []).append(logits.float().cpu().numpy())
    return Answers({name: np.concatenate(parts) for name, parts in found.items()}, samples.y)


def prepare(dataset: Dataset, job: Job) -> Samples:
    """Normalise samples, and bring labels into the run's class order."""
    index = np.array([job.classes.index(name) for name in dataset.classes], np.int64)
    return Samples(torch.from_numpy(normalise(dataset.x, job.mean, job.std)), index[dataset.y])


class SplitRoute(nn.Module):
    """A device's exits, and the server's layers behind its segment: all from one pass.

    Args:
        model: of the device.
        suffix: of the server, with exits on the way or without.
        codec: that activations travel through.
    """

    def __init__(self, model: DeviceModel, suffix: nn.Module, codec: str) -> None:
        super().__init__()
        self._model, self._modules_of_device, self._suffix = model, model.modules, suffix
        self._carried = Carried(codec)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, ...) to logits (B, K) a route."""
        h, (*shallow, at_cut) = through_segment(self._model, x)
        end, behind = through_suffix(self._suffix, self._carried(h))
        others = {**dict(zip(self._model.shallow_heads, shallow, strict=True)), **behind}
        return {"exit": at_cut, "server": end, **{AT_STAGE + stage: z for stage, z in others.items()}}


class NamedRoute(nn.Module):
    """One network under the name of its route."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self._name, self._network = name, network

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, ...) to logits (B, K)."""
        return {self._name: self._network(x)}


class Carried(nn.Module):
    """What the wire does to activations: through a codec and back."""

    def __init__(self, codec: str) -> None:
        super().__init__()
        self._codec = codec

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(B, ...) to the same shape."""
        if self._codec.startswith("float32"):
            return h.float()
        encoded = tensors.encode_activations("h", h.float().contiguous().cpu().numpy(), self._codec)
        return torch.from_numpy(tensors.decode(encoded.spec, memoryview(encoded.content))).to(h.device)


def digest_of(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes, ascending by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
