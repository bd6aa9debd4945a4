"""What a device does with a batch beside the training step: its recipe, samples, codec, digest and chunks."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.nn.recipe import train_recipe
from toolkit.nn.steps import Forward
from toolkit.wire import chunks, payloads
from toolkit.wire.job import ModelSpec
from toolkit.wire.limits import DEFAULT_CHUNK_BYTES
from toolkit.wire.payloads import Batch, PayloadAddress

N_BATCHES = 4
"""Batches of made-up samples that a measurement draws from."""


class MadeUpData:
    """Random samples of a model's shape, drawn by the recipes of a run; small, since their number costs no time.

    Args:
        model: whose inputs they are.
        batch_size: samples a step.
        seed: of the samples.
    """

    def __init__(self, model: ModelSpec, *, batch_size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        n = N_BATCHES * batch_size
        self._x: NDArray[np.float32] = rng.standard_normal((n, *model.input_shape), np.float32)
        self._y: NDArray[np.int64] = rng.integers(model.n_classes, size=n)
        self._batch_size = batch_size

    def batch(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Draw a batch as the agent draws it: samples (B, ...), labels (B,), seed of the step."""
        round_, seq = divmod(index, N_BATCHES)
        recipe = train_recipe(
            seed=0,
            device="board",
            fingerprint="made-up-data",
            n_train=len(self._y),
            batch_size=self._batch_size,
            round_steps=0,
            round_=round_ + 1,
            seq=seq + 1,
        )
        x, y = self._x[recipe.indices], self._y[recipe.indices]
        return torch.from_numpy(x), torch.from_numpy(y), recipe.seed


def encode_batch(forward: Forward, y: torch.Tensor, *, cut: str, codec: str) -> bytearray:
    """Lay a step's results out as a payload, as an agent does.

    Args:
        forward: of a step on a batch.
        y: its labels (B,).
        cut: of the job.
        codec: of the job.
    """
    address = PayloadAddress(device="board", round=1, seq=1, term=1, incarnation=1, plan_version=1, cut=cut)

    batch = Batch(
        kind="train",
        h=forward.h.contiguous().cpu().numpy(),
        y=y.cpu().numpy(),
        exit_loss=forward.loss,
        exit_correct=forward.n_correct,
        segment_step=0,
    )
    return payloads.encode(address, batch, codec)


def handing_over(forward: Forward, y: torch.Tensor, *, cut: str, codec: str) -> Callable[[int], object]:
    """Make what an agent does between a step and its link, for one codec."""

    def hand_over(_: int) -> int:
        payload = encode_batch(forward, y, cut=cut, codec=codec)
        pieces = chunks.split(payload, payload_id=os.urandom(16), chunk_bytes=DEFAULT_CHUNK_BYTES)
        return sum(map(len, pieces))

    return hand_over
