"""What is fuzzed: every decoder of bytes that come from elsewhere, the errors it may raise, and inputs to begin with.

A target takes any bytes and returns, or raises one of its own refusals. Where a length or a digest guards the rest, the
target forges it, so that mutations reach what lies behind.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import msgspec
import numpy as np

from tests.protocol.samples import ADDRESS, BATCH, HELLO, JOB, MESSAGES, NONCE
from toolkit.bundle.manifest import decode_manifest, encode_manifest
from toolkit.errors import (
    BundleError,
    CheckpointError,
    HseeError,
    ProfileError,
    RemoteProtocolError,
    RunError,
)
from toolkit.profile.schema import parse_profile
from toolkit.wire import chunks, frames, payloads, seats, session, tensors, words
from toolkit.wire.messages import (
    Assignment,
    Chunk,
    Fenced,
    Hello,
    Payload,
    Refusal,
    State,
    TensorSpec,
    Welcome,
)
from toolkit.wire.topics import Topics

ROOT = Path(__file__).parents[2]
_PREFIX = b"HSEE\x01\0\0\0"


@dataclass(frozen=True)
class Target:
    """One decoder.

    Attributes:
        decode: takes any bytes.
        refusals: what it may raise.
        seeds: valid inputs, and some that are nearly so.
    """

    decode: Callable[[bytes], object]
    refusals: tuple[type[HseeError], ...]
    seeds: list[bytes] = field(default_factory=list)


def _headed(header: bytes, body: bytes = b"") -> bytes:
    return _PREFIX + len(header).to_bytes(4, "little") + header + body


def _frame(data: bytes) -> None:
    message, body = frames.decode(data)
    again, rest = frames.decode(frames.encode(message, [body]))
    assert (again, bytes(rest)) == (message, bytes(body))


def _header(data: bytes) -> None:
    """Any header, in a frame whose length is right."""
    message, _ = frames.decode(_headed(data))
    assert frames.decode(frames.encode(message))[0] == message


def _payload(data: bytes) -> None:
    """Any payload, whose digest is right."""
    message, body = frames.decode(data)
    if isinstance(message, Payload):
        message = msgspec.structs.replace(message, device="dev1", sha256=hashlib.sha256(body).digest())
    header, body = payloads.decode(frames.encode(message, [body]), device="dev1")
    batch = payloads.to_batch(header, body, activation_shape=[3], n_classes=2, batch_size=8)
    assert np.isfinite(batch.h).all()
    assert batch.h.dtype == np.float32
    assert batch.y.max() < 2


def _tensor(codec: str) -> Callable[[bytes], None]:
    kind, _, compression = codec.partition("+")

    def decode(data: bytes) -> None:
        spec = TensorSpec(
            name="h",
            shape=[2, 3],
            codec=kind,  # type: ignore[arg-type]
            n_bytes=len(data),
            compression="zstd" if compression else "none",
        )
        array = tensors.decode(spec, memoryview(data))
        assert array.shape == (2, 3)
        assert np.isfinite(array).all()

    return decode


def _chunks(data: bytes) -> None:
    """Frames one after the other, each behind its length of two bytes, into one assembler."""
    assembler = chunks.Assembler()
    at = 0
    while at + 2 <= len(data):
        n = int.from_bytes(data[at : at + 2])
        try:
            header, body = frames.decode(data[at + 2 : at + 2 + n])
            if isinstance(header, Chunk):
                whole = assembler.add(header, body)
                assert whole is None or len(whole) == header.total_bytes
        except RemoteProtocolError:
            pass
        at += 2 + n


def _chunk_stream(order: list[int]) -> bytes:
    whole = payloads.encode(ADDRESS, BATCH, "float32")
    parts = list(chunks.split(whole, payload_id=NONCE, chunk_bytes=100))
    parts += list(chunks.split(whole, payload_id=NONCE[::-1], chunk_bytes=190))
    return b"".join(len(parts[i]).to_bytes(2) + parts[i] for i in order)


def _word(data: bytes) -> None:
    words.read_bridge_word(data)


def _device_word(data: bytes) -> None:
    bytes.fromhex(words.read_device_word(data).boot_nonce)


def _topic(data: bytes) -> None:
    Topics("home").device_of(data.decode(errors="surrogateescape"), leaf="up")


def _device_session(data: bytes) -> None:
    """Headers one after the other, each behind its length, to a device that waits for its welcome."""
    state = session.DeviceState(NONCE)
    for event in (session.LinkUp(), session.BridgeSeen("run1", 0.0)):
        state, _ = session.step(state, event)
    for header in _headers(data):
        message, _ = frames.decode(_headed(header))
        if isinstance(message, Welcome | Assignment | State | Refusal | Fenced):
            state, _ = session.step(state, session.Got(message, 1.0))
            assert len(session.may_send(state)) >= 0


def _seat(data: bytes) -> None:
    """Hellos one after the other, to a seat of the coordinator."""
    seat = seats.Seat("dev1", "run1", 1)
    for number, header in enumerate(_headers(data), start=1):
        message, _ = frames.decode(_headed(header))
        if isinstance(message, Hello):
            seat, _ = seats.step(seat, seats.HelloHeard(message, seats.Judgement(), number, 1.0))


def _headers(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at + 2 <= len(data):
        n = int.from_bytes(data[at : at + 2])
        found.append(data[at + 2 : at + 2 + n])
        at += 2 + n
    return found


def _profile(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    parse_profile(text)


def _manifest(data: bytes) -> None:
    encode_manifest(decode_manifest(data, where="fuzz"))


@cache
def _scratch() -> Path:
    """A folder in memory: some decoders read files."""
    shm = Path("/dev/shm")  # noqa: S108 - a folder of its own is made in it
    return Path(tempfile.mkdtemp(prefix="hsee-fuzz-", dir=shm if shm.is_dir() else None))


def _ledger(data: bytes) -> None:
    """Entries a line, in a chain that is right."""
    from coordinator.store.ledger import GENESIS, read_ledger

    head, lines = GENESIS, []
    for entry in data.split(b"\n"):
        head = hashlib.sha256(head + entry).digest()
        lines.append(b'{"hash":"%s","entry":%s}\n' % (head.hex().encode(), entry))
    path = _scratch() / "ledger"
    path.write_bytes(b"".join(lines))
    read_ledger(path)


def _checkpoint(data: bytes) -> None:
    from coordinator.store.checkpoints import Generation

    (_scratch() / "checkpoint.json").write_bytes(data)
    Generation(_scratch()).state()


def _run_record(data: bytes) -> None:
    from coordinator.store.run_folder import RunFolder

    (_scratch() / "run-copy.json").unlink(missing_ok=True)
    (_scratch() / "run.json").write_bytes(data)
    RunFolder(_scratch(), "run1").close()


def _segment_record(data: bytes) -> None:
    from toolkit.nn.segment_record import RECORD_FILE, read_record

    (_scratch() / RECORD_FILE).write_bytes(data)
    read_record(_scratch())


def _weights(data: bytes) -> None:
    from toolkit.nn.weights import load_tensors

    path = _scratch() / "weights"
    path.write_bytes(data)
    load_tensors(path)


def _golden_headers() -> list[bytes]:
    return [bytes(frames.encode(message)[12:]) for message in MESSAGES]


def _packed(*headers: bytes) -> bytes:
    return b"".join(len(header).to_bytes(2) + header for header in headers)


_LONG_PROFILES = (
    b"schema = " + b"9" * 4301,
    b"a." * 1000 + b"a = 1",
    b"[" + b"a." * 1000 + b"a]",
    b"a = " + b"[" * 1000,
)
"""What a mutation of a few bytes does not make: numbers, keys and lists longer than any reader was made for."""


def _profile_seed() -> bytes:
    return (ROOT / "profiles/emulated/small.toml").read_bytes()


def _manifest_seed() -> bytes:
    from tests.tiny_bundles import manifest_of, scaling_segment

    return encode_manifest(manifest_of(scaling_segment(1)))


def _checkpoint_seed() -> bytes:
    from coordinator.store.checkpoints import CommittedState

    state = CommittedState(
        round=1, plan_version=1, jobs={"ant": JOB}, lists={"ant": (2, 1)}, activation_shapes={"ant": [3]}
    )
    return msgspec.json.encode(state)


def _ledger_seed() -> bytes:
    from coordinator.store.ledger import (
        Aggregated,
        Applied,
        Closed,
        Issued,
        Opened,
        Planned,
        TermRaised,
        Void,
    )

    entries = (
        TermRaised(1),
        Issued("ant", 1),
        Planned(1, {"ant": "layer1"}),
        Opened(1, {"ant": (2, 1)}),
        Applied("ant", 1, 1, "00" * 32, 0),
        Void("ant", 1, 2, 3, "deadline"),
        Aggregated(1, {"ant": 1}),
        Closed(1, "complete"),
    )
    return b"\n".join(map(msgspec.json.encode, entries))


def _run_record_seed() -> bytes:
    from coordinator.store.run_record import RunRecord, encode_record

    return encode_record(RunRecord(run="run1", term=2, incarnations={"ant": 1}))


def _segment_record_seed() -> bytes:
    from toolkit.nn.segment_record import SegmentRecord

    return msgspec.json.encode(
        SegmentRecord(device="ant", job=JOB, round=1, exit_accuracy=0.5, n_eval=4, software={"hsee": "0"})
    )


def _weights_seed() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


def make_targets() -> dict[str, Target]:
    """Make all targets by name; imports what they need (torch for one of them)."""
    remote = (RemoteProtocolError,)
    headers = _golden_headers()
    by_type = dict(zip((type(message).__name__ for message in MESSAGES), headers, strict=True))
    words_seeds = [
        b'{"state":"online","run":"run1","term":2}',
        b'{"state":"offline","boot_nonce":"00112233445566778899aabbccddeeff"}',
    ]
    targets = {
        "frame": Target(_frame, remote, [bytes(frames.encode(m, [b"body"])) for m in MESSAGES]),
        "header": Target(_header, remote, headers),
        "payload": Target(
            _payload, remote, [bytes(payloads.encode(ADDRESS, BATCH, codec)) for codec in tensors.CODECS]
        ),
        "chunks": Target(
            _chunks, remote, [_chunk_stream([*range(5)]), _chunk_stream([3, 0, 5, 0, 1, 4, 2, 3])]
        ),
        "bridge-word": Target(_word, remote, words_seeds),
        "device-word": Target(_device_word, remote, words_seeds),
        "topic": Target(_topic, remote, [Topics("home").up("run1", "dev1").encode()]),
        "device-session": Target(
            _device_session,
            remote,
            [
                _packed(by_type["Welcome"], by_type["Assignment"], by_type["State"]),
                _packed(by_type["Refusal"], by_type["Fenced"]),
            ],
        ),
        "seat": Target(_seat, remote, [_packed(by_type["Hello"], _hello(b"\1"), by_type["Hello"])]),
        "profile": Target(_profile, (ProfileError,), [_profile_seed(), *_LONG_PROFILES]),
        "manifest": Target(_manifest, (BundleError,), [_manifest_seed()]),
        "ledger": Target(_ledger, (CheckpointError,), [_ledger_seed()]),
        "checkpoint": Target(_checkpoint, (CheckpointError,), [_checkpoint_seed()]),
        "run-record": Target(_run_record, (CheckpointError, RunError), [_run_record_seed()]),
        "segment-record": Target(_segment_record, (CheckpointError,), [_segment_record_seed()]),
        "weights": Target(_weights, (CheckpointError,), [_weights_seed()]),
    }
    for codec in tensors.CODECS:
        content = tensors.encode_activations("h", BATCH.h, codec).content
        targets[f"tensor-{codec}"] = Target(_tensor(codec), remote, [content])
    return targets


def _hello(nonce: bytes) -> bytes:
    return bytes(frames.encode(msgspec.structs.replace(HELLO, boot_nonce=nonce * 16))[12:])
