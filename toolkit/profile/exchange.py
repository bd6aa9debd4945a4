"""What passes between a measurement and its child process: one request in, JSON lines out."""

from __future__ import annotations

from typing import Literal

import msgspec

from toolkit.profile.schema import CutRow, InferenceRow, Limits, Mechanism
from toolkit.wire.job import ModelSpec

Side = Literal["device", "server"]


class BrokerWay(msgspec.Struct, frozen=True, kw_only=True):
    """How a child reaches the broker, and what it may do there; it travels on stdin only, for the password."""

    host: str
    port: int
    tls: bool
    username: str
    password: str
    ca_file: str
    cert_file: str
    key_file: str
    insecure: bool
    max_packet_bytes: int
    client: str
    topic: str
    codec: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a child measures.

    Attributes:
        side: the device's step at each cut, or the server's.
        first: index of the first cut to measure, shallow first.
        n_cuts: how many; 0 means to the last.
        cuts: the only ones to measure, the others are counted; none means a spread of all.
        until_s: on the system's monotonic clock, when all cuts from ``first`` on should be done; 0 for no hurry.
        broker: through which an agent's whole work is timed too.
    """

    side: Side
    model: ModelSpec
    batch_size: int
    exit_head: str
    threads: int
    quick: bool
    first: int
    n_cuts: int
    cuts: tuple[str, ...] = ()
    until_s: float = 0.0
    limits: Limits | None = None
    broker: BrokerWay | None = None


class OnnxRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which exported file a child times, and how."""

    path: str
    threads: int
    quick: bool
    limits: Limits | None = None


class OnnxAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A file's row, and what enforced the limits that it was timed within."""

    row: InferenceRow
    mechanism: Mechanism = "none"


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The child has built the model; comes first. ``chosen`` are the cuts that are measured, the others are counted."""

    cuts: tuple[str, ...]
    chosen: tuple[str, ...]
    software: dict[str, str]


class Limited(msgspec.Struct, frozen=True, kw_only=True, tag="limited"):
    """The child has entered its limits."""

    mechanism: Mechanism


class Copied(msgspec.Struct, frozen=True, kw_only=True, tag="copied"):
    """How fast memory is, within the limits."""

    bytes_per_s: float


class Measured(msgspec.Struct, frozen=True, kw_only=True, tag="measured"):
    """One row is done."""

    row: CutRow


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The request makes no sense; ``code`` is that of the error class."""

    code: str
    message: str
    hint: str


Answer = Ready | Limited | Copied | Measured | Refused
