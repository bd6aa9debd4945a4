"""Messages made to hurt: each is refused with RemoteProtocolError, at no more memory than PROTOCOL.md 12 allows."""

import hashlib
import struct
import tracemalloc
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import zstandard

from tests.protocol.samples import (
    ADDRESS,
    ASSIGNMENT,
    BATCH,
    BYE,
    CHUNK,
    HELLO,
    NONCE,
    PACE,
    PAYLOAD,
    STATE,
    WELCOME,
)
from toolkit.errors import RemoteProtocolError
from toolkit.wire import chunks, frames, payloads, tensors
from toolkit.wire.messages import TensorSpec
from toolkit.wire.topics import Topics
from toolkit.wire.words import read_bridge_word, read_device_word

SLACK_BYTES = 64 * 1024
SMALL_VALUES_FACTOR = 40
DEVICE = ADDRESS.device
pack = msgspec.msgpack.encode


def prefix(*, magic: bytes = b"HSEE", version: int = 1, n_header: int) -> bytes:
    return struct.pack("<4sB3xI", magic, version, n_header)


def framed(header: bytes) -> bytes:
    return prefix(n_header=len(header)) + header


def changed(message: msgspec.Struct, **fields: object) -> bytes:
    """A frame of ``message`` with fields of any value whatever."""
    header = msgspec.msgpack.decode(pack(message))
    return framed(pack(header | fields))


def without(message: msgspec.Struct, field: str) -> bytes:
    header = msgspec.msgpack.decode(pack(message))
    del header[field]
    return framed(pack(header))


def with_raw(message: msgspec.Struct, field: str, raw: bytes) -> bytes:
    """A frame of ``message`` with one more field, or one twice, whose value is raw msgpack."""
    header = bytearray(pack(message))
    assert header[0] >> 4 == 8
    n_fields = (header[0] & 15) + 1
    return framed(b"\xde" + n_fields.to_bytes(2) + bytes(header[1:]) + pack(field) + raw)


def nested(message: msgspec.Struct, part: str, **fields: object) -> bytes:
    header = msgspec.msgpack.decode(pack(message))
    return changed(message, **{part: header[part] | fields})


