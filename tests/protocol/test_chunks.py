"""Payloads in pieces, in any order, from any number of renderings at a time."""

import random
import tracemalloc

import msgspec
import pytest

from toolkit.errors import LocalProtocolError, RemoteProtocolError
from toolkit.wire import frames
from toolkit.wire.chunks import Assembler, split
from toolkit.wire.limits import (
    CHUNK_OVERHEAD_BYTES,
    DEFAULT_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_MESSAGE_BYTES,
    MAX_OPEN_PAYLOADS,
    MAX_PAYLOAD_BYTES,
)
from toolkit.wire.messages import Chunk


def pid(number: int) -> bytes:
    return number.to_bytes(16)


def content(number: int, n_bytes: int = 100) -> bytes:
    return random.Random(number).randbytes(n_bytes)


def pieces(number: int, n_bytes: int = 100, chunk_bytes: int = 7) -> list[bytearray]:
    return list(split(content(number, n_bytes), payload_id=pid(number), chunk_bytes=chunk_bytes))


def add(assembler: Assembler, frame: bytearray) -> bytes | None:
    header, body = frames.decode(frame)
    assert isinstance(header, Chunk)
    return assembler.add(header, body)


@pytest.mark.parametrize("n_bytes", [1, 6, 7, 8, 13, 14, 15, 49, 50, 100])
@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 99, 100, 101])
def test_a_payload_of_any_length_comes_together(n_bytes, chunk_bytes):
    assembler = Assembler()
    sent = pieces(1, n_bytes, chunk_bytes)
    got = [add(assembler, frame) for frame in sent]
    assert got == [None] * (len(sent) - 1) + [content(1, n_bytes)]
    assert max(len(frames.decode(frame)[1]) for frame in sent) <= chunk_bytes


@pytest.mark.parametrize("seed", range(5))
def test_order_and_doubles_do_not_matter(seed):
    assembler, frames_ = Assembler(), pieces(1)
    last = frames_.pop(seed)
    mixed = frames_ * 3
    random.Random(seed).shuffle(mixed)
    assert [add(assembler, frame) for frame in mixed] == [None] * len(mixed)
    assert add(assembler, last) == content(1)


def test_two_renderings_are_never_joined():
    assembler, one, two = Assembler(), pieces(1, 98), pieces(2, 98)
    half = len(one) // 2
    mixed = [frame for pair in zip(one[:half], two[half:], strict=True) for frame in pair]
    assert all(add(assembler, frame) is None for frame in mixed)
    assert [whole for frame in one[half:] if (whole := add(assembler, frame))] == [content(1, 98)]
    assert [whole for frame in two[:half] if (whole := add(assembler, frame))] == [content(2, 98)]


def test_a_chunk_that_contradicts_the_first_is_refused_and_leaves_the_payload_whole():
    assembler, good = Assembler(), pieces(1)
    add(assembler, good[0])
    for other in (pieces(1, 101)[1], pieces(1, 100, 6)[1]):
        with pytest.raises(RemoteProtocolError, match="different sizes"):
            add(assembler, other)
    assert [add(assembler, frame) for frame in good[1:]][-1] == content(1)


def test_the_first_of_two_pieces_counts():
    assembler, good = Assembler(), pieces(1)
    forged = bytearray(good[0])
    forged[-1] ^= 1
    for frame in (*good[:-1], forged, good[-1]):
        whole = add(assembler, frame)
    assert whole == content(1)


def test_what_is_abandoned_is_forgotten_oldest_first():
    assembler = Assembler()
    for number in range(MAX_OPEN_PAYLOADS + 1):
        add(assembler, pieces(number)[0])
    assert assembler.n_abandoned == 1
    assert [add(assembler, frame) for frame in pieces(MAX_OPEN_PAYLOADS)[1:]][-1] is not None
    assert [add(assembler, frame) for frame in pieces(1)[1:]][-1] == content(1)
    assert all(add(assembler, frame) is None for frame in pieces(0)[1:])


