"""Tensors and payloads made to hurt, behind valid headers: each is refused, at no more memory than PROTOCOL.md 12 allows."""

import hashlib
import struct

import msgspec
import numpy as np
import pytest
import zstandard

from tests.protocol.bounds import SLACK_BYTES, allocated_by
from tests.protocol.samples import ADDRESS, BATCH, BYE, PAYLOAD
from toolkit.wire import frames, payloads, tensors
from toolkit.wire.messages import TensorSpec

DEVICE = ADDRESS.device


def spec(codec: str = "float32", shape: tuple[int, ...] = (2, 3), **fields: object) -> TensorSpec:
    return msgspec.convert(
        {"name": "h", "shape": list(shape), "codec": codec, "n_bytes": 24} | fields, TensorSpec
    )


def zstd(raw: bytes, *, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=sized).compress(raw)


def zstd_frame(descriptor: int, fields: bytes, blocks: bytes) -> bytes:
    """A frame by hand, RFC 8878 section 3.1.1: magic, descriptor, what it announces, blocks."""
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + fields + blocks


def compressed(content: bytes) -> tuple[TensorSpec, bytes]:
    """Six numbers of float32 that claim to stand in ``content``."""
    return spec(compression="zstd", n_bytes=len(content)), content


SKIPPABLE = 0x184D2A50
BOMB = zstd(bytes(2**26))
UNSIZED = zstd(bytes(24), sized=False)
DAMAGED = bytearray(zstd(np.random.default_rng(1).bytes(24)))
DAMAGED[4] ^= 0x60
ZEROS = bytes(24)
ZEROS_BLOCK = ((24 << 3) | 1).to_bytes(3, "little") + ZEROS
"""The last block, raw."""

