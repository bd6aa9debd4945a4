"""int8 beside float32, and which of the two this machine should run: measured, never assumed."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.manifest import Segment, VariantName
from toolkit.errors import BundleError
from toolkit.export.chain import activations_before, batches, every_exit
from toolkit.export.drop_bound import drop_upper_bound
from toolkit.export.timing import interleaved_ms
from toolkit.runtime.segment import OnnxSegment

CALIBRATION_SAMPLES = 256
"""Samples that value ranges are taken from, spread over all."""
_BATCH = 32


@dataclass(frozen=True, slots=True)
class Comparison:
    """int8 against float32 for one segment, on this machine and these samples.

    Attributes:
        content: of the int8 file.
        segment: it, loaded.
        accuracy: of the segment's exit in int8, all samples answered; None without labels.
        drop: share of samples lost against float32, net; without labels: answered otherwise.
        drop_upper: its upper 95 % bound.
        ms: one sample, batch 1, one thread, median; ``float_ms`` in turns with it.
        default: the faster of those that keep the accuracy.
        reason: why, in one sentence.
    """

    content: bytes
    segment: OnnxSegment
    accuracy: float | None
    drop: float
    drop_upper: float
    ms: float
    float_ms: float
    default: VariantName
    reason: str


def to_int8(content: bytes, inputs: NDArray[np.float32], *, input_name: str) -> bytes:
    """Quantise an ONNX file: QDQ, weights int8 per channel, activations uint8, ranges from real samples.

    Unsigned activations are what x86 with VNNI multiplies fast: twice to three times as fast as signed ones here. On
    x86 without VNNI such products can saturate, which is another reason to look at the accuracy measured there.

    Args:
        content: of a float32 file.
        inputs: (N, ...), what the graph takes.
        input_name: of the graph's input.
    Raises: BundleError: ONNX Runtime can't quantise it.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = batches(inputs, _BATCH)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {input_name: batch}

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(content)
        try:
            with _quiet():
                quantize_static(
                    source,
                    target,
                    Reader(),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                )
        except (ValueError, RuntimeError, TypeError, KeyError) as exc:
            raise BundleError(
                f"ONNX Runtime can't quantise this model: {exc}.", hint="Export it without --int8."
            ) from exc
        return target.read_bytes()


def compare_int8(
    content: bytes,
    record: Segment,
    before: list[OnnxSegment],
    x: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    *,
    float_logits: NDArray[np.float32],
    target_drop: float,
) -> Comparison:
    """Quantise a segment, measure both, and choose.

    Args:
        content: of its float32 file.
        record: of it; it has an exit.
        before: the segments before it, as they will run.
        x: (N, ...), normalised samples at the cascade's beginning.
        labels: (N,), or None.
        float_logits: (N, K), of its exit where all of the cascade is float32.
        target_drop: points of accuracy that may be lost, held against the upper 95 % bound.
    Raises: BundleError: ONNX Runtime can't quantise or load it.
    """
    picked = np.unique(np.linspace(0, len(x) - 1, CALIBRATION_SAMPLES).astype(np.int64))
    inputs = activations_before(before, x[picked])
    quantised = to_int8(content, inputs, input_name=record.input.name)
    int8 = OnnxSegment(quantised, record, where=f"{record.file} in int8")
    float32 = OnnxSegment(content, record, where=record.file)
    logits = every_exit([*before, int8], x)[-1]
    was, now = float_logits.argmax(axis=1), logits.argmax(axis=1)
    truth = was if labels is None else labels
    n_lost = int(np.count_nonzero((was == truth) & (now != truth)))
    n_won = int(np.count_nonzero((was != truth) & (now == truth)))
    drop, upper = (n_lost - n_won) / len(x), drop_upper_bound(n_lost, n_won, len(x))
    outputs = [] if record.exit is None else [record.exit.logits]
    sample = inputs[:1]
    float_ms, ms = interleaved_ms([lambda: float32.run(sample, *outputs), lambda: int8.run(sample, *outputs)])
    default, reason = choose(
        ms=ms, float_ms=float_ms, drop=drop, upper=upper, n_samples=len(x), target_drop=target_drop
    )
    accuracy = None if labels is None else float((now == labels).mean())
    return Comparison(quantised, int8, accuracy, drop, upper, ms, float_ms, default, reason)


def choose(
    *, ms: float, float_ms: float, drop: float, upper: float, n_samples: int, target_drop: float
) -> tuple[VariantName, str]:
    """Choose the faster of those that keep the accuracy.

    Args:
        ms: of int8.
        float_ms: of float32.
        drop: of int8, a share.
        upper: its upper 95 % bound.
        n_samples: that it was counted on.
        target_drop: points.
    Returns: the variant, and why in one sentence.
    """
    told = (
        f"loses {100 * drop:.2f} points on {n_samples} samples, at most {100 * upper:.2f} by the 95 % bound "
        f"({target_drop:g} allowed)"
    )
    if ms >= float_ms:
        return "float32", f"int8 is slower here ({ms:.3f} ms against {float_ms:.3f} ms)"
    speed = f"int8 is {float_ms / ms:.2f} times as fast here ({ms:.3f} ms against {float_ms:.3f} ms)"
    if 100 * upper > target_drop:
        return "float32", f"{speed}, but {told}"
    return "int8", f"{speed} and {told}"


@contextmanager
def _quiet() -> Iterator[None]:
    # ONNX Runtime warns through the root logger that a model was not optimised by a script of its own.
    logger = logging.getLogger()
    was = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = was
