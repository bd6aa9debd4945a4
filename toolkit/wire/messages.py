"""One frozen type a message, validated when made; PROTOCOL.md describes each.

A message on the wire is a frame (``frames.py``) whose header is one of these types, told apart by ``type``.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from toolkit.errors import LocalProtocolError
from toolkit.wire.job import ClassNames, Count, Job, ModelSpec, Name, NameOrNone, Positive, Shape
from toolkit.wire.limits import (
    MAX_ASK_TTL_MS,
    MAX_BUNDLE_BYTES,
    MAX_CHANNELS,
    MAX_CHUNKS,
    MAX_NDIM,
    MAX_PACE_MS,
    MAX_PAYLOAD_BYTES,
    MAX_PROFILE_BYTES,
    MAX_TENSORS,
    MAX_TEXT_CHARACTERS,
    MAX_WANTED_PIECES,
)

Nonce = Annotated[bytes, Meta(min_length=16, max_length=16)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Moments = Annotated[
    list[Annotated[float, Meta(ge=-1e30, le=1e30)]], Meta(min_length=1, max_length=MAX_CHANNELS)
]
Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARACTERS)]
Codec = Literal["float32", "float16", "int8", "int64"]
Compression = Literal["none", "zstd"]
Phase = Literal["waiting", "training", "finished", "failed"]
PayloadKind = Literal["train", "eval"]
Acceptance = Literal["never", "coordinator"]
Outcome = Literal["installed", "unchanged", "refused"]
"""Of a bundle that was sent to a board."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower):
    """Base of all messages."""


class DataSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a device tells about its local data: counts and per-channel moments, never samples."""

    classes: ClassNames
    input_shape: Shape
    n_train: Annotated[int, Meta(ge=2, le=2**40)]
    n_eval: Count
    mean: Moments
    var: Moments
    fingerprint: Annotated[str, Meta(min_length=8, max_length=64)]

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.var) == self.input_shape[0]:
            msg = "mean and var hold one number a channel"
            raise ValueError(msg)
        if not all(map(math.isfinite, [*self.mean, *self.var])) or min(self.var) < 0:
            msg = "mean and var must be finite, var not negative"
            raise ValueError(msg)


class Hello(Message, frozen=True, kw_only=True):
    """Device to coordinator, after every CONNACK: who I am, what I hold, where I stand."""

    device: Name
    boot_nonce: Nonce
    protocols: Annotated[list[Positive], Meta(min_length=1, max_length=16)]
    software: Annotated[str, Meta(max_length=128)]
    data: DataSummary
    profile: Annotated[str, Meta(max_length=MAX_PROFILE_BYTES)] = ""
    trained_round: Count = 0
    trained_seq: Count = 0
    accept_weights: Acceptance = "never"


STOPPED, RUN_OVER = "stopped", "the run is over"
"""Reasons of a goodbye that nobody needs to be told."""


class Bye(Message, frozen=True, kw_only=True):
    """Device to coordinator: this process stops on purpose, or says why it can't go on."""

    device: Name
    boot_nonce: Nonce
    reason: Text


class Pace(Message, frozen=True, kw_only=True):
    """Device to coordinator, when it has trained a round: what a batch took. Advice follows from it, never an order.

    Attributes:
        step_ms: mean wall time of a training step.
        n_sent: payloads handed to the link in this round so far; ``sent_bytes`` of all of them.
        upload_ms: mean time that the link was at work for a payload.
    """

    device: Name
    round: Positive
    n_steps: Positive
    step_ms: float
    n_sent: Count = 0
    sent_bytes: Count = 0
    upload_ms: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.step_ms <= MAX_PACE_MS and 0 <= self.upload_ms <= MAX_PACE_MS):
            msg = f"step_ms and upload_ms must lie in 0 to {MAX_PACE_MS}"
            raise ValueError(msg)


