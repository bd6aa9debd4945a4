"""What the way to the broker can do: assumed, or measured through the broker itself."""

from __future__ import annotations

import datetime as dt
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from toolkit.errors import ProfileError
from toolkit.profile.toml_struct import read_struct
from toolkit.wire.job import Count, Positive

Text = Annotated[str, Meta(min_length=1, max_length=1024)]
Above0 = Annotated[float, Meta(gt=0, lt=1e18)]
Milliseconds = Annotated[float, Meta(ge=0, lt=1e9)]


class Transfer(msgspec.Struct, frozen=True, kw_only=True):
    """Payloads of one size, sent through the broker in the chunks of a run.

    Attributes:
        payload_bytes: of one payload, its header included.
        up_bytes_per_s: one payload after another, until the broker had acknowledged the last.
        send_ms: processor time of this process for one of them, as wall time of one core.
        round_trip_ms_p50: one payload to the broker and back, put together again and its digest checked.
        n_sent: payloads of the round trips.
        n_lost: of those, how many did not come back whole.
    """

    payload_bytes: Positive
    n_chunks: Positive
    up_bytes_per_s: Above0
    send_ms: Milliseconds
    round_trip_ms_p50: Milliseconds = 0.0
    round_trip_ms_p95: Milliseconds = 0.0
    n_sent: Count = 0
    n_lost: Count = 0


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """The way between a device and its coordinator, as payload bytes a second.

    Attributes:
        rtt_ms: of a small message; the median where it was measured.
        codec: of the activations that were sent to measure it.
        tls: the connection to the broker was encrypted.
        transfers: what was measured, by rising size; none where the link is assumed.
    """

    name: Text
    provenance: Literal["measured", "assumed"]
    up_bytes_per_s: Above0
    down_bytes_per_s: Above0
    rtt_ms: Milliseconds
    rtt_ms_p95: Milliseconds = 0.0
    date: dt.date | None = None
    codec: str = ""
    tls: bool = False
    sources: tuple[Text, ...] = ()
    transfers: tuple[Transfer, ...] = ()

    def __post_init__(self) -> None:
        sizes = [t.payload_bytes for t in self.transfers]
        if sizes != sorted(set(sizes)):
            msg = "transfers stand by rising payload_bytes, each size once"
            raise ValueError(msg)

    def upload_ms(self, n_bytes: int) -> float:
        """Time that one payload of a stream takes up the link: between measured sizes, in a straight line."""
        rates = [t.up_bytes_per_s for t in self.transfers] or [self.up_bytes_per_s]
        sizes = [t.payload_bytes for t in self.transfers] or [n_bytes]
        return n_bytes / _between(n_bytes, sizes, rates) * 1e3

    def send_ms(self, n_bytes: int) -> float:
        """Processor time that sending one payload takes the device; 0 where nobody measured it."""
        if not self.transfers:
            return 0.0
        return _between(
            n_bytes, [t.payload_bytes for t in self.transfers], [t.send_ms for t in self.transfers]
        )


class LinkProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that holds a link only."""

    schema: Literal[1]
    link: Link


def read_link(path: Path) -> Link:
    """Read a link file (``[link]`` and ``schema = 1``).

    Raises: ProfileError: it names file, key, and what was expected.
    """
    return read_struct(
        path, LinkProfile, noun="link", error=ProfileError, hint="profiles/links shows how one is written."
    ).link


def _between(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Read a value off a line through points of rising x; beyond the ends, the nearest point's."""
    right = bisect_left(xs, x)
    if right in (0, len(xs)):
        return ys[min(right, len(xs) - 1)]
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])
