"""Trains this board's segment and exit; imported only when a job arrives, because it brings torch."""

from __future__ import annotations

import math
from functools import cache
from importlib import metadata

import numpy as np
import torch
from numpy.typing import NDArray

from device_agent.local_data import LocalData
from device_agent.state import DeviceFolder
from toolkit.errors import TrainingError
from toolkit.nn.compute import choose_compute
from toolkit.nn.datasets import Dataset
from toolkit.nn.recipe import eval_batches_in_round, steps_in_round, train_recipe
from toolkit.nn.segment_record import SegmentRecord
from toolkit.nn.steps import (
    Forward,
    build_device_model,
    device_eval,
    device_remake,
    device_step,
    lr_at,
)
from toolkit.nn.weights import load_training_state, training_state
from toolkit.runtime.preprocess import normalise
from toolkit.wire.job import Job
from toolkit.wire.messages import PayloadKind
from toolkit.wire.payloads import Batch


class Trainer:
    """One device's side of a run.

    A round's list is its training batches (seq 1..n_train) and then its held-out batches. Training moves along the
    list once; any batch of it can be made again without changing anything.

    Args:
        job: what to train.
        device: this device's id.
        data: of this board.
        folder: training goes on from what it holds.
        compute: "auto", "cpu" or "cuda".

    Raises: ModelError, CutError: the job names what this version does not have. CheckpointError: saved state is
        damaged or of another run.
    """

    def __init__(
        self, job: Job, *, device: str, data: LocalData, folder: DeviceFolder, compute: str = "auto"
    ) -> None:
        torch.set_num_threads(job.threads)
        self._job = job
        self._device = device
        self._folder = folder
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
        )
        self.n_train = steps_in_round(len(self._y), job.batch_size, job.round_steps)
        self.n_eval = eval_batches_in_round(len(self._held_y), job.batch_size, job.eval_samples)
        self.round = 0
        self.seq = 0
        self._furthest = (0, 0)
        self.n_steps = 0
        self._finished_round = 0
        self._best_accuracy = folder.best_accuracy()
        folder.check_job(job)
        saved = folder.load_training()
        if saved is not None:
            tensors, (self.round, self.seq, self.n_steps) = saved
            load_training_state(self._model.modules, self._model.optimizer, tensors)
            self._finished_round = self.round if self.seq >= self.n_train else self.round - 1

    @property
    def n_items(self) -> int:
        """Length of a round's list."""
        return self.n_train + self.n_eval

    def enter_round(self, round_: int, seq: int) -> None:
        """Go to a round; what an earlier one still owed is not trained on any more.

        A batch is trained on once: in a round that is over, batches are made again and nothing is trained. And none
        is left out because somebody says that it came already, except by a device that has lost what it learned.

        Args:
            round_: the open one.
            seq: of it, the last that a device without any training starts after: 0 at the beginning.
        """
        if round_ == self.round:
            return
        if self.round:
            self.finish_round()
        self._furthest = reached, reached_seq = self._cursor()
        self.round = round_
        if round_ < reached:
            self.seq = self.n_train
        elif round_ == reached:
            self.seq = reached_seq
        else:
            self.seq = 0 if reached else min(seq, self.n_train)

    def train_next(self) -> Batch:
        """Train on the next batch of the round.

        Raises: TrainingError: the loss is not finite.
        """
        seq = self.seq + 1
        x, y, seed = self._batch(seq)
        self._model.optimizer.lr = lr_at(self._job.optimizer, round_=self.round, rounds=self._job.rounds)
        forward = device_step(self._model, x, y, seed=seed)
        if not math.isfinite(forward.loss):
            raise TrainingError(
                f"The exit's loss of device {self._device!r} is {forward.loss} in round {self.round}, step {seq}.",
                hint="Lower the learning rate (run.lr), or look for damaged samples in this device's data.",
                device=self._device,
                round=self.round,
                step=seq,
            )
        batch = self._to_batch("train", forward, y)
        self.seq = seq
        self.n_steps += 1
        return batch

    def make_again(self, seq: int) -> Batch:
        """Make a batch of the list that training has passed, or a held-out one; changes nothing."""
        if seq > self.n_train:
            start = (seq - self.n_train - 1) * self._job.batch_size
            stop = min(start + self._job.batch_size, self._job.eval_samples, len(self._held_y))
            x, y = self._tensors(self._held_x[start:stop], self._held_y[start:stop])
            return self._to_batch("eval", device_eval(self._model, x, y), y)
        x, y, seed = self._batch(seq)
        return self._to_batch("train", device_remake(self._model, x, y, seed=seed), y, remade=True)

    def finish_round(self) -> float | None:
        """Evaluate the exit on all held-out samples, keep the segment if it is the best so far, and save.

        Returns: accuracy, or None where this round was finished already.
        """
        if self._finished_round >= self.round:
            return None
        self._finished_round = self.round
        accuracy = self._held_out_accuracy()
        state = training_state(self._model.modules, self._model.optimizer)
        if accuracy >= self._best_accuracy:  # ties to the latest
            self._best_accuracy = accuracy
            weights = {name: tensor for name, tensor in state.items() if not name.startswith("momentum/")}
            self._folder.save_best(weights, self._record(accuracy))
        self._folder.save_training(state, (*self._cursor(), self.n_steps))
        return accuracy

    def save(self) -> None:
        """Write what training goes on from."""
        state = training_state(self._model.modules, self._model.optimizer)
        self._folder.save_training(state, (*self._cursor(), self.n_steps))

    def _cursor(self) -> tuple[int, int]:
        """How far training has come, as (round, seq)."""
        return max(self._furthest, (self.round, self.seq))

    def _held_out_accuracy(self) -> float:
        n_correct = 0
        for start in range(0, len(self._held_y), self._job.batch_size):
            stop = start + self._job.batch_size
            x, y = self._tensors(self._held_x[start:stop], self._held_y[start:stop])
            n_correct += device_eval(self._model, x, y).n_correct
        return n_correct / len(self._held_y)

    def _record(self, accuracy: float) -> SegmentRecord:
        return SegmentRecord(
            device=self._device,
            job=self._job,
            round=self.round,
            exit_accuracy=accuracy,
            n_eval=len(self._held_y),
            software=_software(),
        )

    def _prepare(self, dataset: Dataset) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Normalise, and map this board's class indices to the run's."""
        index = np.array([self._job.classes.index(name) for name in dataset.classes], np.int64)
        return normalise(dataset.x, self._job.mean, self._job.std), index[dataset.y]

    def _batch(self, seq: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        recipe = train_recipe(
            seed=self._job.seed,
            device=self._device,
            fingerprint=self._fingerprint,
            n_train=len(self._y),
            batch_size=self._job.batch_size,
            round_steps=self._job.round_steps,
            round_=self.round,
            seq=seq,
        )
        x, y = self._tensors(self._x[recipe.indices], self._y[recipe.indices])
        return x, y, recipe.seed

    def _tensors(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(x).to(self._torch_device), torch.from_numpy(y).to(self._torch_device)

    def _to_batch(
        self, kind: PayloadKind, forward: Forward, y: torch.Tensor, *, remade: bool = False
    ) -> Batch:
        return Batch(
            kind=kind,
            h=forward.h.contiguous().cpu().numpy(),
            y=y.cpu().numpy(),
            exit_loss=forward.loss,
            exit_correct=forward.n_correct,
            segment_step=self.n_steps,
            remade=remade,
        )


@cache
def _software() -> dict[str, str]:
    """Versions of what made a segment; reading one takes milliseconds."""
    return {name: metadata.version(name) for name in ("hsee", "torch", "numpy")}
