"""What a run came to: every route's accuracy on own and on common samples, and digests of all weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from coordinator.checkpoints import Checkpoints
from toolkit.nn.cut import take_suffix
from toolkit.nn.datasets import Dataset
from toolkit.nn.steps import build_device_model
from toolkit.nn.weights import load_tensors, load_training_state
from toolkit.nn.zoo import build_network
from toolkit.runtime.preprocess import normalise
from toolkit.simulate.actors import TRAINING_FILE
from toolkit.simulate.data import FleetData
from toolkit.wire import tensors
from toolkit.wire.job import Job

EVAL_BATCH = 256


class Accuracy(msgspec.Struct, frozen=True):
    """Of one route: share of right answers on the device's own held-out samples, and on the common test set."""

    own: float
    common: float | None = None


@dataclass(frozen=True, slots=True)
class RunWeights:
    """Each device's cut, and SHA-256 of the parameters and buffers of each device and of the server."""

    cuts: Mapping[str, str]
    devices: Mapping[str, str]
    server: str


def evaluate_run(path: Path, data: FleetData) -> tuple[dict[str, dict[str, Accuracy]], RunWeights]:
    """Evaluate the last state of a finished run, every route over all its samples.

    Args:
        path: of the run folder.
        data: that it was trained on.
    Returns: device to its routes, "exit" and "server"; and the digests.
    Raises: CheckpointError: the folder is damaged.
    """
    newest = Checkpoints(path / "checkpoints").kept()[-1]
    state, theta = newest.state(), newest.tensors()
    weights = {name: tensor for name, tensor in theta.items() if not name.startswith("momentum/")}
    network = build_network(state.common.model, seed=state.common.seed)
    suffixes = {cut: take_suffix(network, cut) for cut in set(state.cuts.values())}
    for suffix in suffixes.values():
        suffix.load_state_dict({name: weights[name] for name in suffix.state_dict()})
    found, digests = {}, {}
    for device, job in state.jobs.items():
        own = path / "devices" / device / TRAINING_FILE
        model = build_device_model(
            job.model, cut=job.cut, exit_head=job.exit_head, optimizer=job.optimizer, seed=job.seed
        )
        if own.exists():  # a device that was lost in its first round has nothing but what it began with
            trained = load_tensors(own)
            del trained["cursor"]
            load_training_state(model.modules, model.optimizer, trained)
        digests[device] = digest_of(model.modules.state_dict())
        routes = {
            "exit": nn.Sequential(model.segment, model.exit_head),
            "server": nn.Sequential(model.segment, Carried(job.codec), suffixes[job.cut]),
        }
        found[device] = accuracies(routes, job, data.devices[device].held_out, data.test)
    return found, RunWeights(state.cuts, digests, digest_of(weights))


def accuracies(
    routes: Mapping[str, nn.Module], job: Job, held_out: Dataset, test: Dataset | None
) -> dict[str, Accuracy]:
    """Evaluate routes, in eval mode, on a device's own samples and on common ones."""
    own, common = prepare(held_out, job), None if test is None else prepare(test, job)
    return {
        name: Accuracy(accuracy(route, *own), None if common is None else accuracy(route, *common))
        for name, route in routes.items()
    }


@torch.no_grad()
def accuracy(route: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of samples whose largest logit is their label's."""
    route.eval()
    n_correct = 0
    for start in range(0, len(y), EVAL_BATCH):
        logits = route(x[start : start + EVAL_BATCH])
        n_correct += int((logits.argmax(1) == y[start : start + EVAL_BATCH]).sum())
    return n_correct / len(y)


def prepare(dataset: Dataset, job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples (N, ...) normalised, and labels (N,) in the run's class order."""
    index = np.array([job.classes.index(name) for name in dataset.classes], np.int64)
    x = normalise(dataset.x, job.mean, job.std)
    return torch.from_numpy(x), torch.from_numpy(index[dataset.y])


class Carried(nn.Module):
    """What the wire does to activations: through a codec and back."""

    def __init__(self, codec: str) -> None:
        super().__init__()
        self._codec = codec

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """(B, ...) to the same shape."""
        if self._codec.startswith("float32"):
            return h
        encoded = tensors.encode_activations("h", h.contiguous().numpy(), self._codec)
        return torch.from_numpy(tensors.decode(encoded.spec, memoryview(encoded.content)))


def digest_of(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes, ascending by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
