"""Trains this board's segment and exit; imported only when a job arrives, because it brings torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from device_agent.course import CHECKPOINT_EVERY_S, Course, Cursor
from device_agent.local_data import LocalData
from device_agent.saved_place import CURSOR
from device_agent.state import DeviceFolder
from toolkit.errors import RemoteProtocolError, TrainingError
from toolkit.nn.compute import choose_compute
from toolkit.nn.datasets import Dataset
from toolkit.nn.layout import layout_of
from toolkit.nn.recipe import Recipe, eval_batches_in_round, steps_in_round, train_recipe
from toolkit.nn.segment_record import SegmentRecord
from toolkit.nn.steps import (
    Forward,
    Teacher,
    build_device_model,
    device_eval,
    device_remake,
    device_step,
    lr_at,
)
from toolkit.nn.weights import MOMENTUM, content_of, load_training_state, tensors_of, training_state
from toolkit.runtime.preprocess import normalise
from toolkit.wire.job import Job
from toolkit.wire.messages import Lowered, PayloadKind
from toolkit.wire.payloads import Batch
from toolkit.wire.weights import FlatWeights, to_logits, to_weights

EXTRA_ROUND = 2**31
"""The recipes of extra steps are those of rounds from this one on: a run has fewer."""
TAKEN = "taken/"
"""What the names of tensors begin with that the coordinator handed down, in what training goes on from."""


class Trainer(Course):
    """One device's side of a run.

    A round's list is its training batches (seq 1..n_train) and then its held-out batches. Training moves along the
    list once; any batch of it can be made again without changing anything. In some rounds the list ends with the
    segment's weights; what the coordinator made of them is taken before the first step of a later round.

    Args:
        job: what to train.
        device: this device's id.
        data: of this board.
        folder: training goes on from what it holds.
        compute: "auto", "cpu" or "cuda".
        checkpoint_every_s: longest training that a power cut may cost.

    Raises: ModelError, CutError: the job names what this version does not have. CheckpointError: saved state is
        damaged or of another run.
    """

    def __init__(
        self,
        job: Job,
        *,
        device: str,
        data: LocalData,
        folder: DeviceFolder,
        compute: str = "auto",
        checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    ) -> None:
        super().__init__(folder, checkpoint_every_s=checkpoint_every_s)
        torch.set_num_threads(job.threads)
        self._job = job
        self._device = device
        self._torch_device = choose_compute(compute)
        self._fingerprint = data.fingerprint
        self._x, self._y = self._prepare(data.train)
        self._held_x, self._held_y = self._prepare(data.held_out)
        folder.save_held_out(data.held_out.x, self._held_y)
        self._model = build_device_model(
            job.model,
            cut=job.cut,
            exit_head=job.exit_head,
            optimizer=job.optimizer,
            seed=job.seed,
            device=self._torch_device,
            all_exits=job.all_exits,
        )
        self.layout = layout_of(self._model.modules, with_momentum=job.sync.momentum == "average")
        self.n_train = steps_in_round(len(self._y), job.batch_size, job.round_steps)
        self._n_eval = eval_batches_in_round(len(self._held_y), job.batch_size, job.eval_samples)
        self.lowered_round = 0
        self._teacher: tuple[torch.Tensor, torch.Tensor] | None = None
        self._best_accuracy = folder.best_accuracy()
        folder.check_job(job)
        self.take_up()

    @property
    def n_eval(self) -> int:
        """Held-out batches in the round's list."""
        return self._n_eval if self._job.evaluates(self.round) else 0

    @property
    def n_batches(self) -> int:
        """Batches in the round's list, training and held-out; what comes behind them are weights."""
        return self.n_train + self.n_eval

    @property
    def max_lowered_bytes(self) -> int:
        """Nothing that is handed down for this job is longer."""
        n_logits = self.n_train * self._job.batch_size * len(self._job.classes)
        return self.layout.lengths.payload_bytes(n_logits if self._job.from_server.weight else 0)

    @property
    def is_untouched(self) -> bool:
        """Whether nothing was trained since the round began: what is handed down can be taken."""
        return self.seq == 0 or self.n_steps == 0

    def _step(self, seq: int) -> Batch:
        """See :class:`Course`.

        Raises: TrainingError: the loss is not finite.
        """
        x, y, seed = self._batch(seq)
        self._model.optimizer.lr = lr_at(self._job.optimizer, round_=self.round, rounds=self._job.rounds)
        forward = device_step(
            self._model,
            x,
            y,
            seed=seed,
            among_exits=self._job.among_exits,
            from_server=self._job.from_server,
            teacher=self._teacher_of(seq),
        )
        self._check_loss(forward.objective, f"round {self.round}, step {seq}", step=seq)
        return self._to_batch("train", forward, y)

    def _extra_step(self, index: int) -> None:
        """See :class:`Course`: on the batches of rounds that no run has."""
        n_train = self.n_train
        recipe = self._recipe(EXTRA_ROUND + (index - 1) // n_train, (index - 1) % n_train + 1)
        x, y = self._tensors(self._x[recipe.indices], self._y[recipe.indices])
        self._model.optimizer.lr = lr_at(self._job.optimizer, round_=self.round, rounds=self._job.rounds)
        forward = device_step(self._model, x, y, seed=recipe.seed, among_exits=self._job.among_exits)
        self._check_loss(forward.objective, f"extra step {index}", step=index)

    def make_again(self, seq: int) -> Batch:
        """Make a batch of the list that training has passed, or a held-out one; changes nothing."""
        if seq > self.n_train:
            start = (seq - self.n_train - 1) * self._job.batch_size
            stop = min(start + self._job.batch_size, self._job.eval_samples, len(self._held_y))
            x, y = self._tensors(self._held_x[start:stop], self._held_y[start:stop])
            return self._to_batch("eval", device_eval(self._model, x, y), y)
        x, y, seed = self._batch(seq)
        return self._to_batch("train", device_remake(self._model, x, y, seed=seed), y, remade=True)

    def weights(self) -> FlatWeights:
        """Lay segment and exits out as they stand, for the coordinator to make one of all devices'."""
        return self.layout.flatten(training_state(self._model.modules, self._model.optimizer))

    def take_lowered(self, header: Lowered, body: memoryview) -> None:
        """Take what the coordinator made of a round, as a whole or not at all.

        Args:
            header: of the payload, whose digest was checked.
            body: likewise.
        Raises: RemoteProtocolError: it does not fit the job.
        """
        job, weights, logits = self._job, None, None
        if job.sync.mode != "none" and any(spec.name == "values" for spec in header.tensors):
            weights = self.layout.named(to_weights(header, body, self.layout.lengths))
        if job.from_server.weight:
            logits = to_logits(header, body, n_classes=len(job.classes))
        samples = None if logits is None else self._samples_of(header.round, len(logits))
        if weights is not None:
            held = training_state(self._model.modules, self._model.optimizer)
            kept = {n: t for n, t in held.items() if n.startswith(MOMENTUM) and job.sync.momentum == "keep"}
            load_training_state(self._model.modules, self._model.optimizer, {**kept, **weights})
        if logits is not None and samples is not None:
            of_sample, known = self._teacher or self._no_teacher()
            of_sample[samples] = torch.from_numpy(logits).to(self._torch_device)
            known[samples] = True
            self._teacher = of_sample, known
        self.lowered_round = header.round

    def _evaluate(self) -> float | None:
        """See :class:`Course`: all exits on all held-out samples."""
        if not self._job.evaluates(self.round):
            return None
        accuracy, *shallow = self._held_out_accuracy()
        if accuracy >= self._best_accuracy:  # ties to the latest
            self._best_accuracy = accuracy
            self._folder.save_best(self._model.modules.state_dict(), self._record(accuracy, shallow))
        return accuracy

    def _content(self, cursor: Cursor) -> bytes:
        """See :class:`Course`."""
        state = training_state(self._model.modules, self._model.optimizer) | self._taken()
        return content_of({**state, CURSOR: torch.tensor(cursor)})

    def _load(self, content: bytes, where: Path) -> Cursor:
        """See :class:`Course`."""
        tensors = tensors_of(content, where=where)
        taken = {name: tensors.pop(name) for name in list(tensors) if name.startswith(TAKEN)}
        cursor = Cursor(*tensors.pop(CURSOR).tolist())
        load_training_state(self._model.modules, self._model.optimizer, tensors)
        self._load_taken(taken)
        return cursor

    def _check_loss(self, loss: float, where: str, *, step: int) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                f"The exit's loss of device {self._device!r} is {loss} in {where}.",
                hint="Lower the learning rate (run.lr), or look for damaged samples in this device's data.",
                device=self._device,
                round=self.round,
                step=step,
            )

    def _held_out_accuracy(self) -> list[float]:
        """Of the exit at the cut, then of those before it, shallow first."""
        n_correct = np.zeros(1 + len(self._model.shallow_heads), np.int64)
        for start in range(0, len(self._held_y), self._job.batch_size):
            stop = start + self._job.batch_size
            x, y = self._tensors(self._held_x[start:stop], self._held_y[start:stop])
            forward = device_eval(self._model, x, y)
            n_correct += [forward.n_correct, *forward.shallow_correct]
        return [int(n) / len(self._held_y) for n in n_correct]

    def _record(self, accuracy: float, shallow: Sequence[float]) -> SegmentRecord:
        return SegmentRecord(
            device=self._device,
            job=self._job,
            round=self.round,
            exit_accuracy=accuracy,
            n_eval=len(self._held_y),
            software=_software(),
            shallow_accuracy=dict(zip(self._model.shallow_heads, shallow, strict=True)),
        )

    def _taken(self) -> dict[str, torch.Tensor]:
        """What the coordinator handed down and training goes on from; empty where it hands nothing down."""
        if not self.lowered_round:
            return {}
        taken = {f"{TAKEN}round": torch.tensor(self.lowered_round)}
        if self._teacher is not None:
            taken[f"{TAKEN}logits"], taken[f"{TAKEN}known"] = self._teacher
        return taken

    def _load_taken(self, taken: Mapping[str, torch.Tensor]) -> None:
        if taken:
            self.lowered_round = int(taken[f"{TAKEN}round"])
        if f"{TAKEN}logits" in taken:
            logits, known = (taken[TAKEN + name].to(self._torch_device) for name in ("logits", "known"))
            self._teacher = logits, known

    def _no_teacher(self) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (len(self._y), len(self._job.classes))
        known = torch.zeros(shape[0], dtype=torch.bool, device=self._torch_device)
        return torch.zeros(shape, device=self._torch_device), known

    def _teacher_of(self, seq: int) -> Teacher | None:
        if self._teacher is None:
            return None
        indices = torch.from_numpy(self._recipe(self.round, seq).indices).to(self._torch_device)
        logits, known = self._teacher
        return Teacher(logits[indices], known[indices])

    def _samples_of(self, round_: int, n_samples: int) -> NDArray[np.int64]:
        """Indices of the first training samples of a round.

        Raises: RemoteProtocolError: so many that no batch of the round ends there.
        """
        found, n_found = [], 0
        for seq in range(1, self.n_train + 1):
            found.append(self._recipe(round_, seq).indices)
            n_found += len(found[-1])
            if n_found >= n_samples:
                break
        # PROTOCOL.md 19: "A receiver MUST refuse so many rows that no beginning of its list has them."
        if n_found != n_samples:
            raise RemoteProtocolError(f"Logits of {n_samples} samples fit no beginning of round {round_}.")
        return np.concatenate(found)

    def _prepare(self, dataset: Dataset) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Normalise, and map this board's class indices to the run's."""
        index = np.array([self._job.classes.index(name) for name in dataset.classes], np.int64)
        return normalise(dataset.x, self._job.mean, self._job.std), index[dataset.y]

    def _batch(self, seq: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        recipe = self._recipe(self.round, seq)
        x, y = self._tensors(self._x[recipe.indices], self._y[recipe.indices])
        return x, y, recipe.seed

    def _recipe(self, round_: int, seq: int) -> Recipe:
        return train_recipe(
            seed=self._job.seed,
            device=self._device,
            fingerprint=self._fingerprint,
            n_train=len(self._y),
            batch_size=self._job.batch_size,
            round_steps=self._job.round_steps,
            round_=round_,
            seq=seq,
        )

    def _tensors(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(x).to(self._torch_device), torch.from_numpy(y).to(self._torch_device)

    def _to_batch(
        self, kind: PayloadKind, forward: Forward, y: torch.Tensor, *, remade: bool = False
    ) -> Batch:
        return Batch(
            kind=kind,
            h=forward.h.float().contiguous().cpu().numpy(),
            y=y.cpu().numpy(),
            exit_loss=forward.loss,
            exit_correct=forward.n_correct,
            segment_step=self.n_steps,
            remade=remade,
            shallow_correct=forward.shallow_correct,
        )


@cache
def _software() -> dict[str, str]:
    """Versions of what made a segment; reading one takes milliseconds."""
    return {name: metadata.version(name) for name in ("hsee", "torch", "numpy")}