LYING_FRAMES = {
    "nothing": b"",
    "a prefix only": prefix(n_header=0),
    "another magic": prefix(magic=b"HSEF", n_header=1) + b"\x80",
    "version 0": prefix(version=0, n_header=1) + b"\x80",
    "version 2": prefix(version=2, n_header=1) + b"\x80",
    "a header of 4 GiB": prefix(n_header=2**32 - 1) + b"\x80",
    "a header of 64 KiB and one": prefix(n_header=2**16 + 1) + b"\xc0" * (2**16 + 1),
    "a header longer than its message": prefix(n_header=100) + b"\x80",
    "an empty map": framed(b"\x80"),
    "no map": framed(b"\xc0"),
    "an array": framed(b"\x91\xa4type"),
    "a map of 4 Gi keys": framed(b"\xdf\xff\xff\xff\xff\xa4type\xa3bye"),
    "a map of 64 Ki keys": framed(b"\xde\xff\xff\xa4type\xa3bye"),
    "65 keys": framed(b"\xde\x00\x41" + b"".join(pack(f"k{i}") + b"\xc0" for i in range(65))),
    "a map that ends before its count": framed(b"\xdf\x00"),
    "a key that is a number": framed(b"\x81\x01\x02"),
    "bytes behind the header": framed(pack(BYE) + b"\0"),
    "an extension type": framed(b"\x81\xa4type\xc7\xff\x01"),
    "a type that is a number": framed(b"\x81\xa4type\x01"),
    "an unknown type": changed(BYE, type="shutdown"),
    "no type": without(BYE, "type"),
    "a missing key": without(STATE, "limit"),
    "a repeated key": with_raw(BYE, "reason", pack("another")),
    "a repeated type": with_raw(BYE, "type", pack("hello")),
    "a text of 4 GiB": with_raw(BYE, "reason2", b"\xdb\xff\xff\xff\xff"),
    "bytes of 4 GiB": framed(b"\x82\xa4type\xa3bye\xaaboot_nonce\xc6\xff\xff\xff\xff"),
    "a list of 4 Gi numbers": framed(b"\x82\xa4type\xa5hello\xa9protocols\xdd\xff\xff\xff\xff"),
    "200,000 tensors": framed(b"\x82\xa4type\xa7payload\xa7tensors\xdd\x00\x03\x0d\x40"),
    "options of 4 Gi keys": framed(
        b"\x82\xa4type\xaaassignment\xa3job\x81\xa5model\x81\xa7options\xdf\xff\xff\xff\xff"
    ),
    "a list of 4 Gi unknowns": with_raw(BYE, "new", b"\xdd\xff\xff\xff\xff"),
    "60,000 lists in lists": with_raw(BYE, "new", b"\x91" * 60_000 + b"\xc0"),
    "20,000 maps in maps": with_raw(BYE, "new", b"\x81\xa1k" * 20_000 + b"\xc0"),
    "text that is no UTF-8": framed(pack(BYE).replace(b"stopped", b"\xff\xfe\xfd\xfc\xfb\xfa\xf9")),
    "a nonce of 15 bytes": changed(BYE, boot_nonce=NONCE[:15]),
    "a nonce of 17 bytes": changed(BYE, boot_nonce=NONCE + b"\0"),
    "an empty name": changed(BYE, device=""),
    "a name of 65 letters": changed(BYE, device="a" * 65),
    "a name with a slash": changed(BYE, device="a/b"),
    "a name with a wildcard": changed(BYE, device="+"),
    "a name that climbs": changed(BYE, device=".."),
    "a name that ends with a line": changed(BYE, device="dev1\n"),
    "a reason of 1025 letters": changed(BYE, reason="x" * 1025),
    "a pace of no steps": changed(PACE, n_steps=0),
    "a step that takes no number": changed(PACE, step_ms=float("nan")),
    "an upload before it began": changed(PACE, upload_ms=-1.0),
    "an endless upload": changed(PACE, upload_ms=float("inf")),
    "a negative chunk": changed(CHUNK, index=-1),
    "a chunk beyond the last": changed(CHUNK, index=2),
    "no chunks": changed(CHUNK, index=0, n_chunks=0),
    "4097 chunks": changed(CHUNK, n_chunks=4097, total_bytes=2**20),
    "a payload of 1 TB": changed(CHUNK, total_bytes=10**12),
    "a payload of 2^64 - 1 bytes": changed(CHUNK, total_bytes=2**64 - 1),
    "a payload of -1 bytes": changed(CHUNK, total_bytes=-1),
    "an empty chunk": changed(CHUNK, index=3, n_chunks=4, total_bytes=5),
    "more chunks than bytes": changed(CHUNK, n_chunks=4096),
    "a chunk count that is a float": changed(CHUNK, n_chunks=2.5),
    "a term of zero": changed(STATE, term=0),
    "a negative round": changed(STATE, round=-1),
    "a round of 2^63": changed(STATE, round=2**63),
    "credit that runs backwards": changed(STATE, next=9, limit=3),
    "an unknown phase": changed(STATE, phase="paused"),
    "time that is no number": changed(STATE, round_left_s=float("nan")),
    "endless time": changed(STATE, round_left_s=float("inf")),
    "a true that is no number": changed(STATE, n=True),
    "257 tensors": changed(PAYLOAD, tensors=[msgspec.to_builtins(PAYLOAD.tensors[0])] * 257),
    "no tensor": changed(PAYLOAD, tensors=[]),
    "a digest of 31 bytes": changed(PAYLOAD, sha256=bytes(31)),
    "a loss that is no number": changed(PAYLOAD, exit_loss=float("nan")),
    "an endless loss": changed(PAYLOAD, exit_loss=float("inf")),
    "a negative loss": changed(PAYLOAD, exit_loss=-0.5),
    "an unknown kind": changed(PAYLOAD, kind="test"),
    "seq zero": changed(PAYLOAD, seq=0),
    "one class": nested(HELLO, "data", classes=["a"]),
    "no training samples": nested(HELLO, "data", n_train=0),
    "moments of other channels": nested(HELLO, "data", mean=[0.0]),
    "a mean that is no number": nested(HELLO, "data", mean=[0.0, float("nan"), 0.0]),
    "a mean whose square overflows": nested(HELLO, "data", mean=[0.0, 1e200, 0.0]),
    "a negative variance": nested(HELLO, "data", var=[1.0, -1.0, 1.0]),
    "samples of 8 axes": nested(HELLO, "data", input_shape=[3] * 8),
    "no version": changed(HELLO, protocols=[]),
    "17 versions": changed(HELLO, protocols=list(range(1, 18))),
    "a profile of 33 KiB": changed(HELLO, profile="x" * 33 * 1024),
    "a batch of one": nested(ASSIGNMENT, "job", batch_size=1),
    "a run that is a path": nested(ASSIGNMENT, "job", run="../run1"),
    "a list where a map belongs": changed(WELCOME, measure=[1]),
    "a map where a list belongs": changed(PAYLOAD, tensors={"name": "h"}),
    "a whole number that is a float": changed(STATE, round=2.0),
    "an n of -2^63": changed(STATE, n=-(2**63)),
    "an index that is false": changed(CHUNK, index=False),
    "an index that is text": changed(CHUNK, index="1"),
    "a nonce that is text": changed(BYE, boot_nonce="a" * 16),
    "a name that is bytes": changed(BYE, device=b"dev1"),
    "a name in other letters": changed(BYE, device="d\u0435v1"),
    "nil where a default stands": changed(PAYLOAD, remade=None),
    "a digest that is a list": changed(PAYLOAD, sha256=list(range(32))),
    "a loss that is text": changed(PAYLOAD, exit_loss="0.5"),
    "a round of the year 2^53 + 1": changed(STATE, round=2**53 + 1),
    "a key that lacks its fellow": framed(pack(HELLO).replace(b"\xa6n_eval", b"\xa6n_evil")),
    "a byte that msgpack has no use for": with_raw(BYE, "new", b"\xc1"),
    "an unknown extension of 4 GiB": with_raw(BYE, "new", b"\xc9\xff\xff\xff\xff\x01"),
    "an unknown text of 2 GiB": with_raw(BYE, "new", b"\xdb\x7f\xff\xff\xff"),
    "an unknown map of 4 Gi keys": with_raw(BYE, "new", b"\xdf\xff\xff\xff\xff"),
    "a key of 4 GiB": framed(b"\x82\xa4type\xa3bye\xdb\xff\xff\xff\xff"),
    "a type in bytes": framed(pack(BYE).replace(b"\xa4type\xa3bye", b"\xa4type\xc4\x03bye")),
    "a type in upper case": changed(BYE, type="BYE"),
    "another message's type": changed(BYE, type="state"),
    "a frame in a frame": framed(framed(pack(BYE))),
}


