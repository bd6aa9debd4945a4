"""What the benches of the wire send: one batch of activations, again and again."""

from __future__ import annotations

import multiprocessing

import numpy as np

from toolkit.wire import payloads
from toolkit.wire.payloads import Batch

TOPIC = "hsee/v1/home/data/bench/ant/up"
DOWN = "hsee/v1/home/data/bench/ant/down"
ADDRESS = payloads.PayloadAddress(
    device="ant", round=1, seq=1, term=1, incarnation=1, plan_version=1, cut="layer1"
)
SHAPE = (64, 16, 16)
BATCH_SIZE = 32
N_BATCHES = 60
TURNS = 5
OUTSTANDING_BYTES = 8 * 1024 * 1024
"""As the agent: no further batch is handed to the link while it holds so much."""
MIB = 2**20
spawn = multiprocessing.get_context("spawn")


def activations(seed: int = 0) -> Batch:
    """Half zeros, as behind a ReLU."""
    rng = np.random.default_rng(seed)
    h = np.maximum(rng.normal(size=(BATCH_SIZE, *SHAPE)).astype(np.float32), 0)
    return Batch("train", h, rng.integers(0, 10, BATCH_SIZE), 0.5, 1, 1)
