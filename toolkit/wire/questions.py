"""Offloaded inference on the wire: a question of activations, an answer of logits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from toolkit.errors import LocalProtocolError, RemoteProtocolError
from toolkit.wire import frames, tensors
from toolkit.wire.limits import MAX_ASK_BYTES, MAX_ASK_SAMPLES
from toolkit.wire.messages import Answer, Ask

FLOAT32_BYTES = 4
_HEADER_ROOM_BYTES = 4096
ACTIVATIONS, LOGITS = "h", "logits"


def samples_a_question(activation_shape: Sequence[int], n_classes: int) -> int:
    """Samples that fit one question, and their logits one answer; 0 where not even one does."""
    largest = max(math.prod(activation_shape), n_classes)
    # Scales of int8 and what zstd adds to what it can't compress stay far below the header's room.
    return min(MAX_ASK_SAMPLES, (MAX_ASK_BYTES - 2 * _HEADER_ROOM_BYTES) // (FLOAT32_BYTES * largest))


class AskAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and about whose activations; the words are those of :class:`toolkit.wire.messages.Ask`."""

    boot_nonce: bytes
    device: str
    run: str
    cut: str
    round: int
    origin: bytes


def encode_ask(address: AskAddress, h: NDArray[np.float32], codec: str, *, n: int, ttl_ms: int) -> bytearray:
    """Lay a question out as one frame.

    Args:
        address: who asks.
        h: (M, ...), activations at the cut, finite.
        codec: as in training.
        n: counts this process's questions, from 1.
        ttl_ms: how long the asker waits.
    Raises: LocalProtocolError: values that no receiver would take.
    """
    tensor = tensors.encode_activations(ACTIVATIONS, h, codec)
    header = Ask(
        **msgspec.structs.asdict(address),
        n=n,
        ttl_ms=ttl_ms,
        tensors=[tensor.spec],
        sha256=hashlib.sha256(tensor.content).digest(),
    )
    return _bounded(frames.encode(header, [tensor.content]))


def decode_ask(frame: frames.Buffer, *, device: str) -> tuple[Ask, memoryview]:
    """Read a question and check that it is whole and the sender's own.

    Args:
        frame: as assembled from chunks.
        device: the sender, as the topic names it.
    Returns: the header, and its body for :func:`to_activations`.
    Raises: RemoteProtocolError: damaged, or it names another device.
    """
    header, body = frames.decode(frame)
    if not isinstance(header, Ask):
        raise RemoteProtocolError(f"Chunks of {device!r} held a {type(header).__name__}, not an ask.")
    # PROTOCOL.md 15: "The coordinator MUST take the device from the topic and refuse an ask that names another."
    if header.device != device:
        raise RemoteProtocolError(f"{device!r} asked in the name of {header.device!r}.")
    _check_body(header, body, ACTIVATIONS)
    return header, body


def to_activations(ask: Ask, body: memoryview, *, activation_shape: Sequence[int]) -> NDArray[np.float32]:
    """Decode a question's activations (M, *activation_shape).

    Raises: RemoteProtocolError: other tensors than ``h``, another shape or too many samples.
    """
    [spec] = ask.tensors
    # PROTOCOL.md 15: "An ask MUST hold 1 to 256 samples of the cut's activation shape."
    if (
        spec.codec == "int64"
        or spec.shape[1:] != list(activation_shape)
        or not 1 <= (spec.shape or [0])[0] <= MAX_ASK_SAMPLES
    ):
        raise RemoteProtocolError(
            f"An ask holds activations {spec.shape} as {spec.codec}; its cut gives {list(activation_shape)} a sample."
        )
    return tensors.decode(spec, body).astype(np.float32, copy=False)


def encode_answer(ask: Ask, logits: NDArray[np.float32], *, theta_round: int) -> bytearray:
    """Lay the answer to a question out as one frame.

    Args:
        ask: the question.
        logits: (M, K), finite.
        theta_round: of the layers that gave them.
    Raises: LocalProtocolError: values that no receiver would take.
    """
    tensor = tensors.encode_activations(LOGITS, logits, "float32")
    header = Answer(
        boot_nonce=ask.boot_nonce,
        n=ask.n,
        origin=ask.origin,
        theta_round=theta_round,
        tensors=[tensor.spec],
        sha256=hashlib.sha256(tensor.content).digest(),
    )
    return _bounded(frames.encode(header, [tensor.content]))


def decode_answer(frame: frames.Buffer) -> tuple[Answer, memoryview]:
    """Read an answer and check that it is whole.

    Returns: the header, and its body for :func:`to_logits`.
    Raises: RemoteProtocolError: damaged, or no answer.
    """
    header, body = frames.decode(frame)
    if not isinstance(header, Answer):
        raise RemoteProtocolError(f"Chunks of an answer held a {type(header).__name__}.")
    _check_body(header, body, LOGITS)
    return header, body


def to_logits(answer: Answer, body: memoryview, *, n_samples: int, n_classes: int) -> NDArray[np.float32]:
    """Decode an answer's logits (M, K).

    Raises: RemoteProtocolError: another shape than the question's samples and classes, or values that are not finite.
    """
    [spec] = answer.tensors
    # PROTOCOL.md 15: "An answer counts only if it holds as many finite logits as the question has samples and classes."
    if spec.codec != "float32" or spec.shape != [n_samples, n_classes]:
        raise RemoteProtocolError(
            f"An answer holds logits {spec.shape} as {spec.codec}; {[n_samples, n_classes]} were asked for."
        )
    return tensors.decode(spec, body).astype(np.float32, copy=False)


def _check_body(header: Ask | Answer, body: memoryview, name: str) -> None:
    [spec] = header.tensors
    if spec.name != name or spec.n_bytes != len(body):
        raise RemoteProtocolError(
            f"{type(header).__name__} {header.n} holds {spec.name!r} of {spec.n_bytes} bytes in a body of {len(body)}."
        )
    if hashlib.sha256(body).digest() != header.sha256:
        raise RemoteProtocolError(f"{type(header).__name__} {header.n} is not the one its digest names.")


def _bounded(frame: bytearray) -> bytearray:
    if len(frame) > MAX_ASK_BYTES:
        raise LocalProtocolError(f"A question or answer of {len(frame)} bytes exceeds {MAX_ASK_BYTES}.")
    return frame
