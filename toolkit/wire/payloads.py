"""A payload: one rendering of a batch as bytes, its header and its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import msgspec
import numpy as np
from numpy.typing import NDArray

from toolkit.errors import LocalProtocolError, RemoteProtocolError
from toolkit.wire import frames, tensors
from toolkit.wire.limits import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, MIN_TRAIN_SAMPLES
from toolkit.wire.messages import Payload, PayloadKind, Weights


@dataclass(frozen=True, slots=True)
class Batch:
    """What a device hands over of one batch.

    Attributes:
        h: activations (B, ...), float32.
        y: labels (B,), int64, indices into the run's classes.
        exit_loss: nats.
        exit_correct: samples that the exit classified right.
        segment_step: device steps made before this forward pass.
        remade: the forward pass was made again.
        shallow_correct: likewise of the exits before the cut, shallow first.
    """

    kind: PayloadKind
    h: NDArray[np.float32]
    y: NDArray[np.int64]
    exit_loss: float
    exit_correct: int
    segment_step: int
    remade: bool = False
    shallow_correct: tuple[int, ...] = ()


class PayloadAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Whose batch it is, which one, and under whose orders it was made."""

    device: str
    round: int
    seq: int
    term: int
    incarnation: int
    plan_version: int
    cut: str
    run: str = ""


def largest_payload_bytes(activation_shape: Sequence[int], *, batch_size: int) -> int:
    """Say how long a payload of a job can be, whatever its codec: nothing longer need be collected.

    Args:
        activation_shape: of one sample at the device's cut.
        batch_size: most samples in a batch.
    """
    raw = batch_size * (4 * prod(activation_shape) + 8)
    # Noise grows in zstd: by its frame and three bytes a block of at most 128 KiB.
    longest = raw + raw // 1024 + 2 * MAX_HEADER_BYTES
    return min(MAX_PAYLOAD_BYTES, longest)


def encode(address: PayloadAddress, batch: Batch, codec: str) -> bytearray:
    """Lay a batch out as one payload frame.

    Args:
        address: who, which, under whose orders.
        batch: activations and labels.
        codec: the job's.
    Raises: LocalProtocolError: values that no receiver would take.
    """
    encoded = (tensors.encode_activations("h", batch.h, codec), tensors.encode_labels("y", batch.y))
    digest = hashlib.sha256()
    for tensor in encoded:
        digest.update(tensor.content)
    try:
        header = Payload(
            **msgspec.structs.asdict(address),
            kind=batch.kind,
            segment_step=batch.segment_step,
            exit_loss=batch.exit_loss,
            exit_correct=batch.exit_correct,
            remade=batch.remade,
            shallow_correct=list(batch.shallow_correct),
            tensors=[tensor.spec for tensor in encoded],
            sha256=digest.digest(),
        )
    except ValueError as exc:
        raise LocalProtocolError(
            f"Batch {address.seq} of round {address.round} can't be sent: {exc}."
        ) from exc
    return frames.encode(header, [tensor.content for tensor in encoded])


def decode(frame: frames.Buffer, *, device: str) -> tuple[Payload, memoryview]:
    """Read the frame of a batch as :func:`decode_up` does.

    Raises: RemoteProtocolError: damaged, it names another device, or it is no batch.
    """
    header, body = decode_up(frame, device=device)
    if not isinstance(header, Payload):
        raise RemoteProtocolError(f"Device {device!r} sent {type(header).__name__}, not a batch.")
    return header, body


def decode_up(frame: frames.Buffer, *, device: str) -> tuple[Payload | Weights, memoryview]:
    """Read the frame of a batch or of weights, and check that it is whole and the sender's own.

    Args:
        frame: as assembled from chunks.
        device: the sender, as the topic names it.
    Returns: the header, and its body for :func:`to_batch` or :func:`toolkit.wire.weights.to_weights`.
    Raises: RemoteProtocolError: damaged, or it names another device.
    """
    header, body = frames.decode(frame)
    if not isinstance(header, Payload | Weights):
        raise RemoteProtocolError(
            f"Chunks of device {device!r} held a {type(header).__name__}, not a payload."
        )
    # PROTOCOL.md 6: "The coordinator MUST take the device from the topic and refuse a payload that names another."
    if header.device != device:
        raise RemoteProtocolError(f"Device {device!r} sent a payload in the name of {header.device!r}.")
    if hashlib.sha256(body).digest() != header.sha256:
        raise RemoteProtocolError(f"A payload of device {device!r} is not the one its digest names.")
    return header, body


def to_batch(
    header: Payload, body: memoryview, *, activation_shape: Sequence[int], n_classes: int, batch_size: int
) -> Batch:
    """Decode a payload's tensors and hold them to the job.

    Args:
        header: from :func:`decode`.
        body: from :func:`decode`.
        activation_shape: of one sample at the device's cut.
        n_classes: labels lie in [0, n_classes).
        batch_size: most samples in a batch.
    Raises: RemoteProtocolError: tensors other than ``h`` and ``y``, or that do not fit the job.
    """
    if [tensor.name for tensor in header.tensors] != ["h", "y"]:
        raise RemoteProtocolError("A payload holds the tensors 'h' and 'y', in this order.")
    spec_h, spec_y = header.tensors
    if sum(tensor.n_bytes for tensor in header.tensors) != len(body):
        raise RemoteProtocolError("A payload's body is not as long as its tensors.")
    n = spec_y.shape[0] if len(spec_y.shape) == 1 else 0
    if n < 1 or spec_y.codec != "int64" or spec_h.codec == "int64" or spec_h.shape != [n, *activation_shape]:
        raise RemoteProtocolError(
            f"A payload holds activations {spec_h.shape} and labels {spec_y.shape}; "
            f"its cut gives {list(activation_shape)} a sample."
        )
    # PROTOCOL.md 6: "A training batch MUST have at least two samples, and no batch more than the job says."
    least = MIN_TRAIN_SAMPLES if header.kind == "train" else 1
    if not least <= n <= batch_size or max([header.exit_correct, *header.shallow_correct]) > n:
        raise RemoteProtocolError(
            f"A payload holds {n} samples, {header.exit_correct} of them right; its job asks for {least}..{batch_size}."
        )
    h = tensors.decode(spec_h, body[: spec_h.n_bytes])
    y = tensors.decode(spec_y, body[spec_h.n_bytes :])
    if y.min() < 0 or y.max() >= n_classes:
        raise RemoteProtocolError(f"A payload holds labels outside 0..{n_classes - 1}.")
    return Batch(
        kind=header.kind,
        h=h.astype(np.float32, copy=False),
        y=y.astype(np.int64, copy=False),
        exit_loss=header.exit_loss,
        exit_correct=header.exit_correct,
        segment_step=header.segment_step,
        remade=header.remade,
        shallow_correct=tuple(header.shallow_correct),
    )
