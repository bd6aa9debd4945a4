"""Retained words: small JSON by which processes see whether others are there; also their last wills."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from toolkit.errors import RemoteProtocolError
from toolkit.wire.job import Name, Positive
from toolkit.wire.limits import MAX_WORD_BYTES

W = TypeVar("W")
Presence = Literal["online", "offline"]
Ending = Literal["", "finished", "failed"]


class BridgeWord(msgspec.Struct, frozen=True, omit_defaults=True):
    """On ``bridge/state``: whether a coordinator is up, for which run, under which term; and how the run ended.

    The nonce in hexadecimal says which process speaks; it is empty where an earlier version does.
    """

    state: Presence
    run: Name
    term: Positive
    ended: Ending = ""
    boot_nonce: Annotated[str, Meta(pattern=r"^([0-9a-f]{32})?\Z")] = ""


class DeviceWord(msgspec.Struct, frozen=True):
    """On ``device/<id>/state``: whether the device's process is connected; the nonce in hexadecimal says which."""

    state: Presence
    boot_nonce: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]


def encode_word(word: BridgeWord | DeviceWord) -> bytes:
    """Write a word as JSON."""
    return msgspec.json.encode(word)


def read_bridge_word(payload: bytes) -> BridgeWord:
    """Read what a coordinator said.

    Raises: RemoteProtocolError: it is no such word.
    """
    return _read(payload, BridgeWord)


def read_device_word(payload: bytes) -> DeviceWord:
    """Read what a device said.

    Raises: RemoteProtocolError: it is no such word.
    """
    return _read(payload, DeviceWord)


def _read(payload: bytes, kind: type[W]) -> W:
    # PROTOCOL.md 3: "A receiver MUST refuse a word longer than 1 KiB."
    if len(payload) > MAX_WORD_BYTES:
        raise RemoteProtocolError(f"A retained word of {len(payload)} bytes exceeds {MAX_WORD_BYTES}.")
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"A retained word is no valid {kind.__name__}: {exc}") from exc
