"""``calibration.npz``: what a bundle remembers of its held-out samples, so that it can be calibrated without them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.folder import Bundle
from toolkit.errors import BundleError
from toolkit.runtime.arrays import read_npz

CALIBRATION_FILE = "calibration.npz"
MAX_VALUES = 4_000_000
"""Logits kept at most, all outputs together: 16 MB."""


@dataclass(frozen=True, slots=True)
class KeptSamples:
    """Held-out samples as the exits and the final route saw them; no sample itself.

    Attributes:
        ids: (N,) uint64, see :func:`sample_ids`.
        exits: (N, K) float32 an exit, in the cascade's order: logits of the default variants.
        labels: (N,) int64, or None.
        reference: (N, K) float32, the final route's logits, or None where they are not known.
        reference_origin: where these come from, in words.
    """

    ids: NDArray[np.uint64]
    exits: tuple[NDArray[np.float32], ...]
    labels: NDArray[np.int64] | None
    reference: NDArray[np.float32] | None
    reference_origin: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def of(self, rows: NDArray[np.int64]) -> KeptSamples:
        """Take some of them."""
        return KeptSamples(
            self.ids[rows],
            tuple(logits[rows] for logits in self.exits),
            None if self.labels is None else self.labels[rows],
            None if self.reference is None else self.reference[rows],
            self.reference_origin,
        )


def sample_ids(x: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Name samples by their content: the first 8 bytes of SHA-256 of the raw float32 values, little-endian.

    Args:
        x: (N, ...), raw.
    """
    digests = (hashlib.sha256(np.ascontiguousarray(sample, "<f4").tobytes()).digest()[:8] for sample in x)
    return np.asarray([int.from_bytes(digest, "little") for digest in digests], np.uint64)


def encode_kept(kept: KeptSamples) -> bytes:
    """Write the file's content; of more than :data:`MAX_VALUES` logits samples spread over all are kept."""
    n_outputs = len(kept.exits) + (kept.reference is not None)
    most = max(1, MAX_VALUES // (n_outputs * kept.exits[0].shape[1]))
    if len(kept) > most:
        kept = kept.of(np.linspace(0, len(kept) - 1, most).astype(np.int64))
    arrays: dict[str, Any] = {"ids": kept.ids, **{f"exit{i}": logits for i, logits in enumerate(kept.exits)}}
    if kept.labels is not None:
        arrays["labels"] = kept.labels
    if kept.reference is not None:
        arrays["reference"] = kept.reference
        arrays["reference_origin"] = np.asarray(kept.reference_origin)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read_kept(bundle: Bundle) -> KeptSamples | None:
    """Read what a bundle remembers; None if it remembers nothing.

    Raises: BundleError: the arrays do not fit each other or the manifest. DataError: the file is damaged.
    """
    if CALIBRATION_FILE not in bundle.manifest.files:
        return None
    where = Path(bundle.folder / CALIBRATION_FILE)
    arrays = read_npz(io.BytesIO(bundle.read(CALIBRATION_FILE)), where)
    n_exits = sum(segment.exit is not None for segment in bundle.manifest.segments)
    n = arrays["ids"].shape[:1] if "ids" in arrays else None
    logits = (np.dtype(np.float32), (*(n or ()), len(bundle.manifest.class_names)))
    expected = {"ids": (np.dtype(np.uint64), n), "labels": (np.dtype(np.int64), n), "reference": logits}
    expected |= {f"exit{i}": logits for i in range(n_exits)}
    for name, (dtype, shape) in expected.items():
        got = arrays.get(name)
        if got is None and name in ("labels", "reference"):
            continue
        if got is None or got.dtype != dtype or got.shape != shape:
            raise BundleError(
                f"{where} does not fit the bundle: {name!r} is missing, or of another type or shape.",
                hint="Export the bundle again.",
                file=CALIBRATION_FILE,
            )
    return KeptSamples(
        arrays["ids"],
        tuple(arrays[f"exit{i}"] for i in range(n_exits)),
        arrays.get("labels"),
        arrays.get("reference"),
        str(arrays.get("reference_origin", "")),
    )
