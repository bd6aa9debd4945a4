"""Arrays to bytes and back: float32, float16, int8 with a scale a channel; optional zstd.

Every length is checked against the header before anything is allocated or decompressed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from toolkit.errors import LocalProtocolError, RemoteProtocolError, UsageError, did_you_mean
from toolkit.wire.limits import MAX_PAYLOAD_BYTES
from toolkit.wire.messages import Codec, Compression, TensorSpec

Array = NDArray[np.float32] | NDArray[np.int64]

CODECS = ("float32", "float16", "int8", "float32+zstd", "float16+zstd", "int8+zstd")
"""What a job's ``codec`` may say."""

_ITEM_BYTES: dict[Codec, int] = {"float32": 4, "float16": 2, "int8": 1, "int64": 8}
_ZSTD_LEVEL = 1
_FLOAT16_MAX = 65504.0
_LEAST_SCALE = np.finfo(np.float32).tiny
"""Below it float32 loses digits, and codes would leave int8's range."""


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """A tensor ready for a frame.

    Attributes:
        spec: goes into the header.
        content: goes into the body; may lie in the array that was encoded, so it is to be written out at once.
        n_saturated: values beyond float16's range that were held at its ends; never sent as infinity.
    """

    spec: TensorSpec
    content: bytes | memoryview
    n_saturated: int = 0


def check_codec(text: str) -> str:
    """Return ``text`` if it names a codec.

    Raises: UsageError: it does not.
    """
    if text not in CODECS:
        raise UsageError(f"There is no codec {text!r}.", hint=did_you_mean(text, CODECS))
    return text


def activation_bytes(n_values: int, codec: str) -> int:
    """Bytes that activations of ``n_values`` numbers take before compression, scales not counted."""
    return n_values * _ITEM_BYTES[_split_codec(codec)[0]]


def encode_activations(name: str, array: NDArray[np.float32], codec: str) -> EncodedTensor:
    """Encode activations with a job's codec.

    Args:
        name: of the tensor.
        array: (B, C, ...), float32.
        codec: one of :data:`CODECS`.
    Raises: LocalProtocolError: values that are not finite, or no channel axis for int8: no receiver would take them.
    """
    kind, compression = _split_codec(codec)
    # NaN and infinities show in the ends: two passes that allocate nothing.
    largest = max(-array.min(), array.max()) if array.size else 0.0
    if not np.isfinite(largest) or (kind == "int8" and array.ndim < 2):  # noqa: PLR2004 - batch and channel
        raise LocalProtocolError(
            f"Tensor {name!r} of shape {array.shape} can't be sent as {codec}: its values must be finite,"
            " and int8 needs a channel axis."
        )
    n_saturated = 0
    content: bytes | memoryview
    if kind == "float32":
        content = _bytes_of(np.ascontiguousarray(array, dtype="<f4"))
    elif kind == "float16":
        if largest > _FLOAT16_MAX:
            n_saturated = int(np.count_nonzero(np.abs(array) > _FLOAT16_MAX))
            array = np.clip(array, -_FLOAT16_MAX, _FLOAT16_MAX)
        content = _bytes_of(array.astype("<f2", order="C"))
    else:
        content = _quantise(array)
    return _encoded(name, array.shape, kind, compression, content, n_saturated)


def encode_labels(name: str, labels: NDArray[np.int64]) -> EncodedTensor:
    """Encode labels (B,) as int64."""
    return _encoded(
        name, labels.shape, "int64", "none", np.ascontiguousarray(labels, dtype="<i8").tobytes(), 0
    )


