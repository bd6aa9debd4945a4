"""Weights as bytes: a segment and its exits on their way up, and what the coordinator hands down.

Both sides build the network from the job, so nothing but numbers travels: three rows, each in ascending order of the
tensors' names, whose lengths the receiver knows beforehand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from toolkit.errors import RemoteProtocolError
from toolkit.wire import frames, tensors
from toolkit.wire.limits import MAX_HEADER_BYTES
from toolkit.wire.messages import Lowered, TensorSpec, Weights

LOGITS = "logits"
_ROWS = ("values", "counters", "momentum")
_EMPTY = np.empty(0, np.float32)
_FLOAT32_BYTES, _INT64_BYTES = 4, 8


@dataclass(frozen=True, slots=True, eq=False)
class FlatWeights:
    """The tensors of a segment and its exits, laid end to end.

    Attributes:
        values: parameters and floating buffers (P,), float32.
        counters: integer buffers (Q,), int64.
        momentum: of the parameters (M,), float32; empty where it does not travel.
    """

    values: NDArray[np.float32]
    counters: NDArray[np.int64]
    momentum: NDArray[np.float32]


class RowLengths(msgspec.Struct, frozen=True):
    """How long the rows of a segment's weights are; a row of length 0 does not travel."""

    values: int
    counters: int
    momentum: int

    def payload_bytes(self, n_logits: int = 0) -> int:
        """No payload that holds no more than these rows and so many logits is longer, however it is encoded."""
        n_floats = self.values + self.momentum + n_logits
        content = _FLOAT32_BYTES * n_floats + _INT64_BYTES * self.counters
        return content + content // 128 + MAX_HEADER_BYTES  # zstd grows what it can't shrink by less


class WeightsAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Whose weights, at which place of which round, under whose orders."""

    device: str
    round: int
    seq: int
    term: int
    incarnation: int
    plan_version: int
    cut: str
    segment_step: int
    run: str = ""


class LoweredAddress(msgspec.Struct, frozen=True, kw_only=True):
    """For which process of which device, from which round."""

    device: str
    round: int
    term: int
    incarnation: int
    plan_version: int


def encode_weights(address: WeightsAddress, weights: FlatWeights, codec: str) -> bytearray:
    """Lay a device's weights out as one payload frame.

    Raises: LocalProtocolError: values that are not finite.
    """
    encoded = _encode_rows(weights, codec)
    header = Weights(
        **msgspec.structs.asdict(address), tensors=[t.spec for t in encoded], sha256=_digest(encoded)
    )
    return frames.encode(header, [t.content for t in encoded])


def encode_lowered(
    address: LoweredAddress,
    weights: FlatWeights | None,
    codec: str,
    logits: NDArray[np.float32] | None = None,
) -> bytearray:
    """Lay what is handed down to a device out as one payload frame.

    Args:
        address: whom it is for.
        weights: of its segment and exits; None where segments are not made one.
        codec: of the weights.
        logits: of the server (n, K), one row a training sample of the round; None where they are not handed down.
    Raises: LocalProtocolError: values that are not finite.
    """
    encoded = [] if weights is None else _encode_rows(weights, codec)
    if logits is not None:
        encoded.append(tensors.encode_activations(LOGITS, logits, "float32"))
    header = Lowered(
        **msgspec.structs.asdict(address), tensors=[t.spec for t in encoded], sha256=_digest(encoded)
    )
    return frames.encode(header, [t.content for t in encoded])


def decode_lowered(frame: frames.Buffer, *, device: str) -> tuple[Lowered, memoryview]:
    """Read what was handed down and check that it is whole and for this device.

    Returns: the header, and its body for :func:`to_weights` and :func:`to_logits`.
    Raises: RemoteProtocolError: damaged, or for another device.
    """
    header, body = frames.decode(frame)
    if not isinstance(header, Lowered):
        raise RemoteProtocolError(
            f"A coordinator hands down no {type(header).__name__} in chunks.",
        )
    # PROTOCOL.md 19: "A device MUST refuse what is handed down for another device."
    if header.device != device:
        raise RemoteProtocolError(f"What was handed down is for {header.device!r}, not {device!r}.")
    # PROTOCOL.md 19: "A payload of weights whose body does not have the digest of its header MUST be refused."
    if hashlib.sha256(body).digest() != header.sha256:
        raise RemoteProtocolError("What was handed down is not what its digest names.")
    return header, body


def to_weights(header: Weights | Lowered, body: memoryview, lengths: RowLengths) -> FlatWeights:
    """Decode the rows of a payload's weights.

    Args:
        header: of the payload, whose digest was checked.
        body: likewise.
        lengths: that the rows have to have.
    Raises: RemoteProtocolError: other rows than these, or values that can't be weights.
    """
    rows = _decode(header.tensors, body)
    expected = {name: n for name in _ROWS if (n := getattr(lengths, name))}
    given = {name: len(row) if row.ndim == 1 else -1 for name, row in rows.items() if name != LOGITS}
    # PROTOCOL.md 19: "A receiver MUST refuse rows of other names or lengths than the network has at the device's cut."
    if given != expected:
        raise RemoteProtocolError(f"Weights have rows {given}; the segment and its exits have {expected}.")
    counters = rows.get("counters", np.empty(0, np.int64))
    if counters.dtype != np.int64 or any(
        rows[n].dtype != np.float32 for n in ("values", "momentum") if n in rows
    ):
        raise RemoteProtocolError("Weights have a row of integers for numbers, or of numbers for integers.")
    # PROTOCOL.md 19: "A receiver MUST refuse a counter below zero."
    if len(counters) and counters.min() < 0:
        raise RemoteProtocolError("Weights have a counter below zero.")
    return FlatWeights(
        _float(rows["values"]), counters.astype(np.int64, copy=False), _float(rows.get("momentum", _EMPTY))
    )


def to_logits(header: Lowered, body: memoryview, *, n_classes: int) -> NDArray[np.float32] | None:
    """Decode the server's logits (n, n_classes) of a round's training samples; None where it has none of this device.

    Raises: RemoteProtocolError: another shape.
    """
    row = _decode(header.tensors, body).get(LOGITS)
    if row is None:
        return None
    if row.dtype != np.float32 or row.ndim != 2 or row.shape[1] != n_classes:  # noqa: PLR2004 - samples, classes
        raise RemoteProtocolError(f"Logits have shape {row.shape}; the run has {n_classes} classes.")
    return _float(row)


def _float(row: tensors.Array) -> NDArray[np.float32]:
    return row.astype(np.float32, copy=False)


def _encode_rows(weights: FlatWeights, codec: str) -> list[tensors.EncodedTensor]:
    encoded = [tensors.encode_activations("values", weights.values, codec)]
    if len(weights.counters):
        encoded.append(tensors.encode_labels("counters", weights.counters))
    if len(weights.momentum):
        encoded.append(tensors.encode_activations("momentum", weights.momentum, codec))
    return encoded


def _decode(specs: Sequence[TensorSpec], body: memoryview) -> dict[str, tensors.Array]:
    names = [spec.name for spec in specs]
    if sum(spec.n_bytes for spec in specs) != len(body) or len(set(names)) != len(names):
        raise RemoteProtocolError(
            "A payload's body is not as long as its tensors, or one stands there twice."
        )
    rows, start = {}, 0
    for spec in specs:
        rows[spec.name] = tensors.decode(spec, body[start : start + spec.n_bytes])
        start += spec.n_bytes
    return rows


def _digest(encoded: Sequence[tensors.EncodedTensor]) -> bytes:
    digest = hashlib.sha256()
    for tensor in encoded:
        digest.update(tensor.content)
    return digest.digest()
