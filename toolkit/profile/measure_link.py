"""Measure the way to the broker by using it: real payloads in real chunks, to ourselves on our own topic.

Nobody else takes part. First nobody listens, and the broker's acknowledgements time the way up; then one chunk is
retained there, and each subscription brings it down again; at last payloads go there and back, and are put together
and checked as a coordinator would.
"""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from toolkit.errors import BrokerError, BrokerLostError, BrokerUnreachableError, RemoteProtocolError
from toolkit.link.base import Connected, Disconnected, Link, LinkEvent, Received, chunk_bytes_of
from toolkit.profile.link import Link as LinkFacts
from toolkit.profile.link import Transfer
from toolkit.profile.schema import CutRow
from toolkit.wire import chunks, frames, payloads
from toolkit.wire.messages import Chunk
from toolkit.wire.payloads import Batch, PayloadAddress

SMALL_BYTES = 256
"""A state message is about so long."""
OUTSTANDING_BYTES = 8 * 1024 * 1024
"""An agent holds back when its link has so much to do."""
AHEAD_S = 0.25
"""And a measurement when it has so much time's worth to do: a slow link would take minutes for eight megabytes."""
MOST_UP_S = 6.0
"""Two payloads that would take longer than that are not sent: how fast the link is, smaller ones have shown."""
FIRST_BYTES = 64 * 1024
POLL_S = 0.002
CONNECT_S = 10.0
SILENCE_S = 10.0
"""A message that has not come back by then is lost; large ones are given the time of their way up on top."""


FLOAT32_BYTES = 4
CHANNELS = (64, 32, 16, 8, 4, 2, 1)


@dataclass(frozen=True, slots=True)
class Load:
    """What a cut would send: activations of ``shape`` for each sample of a batch."""

    cut: str
    shape: tuple[int, ...]
    batch_size: int