HOSTILE_TENSORS = {
    "shorter than announced": (spec(), ZEROS[:23]),
    "longer than announced": (spec(), ZEROS + b"\0"),
    "a shape of another size": (spec(shape=(2, 4)), ZEROS),
    "a shape whose product overflows 64 bits": (spec(shape=(2**31,) * 8), ZEROS),
    "a shape of 64 MiB and a little": (spec(shape=(2**24 + 1, 1)), ZEROS),
    "NaN": (spec(), np.array([np.nan] * 6, "<f4").tobytes()),
    "infinity": (spec(), np.array([0, 0, 0, 0, 0, -np.inf], "<f4").tobytes()),
    "NaN in half precision": (spec("float16", n_bytes=12), np.array([np.nan] * 6, "<f2").tobytes()),
    "a signalling NaN in half precision": (spec("float16", n_bytes=12), b"\x01\x7d" * 6),
    "infinity in half precision": (spec("float16", n_bytes=12), np.array([np.inf] * 6, "<f2").tobytes()),
    "int8 without channels": (spec("int8", (6,), n_bytes=6), bytes(6)),
    "int8 without axes": (spec("int8", (), n_bytes=1), bytes(1)),
    "int8 without its scales": (spec("int8", n_bytes=6), bytes(6)),
    "int8 of 2^31 channels": (spec("int8", (1, 2**31), n_bytes=6), bytes(6)),
    "a scale that is no number": (
        spec("int8", n_bytes=18),
        np.array([np.nan] * 3, "<f4").tobytes() + bytes(6),
    ),
    "a scale that overflows": (
        spec("int8", n_bytes=18),
        np.array([3e38] * 3, "<f4").tobytes() + b"\x7f" * 6,
    ),
    "an endless scale of zeros": (
        spec("int8", n_bytes=18),
        np.array([np.inf] * 3, "<f4").tobytes() + bytes(6),
    ),
    "a bomb": (spec(compression="zstd", n_bytes=len(BOMB)), BOMB),
    "compressed without its size": (spec(compression="zstd", n_bytes=len(UNSIZED)), UNSIZED),
    "compressed, of another size": (spec(compression="zstd", n_bytes=len(zstd(b"xy"))), zstd(b"xy")),
    "compressed, cut": (spec(compression="zstd", n_bytes=len(zstd(ZEROS)) - 1), zstd(ZEROS)[:-1]),
    "compressed, with more behind": (
        spec(compression="zstd", n_bytes=len(zstd(ZEROS)) * 2),
        zstd(ZEROS) * 2,
    ),
    "compressed, damaged": (spec(compression="zstd", n_bytes=len(DAMAGED)), bytes(DAMAGED)),
    "not compressed at all": (spec(compression="zstd"), ZEROS),
    "compressed, and empty": (spec(compression="zstd", n_bytes=0), b""),
    "compressed, behind a frame that is skipped": compressed(
        struct.pack("<II", SKIPPABLE, 4) + b"skip" + zstd(ZEROS)
    ),
    "compressed, behind a skipped frame of 4 GiB": compressed(
        struct.pack("<II", SKIPPABLE, 2**32 - 1) + zstd(ZEROS)
    ),
    "compressed with a dictionary that is not here": compressed(
        zstd_frame(0b00100001, b"\x07\x18", ZEROS_BLOCK)
    ),
    "compressed over a window of 2^41": compressed(zstd_frame(0b10000000, b"\xf8\x18\0\0\0", ZEROS_BLOCK)),
    "compressed, with a reserved bit": compressed(zstd_frame(0b00101000, b"\x18", ZEROS_BLOCK)),
    "compressed, of a size of 2^64 - 1": compressed(zstd_frame(0b11100000, b"\xff" * 8, ZEROS_BLOCK)),
    "compressed, blocks that repeat one byte for ever": compressed(
        zstd_frame(0b00100000, b"\x18", ((2**17 << 3) | 2).to_bytes(3, "little") + b"a") * 3
    ),
    "compressed, a block that is reserved": compressed(zstd_frame(0b00100000, b"\x18", b"\xc7\0\0" + ZEROS)),
    "compressed, without a last block": compressed(zstd_frame(0b00100000, b"\x18", b"\0\0\0" * 1000)),
    "compressed, with a wrong checksum": compressed(
        zstd_frame(0b00100100, b"\x18", ZEROS_BLOCK + b"\1\2\3\4")
    ),
}


@pytest.mark.parametrize(("tensor_spec", "content"), HOSTILE_TENSORS.values(), ids=list(HOSTILE_TENSORS))
def test_a_hostile_tensor_is_refused_within_bounds(tensor_spec, content):
    taken = allocated_by(lambda: tensors.decode(tensor_spec, memoryview(content)))
    assert taken <= len(content) + SLACK_BYTES


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "int64"])
@pytest.mark.parametrize("honest", [True, False])
def test_a_bomb_in_any_codec_stops_at_the_cap(codec, honest):
    """64 MiB of zeros in 2 KiB: as a tensor of its own size beyond the cap, or as one that claims to be small."""
    shape = (2**24 + 1, 8) if honest else (2, 3)
    bomb_spec = spec(codec, shape, compression="zstd", n_bytes=len(BOMB))
    assert allocated_by(lambda: tensors.decode(bomb_spec, memoryview(BOMB))) <= len(BOMB) + SLACK_BYTES


def test_a_bomb_that_hides_its_size_stops_at_the_tensors_own():
    """The frame says 24 bytes and holds 64 MiB."""
    small, large = zstd(ZEROS), BOMB
    parameters = zstandard.get_frame_parameters(large)
    assert parameters.content_size == 2**26
    header_small = zstandard.frame_header_size(small)
    forged = small[:header_small] + large[zstandard.frame_header_size(large) :]
    forged_spec = spec(compression="zstd", n_bytes=len(forged))
    assert zstandard.frame_content_size(forged) == 24
    assert allocated_by(lambda: tensors.decode(forged_spec, memoryview(forged))) <= len(forged) + SLACK_BYTES


