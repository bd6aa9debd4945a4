"""Frames: magic, version, header length, typed header, raw body; the one layout of every binary message.

offset  size  content
0       4     magic, the bytes ``HSEE``
4       1     protocol version
5       3     reserved: zero when sent, not looked at when received
8       4     header length in bytes, unsigned, little endian
12      n     header: one msgpack map, its ``type`` names the message
12+n    rest  body: raw bytes, what they are is said by the header
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TypeVar

import msgspec

from toolkit.errors import LocalProtocolError, RemoteProtocolError
from toolkit.wire.limits import MAGIC, MAX_FIELDS, MAX_HEADER_BYTES, PROTOCOL_VERSION
from toolkit.wire.messages import AnyMessage, Message, encode_header

Buffer = bytes | bytearray | memoryview
M = TypeVar("M", bound=Message)

_PREFIX = struct.Struct("<4sB3xI")
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)
_fields = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])


def encode(message: Message, body: Iterable[Buffer] = ()) -> bytearray:
    """Lay a message out as one frame.

    Args:
        message: the header.
        body: buffers that follow it, in order.
    Raises: LocalProtocolError: the message is invalid or its header too long.
    """
    header = encode_header(message)
    if len(header) > MAX_HEADER_BYTES:
        raise LocalProtocolError(
            f"A {type(message).__name__} header of {len(header)} bytes exceeds {MAX_HEADER_BYTES}."
        )
    # Joined in one piece: a bytearray that grows copies megabytes again and again.
    return bytearray().join((_PREFIX.pack(MAGIC, PROTOCOL_VERSION, len(header)), header, *body))


def decode(frame: Buffer) -> tuple[AnyMessage, memoryview]:
    """Read one frame.

    Args:
        frame: the whole message as received.
    Returns: the typed header, and the body as a view into ``frame``.
    Raises: RemoteProtocolError: anything else than a valid frame of a version we speak.
    """
    view = memoryview(frame)
    # PROTOCOL.md 2: "A receiver MUST refuse a message shorter than 12 bytes or with another magic."
    if len(view) < _PREFIX.size:
        raise RemoteProtocolError(f"A message of {len(view)} bytes is shorter than a frame's prefix.")
    magic, version, n_header = _PREFIX.unpack_from(view)
    if magic != MAGIC:
        raise RemoteProtocolError("A message does not begin with the protocol's magic.")
    # PROTOCOL.md 2: "A receiver MUST refuse a version it does not speak, naming both."
    if version != PROTOCOL_VERSION:
        raise RemoteProtocolError(
            f"A message has protocol version {version}; this side speaks {PROTOCOL_VERSION}.", version=version
        )
    # PROTOCOL.md 2: "A header MUST NOT exceed 64 KiB; the length is checked before the header is read."
    if n_header > MAX_HEADER_BYTES or _PREFIX.size + n_header > len(view):
        raise RemoteProtocolError(
            f"A header of {n_header} bytes does not fit its message of {len(view)} bytes."
        )
    header = view[_PREFIX.size : _PREFIX.size + n_header]
    try:
        _check_fields(header)
        message = _decoder.decode(header)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"A header is not a valid message: {exc}") from exc
    return message, view[_PREFIX.size + n_header :]


def _check_fields(header: memoryview) -> None:
    """Refuse a header with too many keys or one of them twice: of two values the typed decoder would take the last."""
    first = header[0] if header else 0
    if first >> 4 == 0x8:  # noqa: PLR2004 - msgpack's fixmap; the other two kinds of map follow
        n_fields = first & 0x0F
    elif first in (0xDE, 0xDF):
        n_fields = int.from_bytes(header[1 : 3 if first == 0xDE else 5])  # noqa: PLR2004
    else:
        raise RemoteProtocolError("A header is not a map.")
    # PROTOCOL.md 2: "A header MUST NOT have more than 64 keys, nor one key twice."
    if n_fields > MAX_FIELDS or len(_fields.decode(header)) != n_fields:
        raise RemoteProtocolError(f"A header has more than {MAX_FIELDS} keys, or one of them twice.")
