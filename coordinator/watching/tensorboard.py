"""Numbers of a run as TensorBoard reads them: one event file a device, written without TensorBoard.

A file is a row of records: length (uint64), its masked CRC-32C, the bytes, their masked CRC-32C; the bytes are a
protobuf message ``tensorflow.Event``, of which four fields are needed. Source: tensorflow/core/util/event.proto and
tensorflow/core/lib/io/record_writer.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import cache

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, reversed."""
_MASK_DELTA = 0xA282EAD8
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def event_file(scalars: Iterable[tuple[int, str, float]], *, wall_time_s: float) -> bytes:
    """Write an event file.

    Args:
        scalars: (step, tag, value).
        wall_time_s: Unix time that every event carries.
    Returns: the file's content.
    """
    head = _field(1, _FIXED64, struct.pack("<d", wall_time_s))
    records = [_record(head + _field(3, _LENGTH, _sized(b"brain.Event:2")))]
    for step, tag, value in scalars:
        content = _field(1, _LENGTH, _sized(tag.encode())) + _field(2, _FIXED32, struct.pack("<f", value))
        summary = _field(1, _LENGTH, _sized(content))
        records.append(
            _record(head + _field(2, _VARINT, _varint(step)) + _field(5, _LENGTH, _sized(summary)))
        )
    return b"".join(records)


def masked_crc(content: bytes) -> int:
    """CRC-32C, rotated and shifted so that a checksum of checksums is no trouble."""
    crc = 0xFFFFFFFF
    table = _table()
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked_crc(length)) + content + struct.pack("<I", masked_crc(content))


def _field(number: int, kind: int, content: bytes) -> bytes:
    return _varint(number << 3 | kind) + content


def _sized(content: bytes) -> bytes:
    return _varint(len(content)) + content


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


@cache
def _table() -> tuple[int, ...]:
    made = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        made.append(crc)
    return tuple(made)
