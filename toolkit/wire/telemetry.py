"""What a device tells of itself beside training: how it stands, and its log lines. Small JSON, never retained.

Nothing here steers anything: a receiver shows it, bounded, and a run goes on the same without it.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from toolkit.errors import RemoteProtocolError
from toolkit.journal import Level
from toolkit.wire.job import Count
from toolkit.wire.limits import MAX_LOG_BYTES, MAX_LOG_LINES, MAX_TELEMETRY_BYTES

T = TypeVar("T")
Nonce = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Number = Annotated[float, Meta(ge=-1e30, le=1e30)]
Share = Annotated[float, Meta(ge=0, le=1)]
ShortText = Annotated[str, Meta(max_length=64)]
MAX_LINE_CHARACTERS = 512
LineText = Annotated[str, Meta(max_length=MAX_LINE_CHARACTERS)]


class Telemetry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """On ``device/<id>/telemetry``: how a device stands. What a board can't read of itself is left out."""

    boot_nonce: Nonce
    software: Annotated[str, Meta(max_length=128)]
    uptime_s: Annotated[float, Meta(ge=0, le=1e12)]
    phase: ShortText
    round: Count = 0
    seq: Count = 0
    cut: Annotated[str, Meta(max_length=256)] = ""
    exit_accuracy: Share | None = None
    temperature_c: Number | None = None
    throttled: Annotated[list[ShortText], Meta(max_length=8)] = []
    memory_bytes: Count | None = None
    free_memory_bytes: Count | None = None
    load: Annotated[float, Meta(ge=0, le=1e6)] | None = None
    n_refused: Count = 0
    last_error: LineText = ""


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a device's log."""

    at: Annotated[float, Meta(ge=0, le=1e12)]
    level: Level
    text: LineText


class LogLines(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """On ``device/<id>/log``: lines in order, and how many were left out before them since the process began."""

    boot_nonce: Nonce
    lines: Annotated[list[LogLine], Meta(max_length=MAX_LOG_LINES)]
    n_dropped: Count = 0


def encode_report(report: Telemetry | LogLines) -> bytes:
    """Write it as JSON; what has its default is left out."""
    return msgspec.json.encode(report)


def read_telemetry(payload: bytes) -> Telemetry:
    """Read how a device stands.

    Raises: RemoteProtocolError: it is no such thing.
    """
    # PROTOCOL.md 16: "A receiver MUST refuse telemetry longer than 4 KiB and log lines longer than 32 KiB."
    return _read(payload, Telemetry, MAX_TELEMETRY_BYTES)


def read_log_lines(payload: bytes) -> LogLines:
    """Read a device's log lines.

    Raises: RemoteProtocolError: it is no such thing.
    """
    return _read(payload, LogLines, MAX_LOG_BYTES)


def _read(payload: bytes, kind: type[T], limit: int) -> T:
    if len(payload) > limit:
        raise RemoteProtocolError(f"{kind.__name__} of {len(payload)} bytes exceeds {limit}.")
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"This is no valid {kind.__name__}: {exc}") from exc
