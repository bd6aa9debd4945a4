"""decode(encode(m)) == m for every message, and arbitrary bytes give nothing but RemoteProtocolError."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.samples import ADDRESS, BATCH, MESSAGES
from toolkit.errors import RemoteProtocolError
from toolkit.wire import chunks, frames, payloads, tensors, words
from toolkit.wire.job import Distillation, Job, ModelSpec, OptimizerSpec, SyncSpec
from toolkit.wire.limits import MAX_CHUNKS
from toolkit.wire.messages import (
    Answer,
    Ask,
    Assignment,
    Bye,
    Chunk,
    DataSummary,
    Declined,
    Fenced,
    Fetch,
    Hello,
    Lowered,
    MeasureRequest,
    Message,
    Offer,
    Pace,
    Payload,
    Piece,
    Receipt,
    Refusal,
    State,
    TensorSpec,
    Want,
    Weights,
    Welcome,
)

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
nonces = st.binary(min_size=16, max_size=16)
counts = st.integers(0, 2**53)
positives = st.integers(1, 2**31)
texts = st.text(max_size=40)
labels = st.text(min_size=1, max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
moments = st.floats(-1e30, 1e30)
not_negative = st.floats(0, 1e300)
shapes = st.lists(positives, min_size=1, max_size=7)
classes = st.lists(labels, min_size=2, max_size=9)
models = st.builds(
    ModelSpec,
    name=labels,
    input_shape=shapes,
    n_classes=st.integers(2, 65_536),
    options=st.dictionaries(
        labels, st.one_of(texts, st.integers(-(2**63), 2**63 - 1), finite, st.booleans())
    ),
)


@st.composite
def summaries(draw: st.DrawFn) -> DataSummary:
    n_channels = draw(st.integers(1, 5))
    return DataSummary(
        classes=draw(classes),
        input_shape=[n_channels, *draw(st.lists(positives, max_size=6))],
        n_train=draw(st.integers(2, 2**40)),
        n_eval=draw(counts),
        mean=draw(st.lists(moments, min_size=n_channels, max_size=n_channels)),
        var=draw(st.lists(st.floats(0, 1e30), min_size=n_channels, max_size=n_channels)),
        fingerprint=draw(st.text(min_size=8, max_size=64)),
    )


@st.composite
def chunk_headers(draw: st.DrawFn) -> Chunk:
    total_bytes = draw(st.integers(1, 2**26))
    least = -(-total_bytes // MAX_CHUNKS)
    size = draw(st.integers(least, total_bytes))
    n_chunks = -(-total_bytes // size)
    index = draw(st.integers(0, n_chunks - 1))
    return Chunk(payload_id=draw(nonces), index=index, n_chunks=n_chunks, total_bytes=total_bytes)


@st.composite
def states(draw: st.DrawFn) -> State:
    first, second = sorted((draw(positives), draw(positives)))
    return State(
        term=draw(positives),
        incarnation=draw(positives),
        n=draw(positives),
        phase=draw(st.sampled_from(["waiting", "training", "finished", "failed"])),
        round=draw(counts),
        next=first,
        limit=second,
        watermark_round=draw(counts),
        watermark_seq=draw(counts),
        plan_version=draw(counts),
        round_left_s=draw(not_negative),
        detail=draw(texts),
        lowered_round=draw(counts),
    )


digests = st.binary(min_size=32, max_size=32)
tensor_specs = st.builds(
    TensorSpec,
    name=labels,
    shape=st.lists(positives, max_size=8),
    codec=st.sampled_from(["float32", "float16", "int8", "int64"]),
    n_bytes=st.integers(0, 2**26),
    compression=st.sampled_from(["none", "zstd"]),
)
distillations = st.builds(
    Distillation, weight=st.floats(0, 1e6), temperature=st.floats(0, 1e3, exclude_min=True)
)
jobs = st.builds(
    Job,
    run=names,
    model=models,
    cut=labels,
    classes=classes,
    mean=st.lists(finite, max_size=4),
    std=st.lists(finite, max_size=4),
    seed=counts,
    rounds=positives,
    batch_size=st.integers(2, 65_536),
    round_steps=counts,
    eval_samples=counts,
    eval_every=positives,
    optimizer=st.builds(
        OptimizerSpec,
        lr=st.floats(1e-9, 1e9),
        momentum=st.floats(0, 1, exclude_max=True),
        weight_decay=not_negative,
        schedule=st.sampled_from(["constant", "cosine"]),
    ),
    exit_head=labels,
    codec=labels,
    threads=positives,
    all_exits=st.booleans(),
    among_exits=distillations,
    sync=st.builds(
        SyncSpec,
        mode=st.sampled_from(["none", "same_cut", "prefix"]),
        every=positives,
        momentum=st.sampled_from(["keep", "average", "reset"]),
        codec=labels,
    ),
    from_server=distillations,
)
measures = st.builds(MeasureRequest, model=models, batch_size=positives, exit_head=texts)
KINDS: dict[type[Message], st.SearchStrategy[Message]] = {
    Hello: st.builds(
        Hello,
        device=names,
        boot_nonce=nonces,
        protocols=st.lists(positives, min_size=1, max_size=16),
        software=texts,
        data=summaries(),
        profile=texts,
        trained_round=counts,
        trained_seq=counts,
        accept_weights=st.sampled_from(["never", "coordinator"]),
    ),
    Bye: st.builds(Bye, device=names, boot_nonce=nonces, reason=texts),
    Pace: st.builds(
        Pace,
        device=names,
        round=positives,
        n_steps=positives,
        step_ms=st.floats(0, 1e9),
        n_sent=counts,
        sent_bytes=counts,
        upload_ms=st.floats(0, 1e9),
    ),
    Chunk: chunk_headers(),
    Payload: st.builds(
        Payload,
        device=names,
        kind=st.sampled_from(["train", "eval"]),
        round=positives,
        seq=positives,
        term=positives,
        incarnation=positives,
        plan_version=positives,
        cut=labels,
        segment_step=counts,
        exit_loss=not_negative,
        exit_correct=counts,
        tensors=st.lists(tensor_specs, min_size=1, max_size=5),
        sha256=digests,
        remade=st.booleans(),
        shallow_correct=st.lists(counts, max_size=5),
    ),
    Weights: st.builds(
        Weights,
        device=names,
        round=positives,
        seq=positives,
        term=positives,
        incarnation=positives,
        plan_version=positives,
        cut=labels,
        segment_step=counts,
        tensors=st.lists(tensor_specs, min_size=1, max_size=5),
        sha256=st.binary(min_size=32, max_size=32),
    ),
    Lowered: st.builds(
        Lowered,
        device=names,
        round=positives,
        term=positives,
        incarnation=positives,
        plan_version=positives,
        tensors=st.lists(tensor_specs, min_size=1, max_size=5),
        sha256=st.binary(min_size=32, max_size=32),
    ),
    Fetch: st.builds(
        Fetch, device=names, term=positives, incarnation=positives, round=positives, taken=counts
    ),
    Welcome: st.builds(
        Welcome,
        boot_nonce=nonces,
        run=names,
        term=positives,
        incarnation=positives,
        protocol=positives,
        measure=st.none() | measures,
    ),
    Assignment: st.builds(Assignment, term=positives, plan_version=positives, job=jobs),
    State: states(),
    Refusal: st.builds(Refusal, boot_nonce=nonces, code=st.text(max_size=32), message=texts),
    Fenced: st.builds(Fenced, boot_nonce=nonces, incarnation=positives),
    Ask: st.builds(
        Ask,
        boot_nonce=nonces,
        n=positives,
        device=names,
        run=names,
        cut=labels,
        round=counts,
        origin=digests,
        ttl_ms=st.integers(1, 60_000),
        tensors=st.lists(tensor_specs, min_size=1, max_size=1),
        sha256=digests,
    ),
    Answer: st.builds(
        Answer,
        boot_nonce=nonces,
        n=positives,
        origin=digests,
        theta_round=counts,
        tensors=st.lists(tensor_specs, min_size=1, max_size=1),
        sha256=digests,
    ),
    Offer: st.builds(Offer, archive=digests, n_bytes=st.integers(1, 2**29)),
    Want: st.builds(Want, archive=digests, offset=counts, n_pieces=st.integers(1, 32)),
    Piece: st.builds(Piece, archive=digests, offset=counts),
    Receipt: st.builds(
        Receipt,
        archive=digests,
        outcome=st.sampled_from(["installed", "unchanged", "refused"]),
        message=texts,
    ),
    Declined: st.builds(Declined, boot_nonce=nonces, n=positives, code=st.text(max_size=32), message=texts),
}


@pytest.mark.parametrize("kind", list(KINDS), ids=lambda kind: kind.__name__)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_message_comes_back_as_it_was(kind: type[Message], data: st.DataObject):
    message, body = data.draw(KINDS[kind]), data.draw(st.binary(max_size=50))
    decoded, rest = frames.decode(frames.encode(message, [body]))
    assert decoded == message
    assert type(decoded) is kind
    assert rest == body


def test_every_kind_is_drawn():
    assert set(KINDS) == {type(message) for message in MESSAGES}


@given(
    st.integers(1, 5),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.sampled_from(tensors.CODECS),
    st.data(),
)
@settings(max_examples=80, deadline=None)
def test_a_batch_comes_back_within_its_codecs_error(
    n: int, shape: list[int], codec: str, data: st.DataObject
):
    width = {"float32": 2.0**127, "float16": 65504.0, "int8": 2.0**127}[codec.partition("+")[0]]
    values = st.floats(-width, width, width=32)
    n_values = n * int(np.prod(shape))
    h = np.array(data.draw(st.lists(values, min_size=n_values, max_size=n_values)), np.float32)
    encoded = tensors.encode_activations("h", h.reshape(n, *shape), codec)
    decoded = tensors.decode(encoded.spec, memoryview(encoded.content)).reshape(n, *shape)
    error = np.abs(decoded.astype(np.float64) - h.reshape(n, *shape))
    if codec.startswith("float32"):
        assert not error.any()
    elif codec.startswith("float16"):
        assert (error <= np.maximum(np.abs(h.reshape(n, *shape)) * 2.0**-11, 2.0**-25)).all()
    else:
        axes = tuple(axis for axis in range(h.reshape(n, *shape).ndim) if axis != 1)
        step = np.abs(h.reshape(n, *shape)).max(axis=axes, keepdims=True).astype(np.float64) / 127
        assert (error <= np.maximum(step, 2.0**-126) * 0.5001).all()


# Arbitrary bytes

GOLDEN = [bytes(frames.encode(message)) for message in MESSAGES]
WHOLE = [bytes(payloads.encode(ADDRESS, BATCH, codec)) for codec in tensors.CODECS]


@st.composite
def mangled(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A valid frame with a few bytes changed, put in or taken out."""
    frame = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(frame)))
        match draw(st.sampled_from(["change", "insert", "remove", "double"])):
            case "change":
                frame[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "insert":
                frame[at:at] = draw(st.binary(min_size=1, max_size=9))
            case "remove":
                del frame[at : at + draw(st.integers(1, 9))]
            case _:
                frame[at:at] = frame[at : at + 16]
    return bytes(frame)


def headed(header: bytes) -> bytes:
    return b"HSEE\x01\0\0\0" + len(header).to_bytes(4, "little") + header


anything = st.one_of(
    st.binary(max_size=200),
    st.binary(max_size=200).map(headed),
    st.binary(max_size=100).map(lambda tail: headed(b"\x83\xa4type\xa5state\xa4term" + tail)),
    mangled(GOLDEN),
    mangled(WHOLE),
)


def refused_at_most() -> contextlib.suppress:
    """Anything else that is raised fails the test."""
    return contextlib.suppress(RemoteProtocolError)


@given(anything)
@settings(max_examples=400, deadline=None)
def test_any_bytes_as_a_frame(data: bytes):
    with refused_at_most():
        message, body = frames.decode(data)
        assert frames.decode(frames.encode(message, [body])) == (message, body)


@given(anything)
@settings(max_examples=300, deadline=None)
def test_any_bytes_as_a_payload(data: bytes):
    with refused_at_most():
        header, body = payloads.decode(data, device="dev1")
        payloads.to_batch(header, body, activation_shape=[3], n_classes=2, batch_size=8)


@given(mangled([bytes(frames.decode(whole)[1]) for whole in WHOLE]), st.sampled_from(WHOLE))
@settings(max_examples=300, deadline=None)
def test_any_body_under_a_valid_header(body: bytes, whole: bytes):
    """As if the digest had been forged with it."""
    header, _ = frames.decode(whole)
    assert isinstance(header, Payload)
    with refused_at_most():
        batch = payloads.to_batch(header, memoryview(body), activation_shape=[3], n_classes=2, batch_size=8)
        assert np.isfinite(batch.h).all()


@given(tensor_specs, st.binary(max_size=64))
@settings(max_examples=300, deadline=None)
def test_any_tensor_of_any_spec(spec: TensorSpec, content: bytes):
    with refused_at_most():
        tensors.decode(spec, memoryview(content))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2), st.integers(0, 4), st.integers(1, 5), st.integers(1, 9), st.binary(max_size=5)
        ),
        max_size=30,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_chunks_in_any_order(parts: list[tuple[int, int, int, int, bytes]]):
    assembler = chunks.Assembler()
    for number, index, n_chunks, total_bytes, body in parts:
        with refused_at_most():
            try:
                header = Chunk(
                    payload_id=bytes([number] * 16), index=index, n_chunks=n_chunks, total_bytes=total_bytes
                )
            except ValueError:
                continue
            whole = assembler.add(header, memoryview(body))
            assert whole is None or len(whole) == total_bytes


@given(st.one_of(st.binary(max_size=100), mangled([b'{"state":"online","run":"run1","term":2}'])))
@settings(max_examples=200, deadline=None)
def test_any_bytes_as_a_word(data: bytes):
    for read in (words.read_bridge_word, words.read_device_word):
        with refused_at_most():
            read(data)
