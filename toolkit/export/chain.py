"""Segments one after the other with no gate in between: what every exit says of every sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.folder import Bundle
from toolkit.runtime.preprocess import normalise
from toolkit.runtime.segment import OnnxSegment

BATCH = 256


def batches(x: NDArray[np.float32], size: int = BATCH) -> Iterator[NDArray[np.float32]]:
    """Walk over (N, ...) in batches; the last may be smaller."""
    return (x[first : first + size] for first in range(0, len(x), size))


def activations_before(chain: Sequence[OnnxSegment], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What comes out of a chain: inputs (B, ...), normalised, to activations (B, ...)."""
    for segment in chain:
        if segment.record.activations is not None:
            [x] = segment.run(x, segment.record.activations)
    return x


def every_exit(chain: Sequence[OnnxSegment], x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Logits (N, K) of every exit on every sample.

    Args:
        chain: in order.
        x: (N, ...), normalised.
    """
    collected: list[list[NDArray[np.float32]]] = []
    for h in batches(x):
        collected.append([])
        values = [h]
        for segment in chain:
            record = segment.record
            logits = () if record.exit is None else (record.exit.logits,)
            onward = () if record.activations is None else (record.activations,)
            values = segment.run(values[-1], *logits, *onward)
            collected[-1] += values[: len(logits)]
    return [np.concatenate(of_one) for of_one in zip(*collected, strict=True)]


def load_chain(bundle: Bundle) -> list[OnnxSegment]:
    """Load the default variant of each segment of a bundle, one thread each.

    Raises: BundleError: a segment can't be loaded.
    """
    chain = []
    for record in bundle.manifest.segments:
        file = record.file_of()
        chain.append(OnnxSegment(bundle.read(file), record, where=str(bundle.folder / file)))
    return chain


def exits_of_bundle(
    chain: Sequence[OnnxSegment], bundle: Bundle, raw: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    """Logits of every exit of a bundle on raw samples (N, ...)."""
    preprocessing = bundle.manifest.preprocessing
    return every_exit(chain, normalise(raw, preprocessing.mean, preprocessing.std))