class Chunk(Message, frozen=True, kw_only=True):
    """One piece of a payload; its bytes are the frame's body. Collected by ``payload_id``, never by batch id."""

    payload_id: Nonce
    index: Annotated[int, Meta(ge=0, lt=MAX_CHUNKS)]
    n_chunks: Annotated[int, Meta(ge=1, le=MAX_CHUNKS)]
    total_bytes: Annotated[int, Meta(ge=1, le=MAX_PAYLOAD_BYTES)]

    def __post_init__(self) -> None:
        if self.index >= self.n_chunks:
            msg = f"chunk {self.index} of {self.n_chunks}"
            raise ValueError(msg)
        # PROTOCOL.md 4: "A receiver MUST refuse a count of chunks that would leave one of them empty."
        if (self.n_chunks - 1) * self.chunk_bytes >= self.total_bytes:
            msg = f"{self.total_bytes} bytes in {self.n_chunks} chunks"
            raise ValueError(msg)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of every chunk of this payload but the last, which may be shorter."""
        return -(-self.total_bytes // self.n_chunks)


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How one tensor stands in a payload's body: ``n_bytes`` after encoding and compression."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    shape: Annotated[list[Positive], Meta(max_length=MAX_NDIM)]
    codec: Codec
    n_bytes: Annotated[int, Meta(ge=0, le=MAX_PAYLOAD_BYTES)]
    compression: Compression = "none"


class Payload(Message, frozen=True, kw_only=True):
    """One rendering of a batch: activations ``h`` and labels ``y`` of one forward pass.

    Attributes:
        exit_loss: the exit's mean cross-entropy on this batch, nats.
        exit_correct: samples of this batch that the exit classified right.
        segment_step: device steps made before this forward pass.
        remade: the forward pass was made again; activations may differ from the first rendering.
        sha256: of the body.
        shallow_correct: likewise of the exits at the stages before the cut, shallow first, where there are any.
        run: that it was made for; empty from a sender that does not say.
    """

    device: Name
    kind: PayloadKind
    round: Positive
    seq: Positive
    term: Positive
    incarnation: Positive
    plan_version: Positive
    cut: Annotated[str, Meta(min_length=1, max_length=256)]
    segment_step: Count
    exit_loss: float
    exit_correct: Count
    tensors: Annotated[list[TensorSpec], Meta(min_length=1, max_length=MAX_TENSORS)]
    sha256: Digest
    remade: bool = False
    shallow_correct: Annotated[list[Count], Meta(max_length=MAX_TENSORS)] = []
    run: NameOrNone = ""

    def __post_init__(self) -> None:
        if not 0 <= self.exit_loss < math.inf:
            msg = "exit_loss must be finite and not negative"
            raise ValueError(msg)


class Weights(Message, frozen=True, kw_only=True):
    """A device's segment and exits as they stand at the end of a round, at their place in its list.

    Attributes:
        segment_step: device steps made.
        sha256: of the body.
        run: that it was made for; empty from a sender that does not say.
    """

    device: Name
    round: Positive
    seq: Positive
    term: Positive
    incarnation: Positive
    plan_version: Positive
    cut: Annotated[str, Meta(min_length=1, max_length=256)]
    segment_step: Count
    tensors: Annotated[list[TensorSpec], Meta(min_length=1, max_length=MAX_TENSORS)]
    sha256: Digest
    run: NameOrNone = ""


class Lowered(Message, frozen=True, kw_only=True):
    """What the coordinator hands down to one device of what a round came to.

    Attributes:
        round: the closed round that it comes from.
        sha256: of the body.
    """

    device: Name
    round: Positive
    term: Positive
    incarnation: Positive
    plan_version: Positive
    tensors: Annotated[list[TensorSpec], Meta(max_length=MAX_TENSORS)]
    sha256: Digest


class Fetch(Message, frozen=True, kw_only=True):
    """Device to coordinator: hand down what round ``round`` came to; what ``taken`` and earlier ones came to I have."""

    device: Name
    term: Positive
    incarnation: Positive
    round: Positive
    taken: Count = 0


class MeasureRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks a device that has no fitting profile to measure itself for this model and batch size."""

    model: ModelSpec
    batch_size: Positive
    exit_head: str


class Welcome(Message, frozen=True, kw_only=True):
    """Coordinator to device: the answer to a hello, naming its boot nonce."""

    boot_nonce: Nonce
    run: Name
    term: Positive
    incarnation: Positive
    protocol: Positive
    measure: MeasureRequest | None = None


class Assignment(Message, frozen=True, kw_only=True):
    """Coordinator to device: the job under a committed plan version."""

    term: Positive
    plan_version: Positive
    job: Job


class State(Message, frozen=True, kw_only=True):
    """The only flow control: absolute and complete; a device obeys the highest ``(term, n)``.

    A device may send the seqs in ``[next, limit)`` of ``round``; ``watermark`` is the greatest (round, seq)
    that is durable at the coordinator. ``lowered_round`` is the round whose results are handed down: a device that takes
    them trains in no later round without; 0 where there are none.
    """

    term: Positive
    incarnation: Positive
    n: Positive
    phase: Phase
    round: Count
    next: Positive
    limit: Positive
    watermark_round: Count
    watermark_seq: Count
    plan_version: Count
    round_left_s: float = 0.0
    detail: Text = ""
    lowered_round: Count = 0

    def __post_init__(self) -> None:
        if self.next > self.limit or not 0 <= self.round_left_s < math.inf:
            msg = "next must not exceed limit, and round_left_s be finite and not negative"
            raise ValueError(msg)