def decode(spec: TensorSpec, content: memoryview) -> Array:
    """Rebuild an array.

    Args:
        spec: from the header.
        content: the tensor's part of the body.
    Returns: float32 of ``spec.shape``, or int64 where the codec says so; a copy that owns its memory.
    Raises: RemoteProtocolError: lengths that do not match, a compression bomb, or values that are not finite.
    """
    n_values = math.prod(spec.shape)
    n_scales = spec.shape[1] if spec.codec == "int8" and len(spec.shape) > 1 else 0
    n_raw = n_values * _ITEM_BYTES[spec.codec] + 4 * n_scales
    # PROTOCOL.md 5: "A receiver MUST compute a tensor's length from its shape and refuse any other."
    if n_raw > MAX_PAYLOAD_BYTES or len(content) != spec.n_bytes:
        raise RemoteProtocolError(
            f"Tensor {spec.name!r} of shape {spec.shape} does not fit its {len(content)} bytes."
        )
    raw = _decompress(spec, content, n_raw) if spec.compression == "zstd" else content
    if len(raw) != n_raw:
        raise RemoteProtocolError(f"Tensor {spec.name!r} holds {len(raw)} bytes; its shape needs {n_raw}.")
    if spec.codec == "int64":
        return np.frombuffer(raw, "<i8").reshape(spec.shape).astype(np.int64)
    if spec.codec == "int8":
        array = _dequantise(raw, spec.shape, n_scales)
    else:
        array = (
            np.frombuffer(raw, "<f4" if spec.codec == "float32" else "<f2")
            .reshape(spec.shape)
            .astype(np.float32)
        )
    # PROTOCOL.md 5: "A receiver MUST refuse a tensor that holds NaN or infinity."
    if not np.isfinite(array).all():
        raise RemoteProtocolError(f"Tensor {spec.name!r} holds values that are not finite.")
    return array


def _bytes_of(array: NDArray[np.generic]) -> memoryview:
    """The bytes of a contiguous array, where they lie: megabytes that need no copy."""
    return array.data.cast("B") if array.size else memoryview(b"")


def _split_codec(codec: str) -> tuple[Codec, Compression]:
    kind, _, compression = check_codec(codec).partition("+")
    return kind, ("zstd" if compression else "none")  # type: ignore[return-value]


def _encoded(
    name: str,
    shape: tuple[int, ...],
    codec: Codec,
    compression: Compression,
    content: bytes | memoryview,
    n_saturated: int,
) -> EncodedTensor:
    if compression == "zstd":
        content = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(content)
    spec = TensorSpec(
        name=name, shape=list(shape), codec=codec, n_bytes=len(content), compression=compression
    )
    return EncodedTensor(spec, content, n_saturated)


def _channel_axes(array: NDArray[np.float32]) -> tuple[int, ...]:
    return tuple(axis for axis in range(array.ndim) if axis != 1)


def _quantise(array: NDArray[np.float32]) -> bytes:
    """Scales (C,) float32, then int8 values; scale is the channel's largest magnitude over 127, and at least 2**-126."""
    largest = np.abs(array).max(axis=_channel_axes(array), keepdims=True)
    scales = np.maximum(largest / 127, _LEAST_SCALE).astype("<f4")
    codes: bytes = np.rint(array / scales).astype(np.int8).tobytes()
    return bytes(scales.tobytes()) + codes


def _dequantise(raw: bytes | memoryview, shape: list[int], n_scales: int) -> NDArray[np.float32]:
    if not n_scales:
        raise RemoteProtocolError("An int8 tensor needs a channel axis.")
    scales = np.frombuffer(raw, "<f4", count=n_scales).reshape(1, n_scales, *[1] * (len(shape) - 2))
    values = np.frombuffer(raw, np.int8, offset=4 * n_scales).reshape(shape)
    # Hostile scales overflow here, and are then refused as not finite.
    with np.errstate(over="ignore", invalid="ignore"):
        array = values.astype(np.float32)
        array *= scales  # in place: a fresh array of this size costs more in page faults than in arithmetic
    return array


def _decompress(spec: TensorSpec, content: memoryview, n_raw: int) -> bytes:
    # PROTOCOL.md 5: "A compressed tensor MUST carry its content size; another than the shape's is refused unread."
    try:
        if zstandard.frame_content_size(content) != n_raw:
            raise RemoteProtocolError(f"Tensor {spec.name!r} announces another size than its shape needs.")
        raw: bytes = zstandard.ZstdDecompressor().decompress(
            content, max_output_size=n_raw, allow_extra_data=False
        )
    except zstandard.ZstdError as exc:
        raise RemoteProtocolError(f"Tensor {spec.name!r} can't be decompressed: {exc}") from exc
    return raw
