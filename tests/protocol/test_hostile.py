"""Headers, words and topics made to hurt: each is refused, at no more memory than PROTOCOL.md 12 allows."""

import struct

import msgspec
import pytest

from tests.protocol.bounds import SLACK_BYTES, allocated_by
from tests.protocol.samples import (
    ADDRESS,
    ASSIGNMENT,
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
from toolkit.wire import chunks, frames
from toolkit.wire.topics import Topics
from toolkit.wire.words import read_bridge_word, read_device_word

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