class Refusal(Message, frozen=True, kw_only=True):
    """Coordinator to device: this hello is not accepted, and trying again as it is won't help."""

    boot_nonce: Nonce
    code: Annotated[str, Meta(max_length=32)]
    message: Text


class Fenced(Message, frozen=True, kw_only=True):
    """Coordinator to device: a newer process speaks for this device id; stop for good."""

    boot_nonce: Nonce
    incarnation: Positive


class Ask(Message, frozen=True, kw_only=True):
    """Board to coordinator: what does the route behind my cut say of these samples?

    Attributes:
        n: counts the questions of this process; with ``boot_nonce`` the question's id.
        origin: names the segment as trained, see :meth:`toolkit.bundle.manifest.Provenance.origin`.
        round: that the segment was taken from.
        ttl_ms: after so long the asker no longer waits; counted from when it arrived.
        sha256: of the body.
    """

    boot_nonce: Nonce
    n: Positive
    device: Name
    run: Name
    cut: Annotated[str, Meta(min_length=1, max_length=256)]
    round: Count
    origin: Digest
    ttl_ms: Annotated[int, Meta(ge=1, le=MAX_ASK_TTL_MS)]
    tensors: Annotated[list[TensorSpec], Meta(min_length=1, max_length=1)]
    sha256: Digest


class Answer(Message, frozen=True, kw_only=True):
    """Coordinator to board: the logits of one question, and which of the coordinator's layers gave them."""

    boot_nonce: Nonce
    n: Positive
    origin: Digest
    theta_round: Count
    tensors: Annotated[list[TensorSpec], Meta(min_length=1, max_length=1)]
    sha256: Digest


class Declined(Message, frozen=True, kw_only=True):
    """Coordinator to board: this question gets no answer; don't wait for one."""

    boot_nonce: Nonce
    n: Positive
    code: Annotated[str, Meta(max_length=32)]
    message: Text


class Offer(Message, frozen=True, kw_only=True):
    """Operator to board: here is a bundle for you; fetch it piece by piece.

    Attributes:
        archive: SHA-256 of the archive's bytes: the delivery's id.
        n_bytes: of the archive.
    """

    archive: Digest
    n_bytes: Annotated[int, Meta(ge=1, le=MAX_BUNDLE_BYTES)]


class Want(Message, frozen=True, kw_only=True):
    """Board to operator: send pieces of an offered bundle, from ``offset`` on."""

    archive: Digest
    offset: Count
    n_pieces: Annotated[int, Meta(ge=1, le=MAX_WANTED_PIECES)]


class Piece(Message, frozen=True, kw_only=True):
    """Operator to board: the bytes of a bundle from ``offset`` on; they are the frame's body."""

    archive: Digest
    offset: Count


class Receipt(Message, frozen=True, kw_only=True):
    """Board to operator: what became of a bundle."""

    archive: Digest
    outcome: Outcome
    message: Text


UpMessage = Hello | Bye | Pace | Chunk | Fetch
DownMessage = Welcome | Assignment | State | Refusal | Fenced | Chunk
AskMessage = Chunk
AnswerMessage = Chunk | Declined
OfferMessage = Offer | Piece
WantMessage = Want | Receipt
AnyMessage = (
    Hello
    | Bye
    | Pace
    | Chunk
    | Payload
    | Weights
    | Lowered
    | Fetch
    | Welcome
    | Assignment
    | State
    | Refusal
    | Fenced
    | Ask
    | Answer
    | Declined
    | Offer
    | Want
    | Piece
    | Receipt
)

_encoder = msgspec.msgpack.Encoder()


def encode_header(message: Message) -> bytes:
    """Serialise a message's header as msgpack, validating it first.

    Raises: LocalProtocolError: the message breaks its own type: a bug on this side.
    """
    header = _encoder.encode(message)
    try:
        msgspec.msgpack.decode(header, type=type(message))
    except msgspec.ValidationError as exc:
        raise LocalProtocolError(
            f"A {type(message).__name__} was made that its own type refuses: {exc}"
        ) from exc
    return header
