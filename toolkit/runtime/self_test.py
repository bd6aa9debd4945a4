"""Whether a bundle answers here as it did where it was exported: its stored samples, in a process with capped memory.

The samples are noise in the range of the training data: they say whether the same numbers come out, and tell nothing of
anybody's data.

    python -m toolkit.runtime.self_test BUNDLE
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.folder import Bundle, open_bundle
from toolkit.bundle.manifest import Manifest
from toolkit.errors import BundleError, HseeError
from toolkit.runtime.arrays import read_npz
from toolkit.runtime.preprocess import normalise

SELF_TEST_FILE = "selftest.npz"
N_SAMPLES = 4
BASE_BYTES = 160 * 1024**2
"""numpy, ONNX Runtime and their stacks."""
BYTES_A_BYTE = 6
"""Memory for a byte of a bundle: its content, the session's own copy, packed weights, activations of four samples."""
CHILD_S = 120.0
NICENESS = 10
_TOLERANCE = 1e-3
_KILLED = "was killed or died"


def noise(manifest: Manifest) -> NDArray[np.uint8]:
    """Samples to keep in a bundle, always the same for a shape: bytes of chance."""
    return np.random.default_rng(0).integers(0, 256, (N_SAMPLES, *manifest.input_shape), np.uint8)


def as_raw(manifest: Manifest, kept: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bring kept bytes to the range of raw values that the bundle was measured on."""
    low, high = manifest.preprocessing.value_range
    return (np.float32(low) + np.float32(high - low) * kept.astype(np.float32) / np.float32(255)).astype(
        np.float32
    )


def encode_self_test(kept: NDArray[np.uint8], exits: Sequence[NDArray[np.float32]]) -> bytes:
    """Write the file's content: the bytes of chance, and what each exit's default variant says of them."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"x": kept, **{f"exit{i}": logits for i, logits in enumerate(exits)}}
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def run_self_test(bundle: Bundle) -> str:
    """Load every segment and answer the stored samples.

    Returns: what was found, in words.
    Raises: BundleError: it does not load, or does not answer as it did; DataError: the stored samples are damaged.
    """
    from toolkit.runtime.segment import OnnxSegment

    manifest = bundle.manifest
    arrays: dict[str, NDArray[Any]] = (
        read_npz(io.BytesIO(bundle.read(SELF_TEST_FILE)), bundle.folder / SELF_TEST_FILE)
        if SELF_TEST_FILE in manifest.files
        else {"x": noise(manifest)}
    )
    kept = arrays.get("x")
    if (
        kept is None
        or kept.dtype != np.uint8
        or kept.shape[1:] != manifest.input_shape
        or not 0 < len(kept) <= N_SAMPLES
    ):
        raise BundleError(
            f"{bundle.folder / SELF_TEST_FILE} holds no samples of this bundle.", file=SELF_TEST_FILE
        )
    h = normalise(as_raw(manifest, kept), manifest.preprocessing.mean, manifest.preprocessing.std)
    largest, n_exits, exact = 0.0, 0, True
    for record in manifest.segments:
        file = record.file_of()
        exact &= record.default == "float32"
        segment = OnnxSegment(bundle.read(file), record, where=str(bundle.folder / file))
        logits = () if record.exit is None else (record.exit.logits,)
        onward = () if record.activations is None else (record.activations,)
        values = segment.run(h, *logits, *onward)
        if logits:
            expected = arrays.get(f"exit{n_exits}")
            largest = max(
                largest, _difference(values[0], expected, exact=exact, where=str(bundle.folder / file))
            )
            n_exits += 1
        h = values[-1]
    told = f"{n_exits} exits on {len(kept)} stored samples"
    return (
        f"{told}, largest difference {largest:.1e}"
        if SELF_TEST_FILE in manifest.files
        else f"{told}, nothing to compare"
    )


def _difference(
    got: NDArray[np.float32], expected: NDArray[np.float32] | None, *, exact: bool, where: str
) -> float:
    if not np.isfinite(got).all():
        raise BundleError(f"{where} answers its stored samples with logits that are not finite.")
    if expected is None:
        return 0.0
    if expected.shape != got.shape:
        raise BundleError(f"{where} gives logits {got.shape}; {expected.shape} are stored.")
    off = np.abs(got - expected)
    # int8 arithmetic differs from processor to processor: there only what is not finite or absurd is found.
    allowed = _TOLERANCE * (1 + np.abs(expected)) if exact else 2 * np.abs(expected).max() + 1
    if (off > allowed).any():
        raise BundleError(
            f"{where} does not answer its stored samples as it did where it was exported: logits differ by up to {off.max():.2g}.",
            hint="This processor or this version of ONNX Runtime computes something else: export with this version.",
        )
    return float(off.max(initial=0.0))


def memory_cap(manifest: Manifest) -> int:
    """Bytes of private memory that a bundle may take for its self-test."""
    return BASE_BYTES + BYTES_A_BYTE * sum(entry.n_bytes for entry in manifest.files.values())


def try_in_child(path: Path, *, cap_bytes: int, timeout_s: float = CHILD_S) -> str:
    """Self-test a bundle in a process of its own, which may die of it: with capped memory, at low priority.

    Args:
        path: of the archive or the folder.
        cap_bytes: of private memory.
        timeout_s: how long it may take.
    Returns: what was found, in words.
    Raises: BundleError: it fails, takes too much memory, or too long.
    """
    import subprocess

    command = [sys.executable, "-m", "toolkit.runtime.self_test", str(path), str(cap_bytes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=timeout_s, env=environment)
    except subprocess.TimeoutExpired as exc:
        raise BundleError(
            f"The self-test of {path} took longer than {timeout_s:g} s.", path=str(path)
        ) from exc
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        told = {"ok": False, "why": f"its process {_KILLED} (status {done.returncode})"}
    if not told["ok"]:
        raise BundleError(
            f"The self-test of {path} failed: {told['why']}",
            hint=f"It ran with at most {cap_bytes // 1024**2} MB of memory, and nothing was changed.",
            path=str(path),
        )
    return str(told["found"])


def main(argv: Sequence[str]) -> int:
    """Be the child.

    Args:
        argv: the bundle, and the cap in bytes.
    Returns: the exit status.
    """
    import resource

    path, cap_bytes = Path(argv[0]), int(argv[1])
    resource.setrlimit(resource.RLIMIT_DATA, (cap_bytes, cap_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(NICENESS)
    try:
        told = {"ok": True, "found": run_self_test(open_bundle(path))}
    except HseeError as exc:
        told = {"ok": False, "why": exc.message}
    except MemoryError:
        told = {"ok": False, "why": "it takes more memory than it may."}
    sys.stdout.write(json.dumps(told) + "\n")
    return 0 if told["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