def test_a_flood_of_first_chunks_stays_bounded():
    assembler = Assembler()
    for number in range(1000):
        add(assembler, pieces(number)[0])
    assert assembler.n_abandoned == 1000 - MAX_OPEN_PAYLOADS
    assert len(assembler._open) == MAX_OPEN_PAYLOADS


def test_bytes_of_open_payloads_are_bounded_whatever_their_number():
    of_all_but_the_last = 14 * (7 + CHUNK_OVERHEAD_BYTES)
    assembler = Assembler(max_payload_bytes=of_all_but_the_last + CHUNK_OVERHEAD_BYTES)
    for number in range(3):
        for frame in pieces(number)[:-1]:
            assert add(assembler, frame) is None
            assert assembler.held_bytes <= 2 * of_all_but_the_last + 2 * CHUNK_OVERHEAD_BYTES
    assert assembler.n_abandoned == 1
    assert [whole for number in (1, 2) if (whole := add(assembler, pieces(number)[-1]))] == [
        content(1),
        content(2),
    ]
    assert assembler.held_bytes == 0
    assert add(assembler, pieces(0)[-1]) is None


def test_pieces_of_one_byte_are_counted_at_what_they_take():
    """32 KiB that took 16 MiB: the message is kept, and an entry for it."""
    most = 200_000
    assembler = Assembler(max_payload_bytes=most)
    header = Chunk(payload_id=pid(0), index=0, n_chunks=MAX_CHUNKS, total_bytes=MAX_CHUNKS)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(MAX_OPEN_PAYLOADS):
            for index in range(MAX_CHUNKS - 1):
                piece = msgspec.structs.replace(header, payload_id=pid(number), index=index)
                assert assembler.add(*frames.decode(bytes(frames.encode(piece, [b"x"])))) is None  # type: ignore[arg-type]
        assert tracemalloc.get_traced_memory()[0] - before <= 2 * most
    finally:
        tracemalloc.stop()
    assert assembler.held_bytes <= 2 * most


def test_a_payload_longer_than_the_job_has_is_refused_at_its_first_chunk():
    assembler = Assembler(max_payload_bytes=99)
    with pytest.raises(RemoteProtocolError, match="takes more than 99"):
        add(assembler, pieces(1)[0])
    assert assembler.held_bytes == 0


def test_a_late_double_of_a_finished_payload_brings_nothing():
    assembler, sent = Assembler(), pieces(1)
    for frame in sent:
        add(assembler, frame)
    assert add(assembler, sent[0]) is None


def test_every_chunk_passes_the_packet_limit():
    largest = Chunk(payload_id=pid(1), index=4094, n_chunks=MAX_CHUNKS, total_bytes=MAX_PAYLOAD_BYTES)
    assert len(frames.encode(largest)) <= CHUNK_OVERHEAD_BYTES
    assert DEFAULT_CHUNK_BYTES + CHUNK_OVERHEAD_BYTES <= MAX_MESSAGE_BYTES


def test_more_pieces_than_the_protocol_has_are_not_sent():
    with pytest.raises(LocalProtocolError, match="n_chunks"):
        pieces(1, MAX_CHUNKS + 1, 1)


@pytest.mark.parametrize("total_bytes", range(1, 40))
def test_a_count_is_refused_exactly_where_a_piece_would_be_empty(total_bytes):
    for n_chunks in range(1, 45):
        size = -(-total_bytes // n_chunks)
        fits = n_chunks == -(-total_bytes // size)
        header = {"type": "chunk", "payload_id": pid(1), "n_chunks": n_chunks, "total_bytes": total_bytes}
        raw = msgspec.msgpack.encode(header | {"index": 0})
        frame = b"HSEE\x01\0\0\0" + len(raw).to_bytes(4, "little") + raw
        if fits:
            assert frames.decode(frame)[0].n_chunks == n_chunks
        else:
            with pytest.raises(RemoteProtocolError):
                frames.decode(frame)