def tensor(spec: dict[str, object], **fields: object) -> bytes:
    base = {"name": "h", "shape": [2, 3], "codec": "float32", "n_bytes": 24, "compression": "none"}
    return changed(PAYLOAD, tensors=[base | spec | fields])


LYING_FRAMES |= {
    "a tensor of 2^64 values": tensor({}, shape=[2**32, 2**32]),
    "a tensor of negative size": tensor({}, shape=[-1, 3]),
    "a tensor of no samples": tensor({}, shape=[0, 3]),
    "a tensor of 9 axes": tensor({}, shape=[1] * 9),
    "a tensor of 1 TB": tensor({}, n_bytes=10**12),
    "a tensor of -1 bytes": tensor({}, n_bytes=-1),
    "a tensor of text": tensor({}, codec="object"),
    "a tensor in an unknown compression": tensor({}, compression="lzma"),
}

MANY_SMALL_VALUES = {
    "60,000 numbers for means": framed(
        b"\x82\xa4type\xa5hello\xa4data\x81\xa4mean\xdc\xf0\x00" + b"\x00" * 0xF000
    ),
    "20,000 classes, the last empty": nested(HELLO, "data", classes=[f"{i:x}" for i in range(12_000)] + [""]),
    "3,000 options, the last a list": framed(
        pack(
            msgspec.msgpack.decode(pack(ASSIGNMENT))
            | {"job": {"model": {"options": {f"o{i}": i for i in range(6000)} | {"last": []}}}}
        )
    ),
}


def allocated_by(call: Callable[[], object], *, refusal: type[Exception] = RemoteProtocolError) -> int:
    """Peak bytes that a refused call allocated."""
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(refusal):
            call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("frame", LYING_FRAMES.values(), ids=list(LYING_FRAMES))
def test_a_hostile_header_is_refused_within_bounds(frame):
    assert allocated_by(lambda: frames.decode(frame)) <= len(frame) + SLACK_BYTES