def load_of(row: CutRow, batch_size: int) -> Load:
    """What a cut sends; the profile knows how many numbers a sample has, not how they are arranged."""
    n_values = row.activation_bytes // FLOAT32_BYTES
    n_channels = next(n for n in CHANNELS if n_values % n == 0)
    return Load(cut=row.cut, shape=(n_channels, n_values // n_channels), batch_size=batch_size)


@dataclass(frozen=True, slots=True)
class LinkPace:
    """How long to measure: a stream of payloads up, how many small messages, how many payloads there and back."""

    stream_s: float
    n_small: int
    n_round_trips: int
    n_down: int
    transfer_s: float


QUICK_LINK = LinkPace(stream_s=0.3, n_small=20, n_round_trips=5, n_down=3, transfer_s=3.0)
THOROUGH_LINK = LinkPace(stream_s=2.0, n_small=100, n_round_trips=30, n_down=10, transfer_s=5.0)


class LinkMeasurement:
    """One measurement; what it has found so far can be read at any time.

    Args:
        link: not started yet, of a client id that no other process uses.
        topic: of this client's own, which it may both publish and receive.
        name: of the broker, for the profile.
        codec: that activations travel in.
        tls: whether the connection is encrypted.
        pace: how long to measure.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        link: Link,
        *,
        topic: str,
        name: str,
        codec: str = "float32",
        tls: bool = False,
        pace: LinkPace = THOROUGH_LINK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link = link
        self._topic = topic
        self._name = name
        self._codec = codec
        self._tls = tls
        self._pace = pace
        self._clock = clock
        self._round_trips_ms: list[float] = []
        self._down_bytes_per_s = 0.0
        self._up: list[Transfer] = []

    def run(self, loads: Sequence[Load]) -> LinkFacts:
        """Connect, measure, leave nothing behind at the broker.

        Args:
            loads: what the cuts would send; those of one size are measured once, none is as good as reachability.
        Raises: BrokerError: it can't be reached, refuses us, goes away, or does not deliver.
        """
        self._link.start()
        try:
            self._connect()
            made = [self._payload(load) for load in loads]
            # Two cuts whose payloads differ by a cut's name are one size.
            nearly = {len(payload) // 1024: payload for payload in made}
            sizes = {len(payload): payload for payload in nearly.values()}
            self._measure_up([sizes[size] for size in sorted(sizes)])
            self._measure_down()
            self._measure_small()
            for index, up in enumerate(self._up):
                if up.payload_bytes in sizes:
                    self._up[index] = self._there_and_back(up, sizes[up.payload_bytes])
        finally:
            self._link.close()
        return self._facts()

    def found(self) -> LinkFacts | None:
        """What was measured so far; None before there is enough to plan with."""
        return self._facts() if self._round_trips_ms and self._down_bytes_per_s else None

    def _facts(self) -> LinkFacts:
        p50, p95 = np.percentile(self._round_trips_ms, [50, 95])
        up = self._up[-1].up_bytes_per_s if self._up else self._down_bytes_per_s
        return LinkFacts(
            name=self._name,
            provenance="measured",
            up_bytes_per_s=up,
            down_bytes_per_s=self._down_bytes_per_s,
            rtt_ms=round(float(p50), 3),
            rtt_ms_p95=round(float(p95), 3),
            date=dt.datetime.now(tz=dt.UTC).date(),
            codec=self._codec,
            tls=self._tls,
            transfers=tuple(self._up),
        )

    def _connect(self) -> None:
        deadline_s = self._clock() + CONNECT_S
        error: BrokerError = BrokerUnreachableError(f"{self._name} does not answer.", broker=self._name)
        while self._clock() < deadline_s:
            for event in self._link.poll(POLL_S):
                if isinstance(event, Connected):
                    return
                if isinstance(event, Disconnected):
                    error = event.error
            if not error.retryable:
                break
        raise error

    def _payload(self, load: Load) -> bytearray:
        """Make a payload as an agent makes it, of activations as a rectifier leaves them: half of them zero."""
        rng = np.random.default_rng(0)
        h = np.maximum(rng.standard_normal((load.batch_size, *load.shape), np.float32), 0)
        batch = Batch(
            kind="train",
            h=h,
            y=np.zeros(load.batch_size, np.int64),
            exit_loss=0.0,
            exit_correct=0,
            segment_step=0,
        )
        address = PayloadAddress(
            device="board", round=1, seq=1, term=1, incarnation=1, plan_version=1, cut=load.cut
        )
        return payloads.encode(address, batch, self._codec)

    def _measure_up(self, payloads_: Sequence[bytearray]) -> None:
        """Stream each payload, small ones first; of those too large for this link the smallest one's beginning at least."""
        if not payloads_:
            return
        most_bytes = self._first_rate() * MOST_UP_S / 2
        for payload in payloads_:
            if len(payload) <= most_bytes:
                self._up.append(self._stream_up(payload))
                most_bytes = self._up[-1].up_bytes_per_s * MOST_UP_S / 2
        if not self._up:
            self._up.append(self._stream_up(payloads_[0][: max(int(most_bytes), SMALL_BYTES)]))

    def _first_rate(self) -> float:
        """Guess how many bytes a second the link takes, from how much longer a large message is under way than a small one."""
        times_s = []
        for n_bytes in (SMALL_BYTES, FIRST_BYTES):
            began_s = self._clock()
            self._link.publish(self._topic, os.urandom(n_bytes))
            self._drain(0, within_s=3 * SILENCE_S)
            times_s.append(self._clock() - began_s)
        small_s, large_s = times_s
        return (FIRST_BYTES - SMALL_BYTES) / max(large_s - small_s, POLL_S)

    def _stream_up(self, payload: bytearray) -> Transfer:
        """Send a payload again and again, little faster than the link takes it, until all is acknowledged."""
        pieces = self._split(payload)
        n_sent = 0
        cpu_s, began_s = time.process_time(), self._clock()
        while n_sent < 2 or self._clock() - began_s < self._pace.stream_s:  # noqa: PLR2004 - one alone is no stream
            ahead_bytes = self._ahead_bytes(n_sent * len(payload), began_s)
            self._drain(
                max(ahead_bytes - len(payload), len(payload)), within_s=self._patience_s(began_s, n_sent)
            )
            for piece in pieces:
                self._link.publish(self._topic, piece)
            n_sent += 1
        self._drain(0, within_s=self._patience_s(began_s, n_sent))
        elapsed_s = self._clock() - began_s
        return Transfer(
            payload_bytes=len(payload),
            n_chunks=len(pieces),
            up_bytes_per_s=round(n_sent * len(payload) / max(elapsed_s, 1e-6), 1),
            send_ms=round((time.process_time() - cpu_s) / n_sent * 1e3, 4),
        )

    def _measure_down(self) -> None:
        """Keep one chunk at the broker and subscribe to it again and again: nothing goes up meanwhile."""
        n_bytes = min(
            max((t.payload_bytes for t in self._up), default=SMALL_BYTES), chunk_bytes_of(self._link)
        )
        # Compressible to nobody on the way.
        kept = os.urandom(n_bytes)
        self._link.publish(self._topic, kept, retain=True)
        self._drain(0, within_s=SILENCE_S)
        times_s: list[float] = []
        give_up_s = self._clock() + self._pace.transfer_s
        try:
            while len(times_s) < self._pace.n_down and (not times_s or self._clock() < give_up_s):
                began_s = self._clock()
                self._link.subscribe(self._topic)
                if self._await(lambda payload: payload == kept, within_s=3 * SILENCE_S) is None:
                    raise self._not_delivered()
                times_s.append(self._clock() - began_s)
        finally:
            self._link.publish(self._topic, b"", retain=True)
        self._down_bytes_per_s = round(n_bytes / float(np.median(times_s)), 1)

    def _measure_small(self) -> None:
        give_up_s = self._clock() + self._pace.transfer_s
        while len(self._round_trips_ms) < self._pace.n_small and (
            not self._round_trips_ms or self._clock() < give_up_s
        ):
            small = os.urandom(SMALL_BYTES)
            began_s = self._clock()
            self._link.publish(self._topic, small)
            if self._await(lambda payload, small=small: payload == small, within_s=SILENCE_S) is None:  # type: ignore[misc]
                raise self._not_delivered()
            self._round_trips_ms.append((self._clock() - began_s) * 1e3)

    def _there_and_back(self, up: Transfer, payload: bytearray) -> Transfer:
        """Send a payload to ourselves, put it together, and check its digest."""
        times_ms: list[float] = []
        n_sent = 0
        within_s = SILENCE_S + 5 * len(payload) / up.up_bytes_per_s
        give_up_s = self._clock() + self._pace.transfer_s
        while n_sent < self._pace.n_round_trips and (not n_sent or self._clock() < give_up_s):
            assembler = chunks.Assembler()
            began_s = self._clock()
            n_sent += 1
            for piece in self._split(payload):
                self._link.publish(self._topic, piece)
            whole = self._await(lambda piece, put=assembler: _completes(put, piece), within_s=within_s)  # type: ignore[misc]
            if whole is not None:
                times_ms.append((self._clock() - began_s) * 1e3)
        p50, p95 = np.percentile(times_ms, [50, 95]) if times_ms else (0.0, 0.0)
        return msgspec.structs.replace(
            up,
            round_trip_ms_p50=round(float(p50), 3),
            round_trip_ms_p95=round(float(p95), 3),
            n_sent=n_sent,
            n_lost=n_sent - len(times_ms),
        )

    def _split(self, payload: bytearray) -> list[bytearray]:
        return list(chunks.split(payload, payload_id=os.urandom(16), chunk_bytes=chunk_bytes_of(self._link)))

    def _await(self, wanted: Callable[[bytes], bool], *, within_s: float) -> bytes | None:
        """Wait for a message that is wanted; what else arrives is passed over."""
        deadline_s = self._clock() + within_s
        while self._clock() < deadline_s:
            for payload in self._received(self._link.poll(POLL_S)):
                if wanted(payload):
                    return payload
        return None

    def _drain(self, most_bytes: int, *, within_s: float) -> None:
        """Wait until the link has no more than so much to do.

        Raises: BrokerError: it never comes to that.
        """
        deadline_s = self._clock() + within_s
        while self._link.outstanding_bytes > max(most_bytes, 0):
            self._received(self._link.poll(POLL_S))
            if self._clock() >= deadline_s:
                raise BrokerError(
                    f"{self._name} has not acknowledged what was sent for {within_s:.0f} s.",
                    hint="Look at its log, and at the network between; then measure again.",
                )
        # Nothing is outstanding after a lost connection either: hear whether that is why.
        self._received(self._link.poll(POLL_S))

    def _ahead_bytes(self, sent_bytes: int, began_s: float) -> int:
        """How much may be under way: what the link took in a moment so far, at most what an agent hands it."""
        taken_bytes = sent_bytes - self._link.outstanding_bytes
        return min(int(taken_bytes / max(self._clock() - began_s, POLL_S) * AHEAD_S), OUTSTANDING_BYTES)

    def _patience_s(self, began_s: float, n_sent: int) -> float:
        """How long the link may need for what it holds, judged by how fast it has been."""
        return 3 * SILENCE_S + (2 * (self._clock() - began_s) if n_sent else 0.0)

    def _received(self, events: Sequence[LinkEvent]) -> list[bytes]:
        for event in events:
            if isinstance(event, Disconnected):
                raise BrokerLostError(
                    f"The broker went away while it was measured: {event.error.message}",
                    hint="When it is back, measure again: hsee profile --broker ...",
                ) from event.error
        return [event.payload for event in events if isinstance(event, Received)]

    def _not_delivered(self) -> BrokerError:
        return BrokerError(
            f"{self._name} took messages on {self._topic!r} and delivered none of them.",
            hint="The account may lack the right to receive there: hsee broker check tells.",
            topic=self._topic,
        )


def _completes(assembler: chunks.Assembler, piece: bytes) -> bool:
    """Take a chunk; whether a payload is whole with it, and is the one its digest names."""
    try:
        message, body = frames.decode(piece)
        whole = assembler.add(message, body) if isinstance(message, Chunk) else None
        if whole is not None:
            payloads.decode(whole, device="board")
    except RemoteProtocolError:
        return False
    return whole is not None