def test_a_frame_by_hand_is_taken():
    """Or those above would be refused for the wrong reason."""
    for descriptor, fields in ((0b00100000, b"\x18"), (0b10000000, b"\x50\x18\0\0\0")):
        by_hand, content = compressed(zstd_frame(descriptor, fields, ZEROS_BLOCK))
        assert not tensors.decode(by_hand, memoryview(content)).any()


# Payloads: a header that is valid, around a body that is not what the job asks for


def payload(*, h: np.ndarray | None = None, y: np.ndarray | None = None, **fields: object) -> bytearray:
    parts = (
        tensors.encode_activations("h", BATCH.h if h is None else h, "float32"),
        tensors.encode_labels("y", BATCH.y if y is None else y),
    )
    body = b"".join(part.content for part in parts)
    header = msgspec.structs.replace(
        PAYLOAD, tensors=[part.spec for part in parts], sha256=hashlib.sha256(body).digest()
    )
    return frames.encode(msgspec.structs.replace(header, **fields), [body])


def take(frame: bytearray) -> payloads.Batch:
    header, body = payloads.decode(frame, device=DEVICE)
    return payloads.to_batch(header, body, activation_shape=[3], n_classes=2, batch_size=4)


LABELS = np.array([0, 1], np.int64)
TENSORS = (
    PAYLOAD.tensors[0],
    msgspec.structs.replace(PAYLOAD.tensors[0], name="y", shape=[2], codec="int64", n_bytes=16),
)
HOSTILE_PAYLOADS = {
    "another device": payload(device="dev2"),
    "a digest of something else": payload(sha256=bytes(32)),
    "a label below zero": payload(y=np.array([0, -1])),
    "a label beyond the classes": payload(y=np.array([0, 2])),
    "a label of 2^62": payload(y=np.array([0, 2**62])),
    "fewer labels than samples": payload(y=np.array([0])),
    "labels of two axes": payload(y=np.array([[0], [1]])),
    "activations of another cut": payload(h=np.zeros((2, 4), np.float32)),
    "activations of more axes": payload(h=np.zeros((2, 3, 1), np.float32)),
    "a training batch of one": payload(h=BATCH.h[:1], y=LABELS[:1]),
    "a batch of more than the job says": payload(h=np.zeros((5, 3), np.float32), y=np.zeros(5, np.int64)),
    "more right than there are": payload(exit_correct=3),
    "labels first": payload(tensors=[TENSORS[1], TENSORS[0]]),
    "activations only": payload(tensors=[TENSORS[0]]),
    "a third tensor": payload(tensors=[*TENSORS, TENSORS[1]]),
    "labels in half precision": payload(
        tensors=[TENSORS[0], msgspec.structs.replace(TENSORS[1], codec="float16")]
    ),
    "activations as int64": payload(tensors=[msgspec.structs.replace(TENSORS[0], codec="int64"), TENSORS[1]]),
    "tensors shorter than the body": payload(
        tensors=[TENSORS[0], msgspec.structs.replace(TENSORS[1], n_bytes=15)]
    ),
    "tensors that overlap": payload(
        tensors=[
            msgspec.structs.replace(TENSORS[0], n_bytes=32),
            msgspec.structs.replace(TENSORS[1], n_bytes=8),
        ]
    ),
    "a message that is no payload": frames.encode(BYE),
}


@pytest.mark.parametrize("frame", HOSTILE_PAYLOADS.values(), ids=list(HOSTILE_PAYLOADS))
def test_a_hostile_payload_is_refused_within_bounds(frame):
    assert allocated_by(lambda: take(frame)) <= len(frame) + SLACK_BYTES


def test_the_payload_they_are_made_of_is_taken():
    assert (take(payload()).h == BATCH.h).all()
    assert len(take(payload(h=BATCH.h[:1], y=LABELS[:1], kind="eval", exit_correct=0)).y) == 1