@pytest.mark.parametrize("frame", MANY_SMALL_VALUES.values(), ids=list(MANY_SMALL_VALUES))
def test_a_header_full_of_small_values_costs_no_more_than_is_written(frame):
    assert allocated_by(lambda: frames.decode(frame)) <= SMALL_VALUES_FACTOR * len(frame) + SLACK_BYTES


def test_unknown_keys_and_widths_are_taken():
    """Or the lists above would be refused for the wrong reason."""
    assert frames.decode(with_raw(BYE, "new", pack({"a": [1, 2]})))[0] == BYE
    assert frames.decode(framed(pack(CHUNK).replace(b"\xa5index\x01", b"\xa5index\xcf" + b"\0" * 7 + b"\1")))[
        0
    ] == (CHUNK)
    assert frames.decode(prefix(n_header=len(pack(BYE)))[:5] + b"abc" + framed(pack(BYE))[8:])[0] == BYE
    for message in (BYE, CHUNK, STATE, PAYLOAD, HELLO, ASSIGNMENT, WELCOME):
        assert frames.decode(changed(message))[0] == message


# Tensors


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


# Words and topics


@pytest.mark.parametrize("read", [read_bridge_word, read_device_word])
@pytest.mark.parametrize(
    "word",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"x":' * 200 + b"0",
        b'{"state":"online","run":"run1","term":1,"x":' + b"[" * 100_000,
        b'{"state":"online","run":"run1","term":0}',
        b'{"state":"online","run":"run1","term":1,"boot_nonce":"0"}',
        b'{"state":"online","run":"run1","term":1,"boot_nonce":"' + b"A" * 32 + b'"}',
        b'{"state":"online","run":"run1","term":1,"boot_nonce":"' + b"a" * 32 + b'\\n"}',
        b'{"state":"online","run":"run1","term":1e400}',
        b'{"state":"online","run":"run1","term":' + b"9" * 900 + b"}",
        b'{"state":"online","run":"a/b","term":1}',
        b'{"state":"online","run":"a\\n","term":1}',
        b'{"state":"away","run":"a","term":1}',
        b'{"state":"online","boot_nonce":"' + b"0" * 31 + b'"}',
        b'{"state":"online","boot_nonce":"' + b"0" * 32 + b'\\n"}',
        b'{"state":"online","boot_nonce":"' + b"G" * 32 + b'"}',
        b'{"state":"online","run":"run1","term":1}' + b" " * 1024,
    ],
    ids=lambda word: word[:40].decode(errors="replace"),
)
def test_a_hostile_word_is_refused_within_bounds(read, word):
    assert allocated_by(lambda: read(word)) <= len(word) + SLACK_BYTES


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "hsee/v1/main/data/run1/dev1",
        "hsee/v1/main/data/run1/dev1/down",
        "hsee/v1/main/data/run1/x/dev1/up",
        "hsee/v1/other/data/run1/dev1/up",
        "hsee/v2/main/data/run1/dev1/up",
        "hsee/v1/main/data/run1//up",
        "hsee/v1/main/data/run1/../up",
        "hsee/v1/main/data/run1/dev 1/up",
        "hsee/v1/main/data/run1/dev1\n/up",
        "hsee/v1/main/data/run1/" + "a" * 65 + "/up",
        "hsee/v1/main/device/dev1/state",
    ],
)
def test_a_hostile_topic_is_refused(topic):
    with pytest.raises(RemoteProtocolError):
        Topics("main").device_of(topic, leaf="up")


def test_a_device_is_read_out_of_its_topics():
    topics = Topics("main")
    assert topics.device_of(topics.up("run1", "dev1"), leaf="up") == "dev1"
    assert topics.device_of(topics.device_state("dev1"), leaf="state") == "dev1"


# Chunks


def test_a_chunk_that_announces_much_holds_only_what_came():
    chunk = msgspec.structs.replace(CHUNK, index=0, n_chunks=4096, total_bytes=2**26)
    frame = frames.encode(chunk, [bytes(chunk.chunk_bytes)])

    def call() -> None:
        assembler = chunks.Assembler()
        header, body = frames.decode(frame)
        assert assembler.add(header, body) is None
        assembler.add(msgspec.structs.replace(header, total_bytes=2**26 - 1), body)

    assert allocated_by(call) <= len(frame) + SLACK_BYTES
