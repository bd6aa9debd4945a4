"""Protocol buffers, read field by field where they lie: nothing is copied, nothing is allocated for what is announced.

Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10

Value = int | memoryview


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Walk over a message's fields.

    Yields: field number and value: an int of a varint, a view of everything else.
    Raises: ValueError: it is no message.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (FIXED64, FIXED32):
            length = 8 if kind == FIXED64 else 4
        else:
            msg = f"wire type {kind}"
            raise ValueError(msg)
        if length > len(message) - at:
            msg = f"a field of {length} bytes in {len(message) - at}"
            raise ValueError(msg)
        yield number, message[at : at + length]
        at += length


def encode_field(number: int, value: int | bytes | memoryview) -> bytes:
    """Write a field back: a varint, or bytes; messages with fixed-width fields are not for this.

    Args:
        number: of the field.
        value: as :func:`fields` gave it, or new.
    """
    if isinstance(value, int):
        return _encode_varint(number << 3 | VARINT) + _encode_varint(value)
    return _encode_varint(number << 3 | BYTES) + _encode_varint(len(value)) + bytes(value)


def integers(value: Value) -> list[int]:
    """Signed integers of a repeated field: one, or several packed.

    Raises: ValueError: what is packed is no row of varints.
    """
    if isinstance(value, int):
        return [_signed(value)]
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(_signed(number))
    return found


def view(value: Value) -> memoryview:
    """A value that must be bytes.

    Raises: ValueError: it is a number.
    """
    if isinstance(value, int):
        msg = "a number where bytes belong"
        raise ValueError(msg)  # noqa: TRY004 - of foreign data, not of a call
    return value


def text(value: Value) -> str:
    """A value that must be a string.

    Raises: ValueError: it is a number, or not UTF-8.
    """
    return bytes(view(value)).decode()


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    result = 0
    for i in range(_MAX_VARINT_BYTES):
        if at + i >= len(message):
            break
        byte = message[at + i]
        result |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that more follows
            return result & 0xFFFF_FFFF_FFFF_FFFF, at + i + 1
    msg = "a number without an end"
    raise ValueError(msg)


def _encode_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
