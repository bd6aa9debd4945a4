"""Seeds derived from the run's one seed: each use names itself, so none shares a stream with another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*parts: str | int) -> int:
    """Mix a run's seed with the names of what it is for.

    Returns: in [0, 2**63), the same on every machine.
    """
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the block with torch's generators at ``seed``; afterwards they stand where they stood."""
    if torch.cuda.is_available():
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            yield
        return
    # Without a GPU torch.manual_seed formats a stack trace at each call, for the day there may be one: 0.3 ms a step.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
