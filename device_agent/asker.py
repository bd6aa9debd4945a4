"""Asks the coordinator about samples of which this board is not sure: the runtime's ``offload``, over a link.

A thread of its own hears what the link brings, so that an answer is in time or not by when it came, whatever the board
computes meanwhile. Nothing is asked twice and nothing waits for a link: what can't be sent at once is not sent.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.manifest import Manifest
from toolkit.errors import BundleError, LocalProtocolError, PacketTooLargeError, RemoteProtocolError
from toolkit.link.base import Connected, Disconnected, Link, Received, chunk_bytes_of
from toolkit.runtime.cascade import Offload, Reply
from toolkit.wire import chunks, frames, questions
from toolkit.wire.limits import MAX_ASK_BYTES, MAX_ASK_TTL_MS
from toolkit.wire.messages import Chunk, Declined
from toolkit.wire.topics import Topics

OUTSTANDING_BYTES = 8 * 1024 * 1024
"""What the link may still hold when a question is handed to it; beyond, the answer would be late anyway."""
PATIENCE = 3
"""So many questions in a row without a word from anybody, and only one every ``PROBE_S`` is asked."""
PROBE_S = 2.0
MAX_REASONS = 16
_POLL_S = 0.2
_CLOSED = "this process stops"


@dataclass(slots=True)
class OffloadFacts:
    """What became of the samples that were to be offloaded.

    Attributes:
        n_asked: samples, sent or not.
        n_answered: in time.
        reasons: samples that were not answered, by the reason.
        theta_rounds: answered samples, by the round of the coordinator's layers.
        n_refused: messages that were dropped: late, doubled, damaged or another's.
    """

    n_asked: int = 0
    n_answered: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    theta_rounds: Counter[int] = field(default_factory=Counter)
    n_refused: int = 0


@dataclass(frozen=True, slots=True)
class _Segment:
    """What is asked about: the end of a bundle's cascade, as questions name it."""

    address: questions.AskAddress
    n_classes: int
    codec: str
    samples_a_question: int


@dataclass(eq=False, slots=True)
class _Question:
    """One question on its way: open until ``outcome`` says how it ended; "" is an answer."""

    n: int
    segment: _Segment
    n_samples: int
    asked: float
    due: float
    outcome: str | None = None
    ended: float = 0.0
    logits: NDArray[np.float32] | None = None


class Asker:
    """Asks over one link, about one bundle or, where it is replaced meanwhile, about the next.

    Args:
        link: not started yet; its account is this board's for inference.
        topics: of the fleet.
        device: this board's id.
        deadline_s: how long an answer is waited for.
        clock: monotonic seconds.
        boot_nonce: of this process.
    """

    def __init__(
        self,
        link: Link,
        *,
        topics: Topics,
        device: str,
        deadline_s: float,
        clock: Callable[[], float],
        boot_nonce: bytes,
    ) -> None:
        self._device = device
        self._boot_nonce = boot_nonce
        self._link = link
        self._answers = topics.answer(device)
        self._asks = topics.ask(device)
        self._deadline_s = deadline_s
        self._clock = clock
        self._changed = threading.Condition()
        self._open: dict[int, _Question] = {}
        self._n = 0
        self._n_silent = 0
        self._probe_at = 0.0
        self._connected = False
        self._closing = False
        self._assembler = chunks.Assembler(MAX_ASK_BYTES)
        self._hearer = threading.Thread(target=self._hear, name="hsee-answers", daemon=True)
        self.lost_because = ""
        self.facts = OffloadFacts()

    def start(self, wait_s: float) -> bool:
        """Begin to connect, and wait at most ``wait_s`` for it.

        Returns: whether the link is up; if not, it goes on trying.
        """
        self._link.start()
        self._hearer.start()
        with self._changed:
            self._changed.wait_for(lambda: self._connected or bool(self.lost_because), wait_s)
            return self._connected

    def about(self, manifest: Manifest) -> Offload:
        """Make what asks about a bundle's samples at once, and waits for the replies at most until the deadline.

        Raises: BundleError: nobody can answer for this bundle, or one sample's activations are too large to be asked.
        """
        segment = self._segment_of(manifest)

        def ask(h: NDArray[np.float32]) -> Callable[[], Sequence[Reply]]:
            size = segment.samples_a_question
            asked = [self._ask(segment, h[first : first + size]) for first in range(0, len(h), size)]
            return lambda: [reply for question in asked for reply in self._replies(question)]

        return ask

    def _segment_of(self, manifest: Manifest) -> _Segment:
        made, onward = manifest.provenance, manifest.segments[-1].activations
        address = questions.AskAddress(
            boot_nonce=self._boot_nonce,
            device=self._device,
            run=made.run,
            cut=made.cut,
            round=made.round,
            origin=made.origin(),
        )
        if onward is None:
            raise BundleError(
                "This bundle goes on to the network's end: there is nothing left to ask a coordinator.",
                hint="Leave --broker away, or export without --full.",
            )
        n_classes = len(manifest.class_names)
        n_samples = questions.samples_a_question(onward.shape, n_classes)
        if not n_samples:
            raise BundleError(
                f"Activations of shape {onward.shape} exceed the {MAX_ASK_BYTES} bytes of a question."
            )
        return _Segment(address, n_classes, made.codec, n_samples)

    def close(self) -> None:
        """Leave the broker; what is open is over."""
        with self._changed:
            self._closing = True
            self._end_all(_CLOSED)
        if self._hearer.ident is not None:  # started
            self._hearer.join()
        self._link.close()

    # Asking

    def _ask(self, segment: _Segment, h: NDArray[np.float32]) -> _Question:
        now = self._clock()
        with self._changed:
            self._n += 1
            question = _Question(self._n, segment, len(h), now, now + self._deadline_s)
            obstacle = self._obstacle(now)
            if obstacle:
                question.outcome, question.ended = obstacle, now
            else:
                self._open[question.n] = question
        if not obstacle:
            self._send(question, h)
        return question

    def _obstacle(self, now: float) -> str:
        """Why nothing should be sent now; empty where nothing is in the way."""
        if not self._connected:
            return "no connection"
        if self._link.outstanding_bytes > OUTSTANDING_BYTES:
            return "the link is too slow"
        if self._n_silent >= PATIENCE:
            if now < self._probe_at:
                return "nobody answers"
            self._probe_at = now + PROBE_S
        return ""

    def _send(self, question: _Question, h: NDArray[np.float32]) -> None:
        ttl_ms = min(MAX_ASK_TTL_MS, max(1, round(self._deadline_s * 1000)))
        try:
            about = question.segment
            frame = questions.encode_ask(about.address, h, about.codec, n=question.n, ttl_ms=ttl_ms)
            for chunk in chunks.split(
                frame, payload_id=os.urandom(16), chunk_bytes=chunk_bytes_of(self._link)
            ):
                self._link.publish(self._asks, chunk, qos=0)
        except (LocalProtocolError, PacketTooLargeError) as exc:
            with self._changed:
                self._end(question, f"not sent: {exc.message}")

    def _replies(self, question: _Question) -> list[Reply]:
        with self._changed:
            while question.outcome is None and (left_s := question.due - self._clock()) > 0:
                self._changed.wait(left_s)
            if question.outcome is None:
                self._end(question, "late")
                self._n_silent += 1
                self._probe_at = question.ended + PROBE_S
            self._count(question)
        ms = (question.ended - question.asked) * 1000
        if question.logits is None:
            return [Reply(None, ms)] * question.n_samples
        return [Reply(logits, ms) for logits in question.logits]

    def _count(self, question: _Question) -> None:
        self.facts.n_asked += question.n_samples
        if question.outcome:
            known = question.outcome in self.facts.reasons or len(self.facts.reasons) < MAX_REASONS
            self.facts.reasons[question.outcome if known else "other"] += question.n_samples
        else:
            self.facts.n_answered += question.n_samples

    # Hearing

    def _hear(self) -> None:
        while not self._closing:
            for event in self._link.poll(_POLL_S):
                with self._changed:
                    self._on_event(event)
                    self._changed.notify_all()

    def _on_event(self, event: Connected | Disconnected | Received) -> None:
        match event:
            case Connected():
                self._link.subscribe(self._answers)
                self._connected, self.lost_because = True, ""
                self._n_silent = 0
            case Disconnected(error=error):
                self._connected, self.lost_because = False, error.message
                # Its answer would be sent to a connection that is gone.
                self._end_all("connection lost")
            case Received(payload=payload):
                try:
                    self._on_message(payload)
                except RemoteProtocolError:
                    self.facts.n_refused += 1

    def _on_message(self, payload: bytes) -> None:
        message, body = frames.decode(payload)
        match message:
            case Declined():
                question = self._find(message.boot_nonce, message.n)
                self._n_silent = 0
                self._end(question, f"declined: {message.message}")
            case Chunk():
                whole = self._assembler.add(message, body)
                if whole is not None:
                    self._on_answer(whole)
            case _:
                raise RemoteProtocolError(f"A coordinator does not answer with a {type(message).__name__}.")

    def _on_answer(self, whole: bytes) -> None:
        answer, body = questions.decode_answer(whole)
        question = self._find(answer.boot_nonce, answer.n)
        # PROTOCOL.md 15: "An answer counts only if its question is open and its origin is the question's."
        if answer.origin != question.segment.address.origin:
            raise RemoteProtocolError("An answer is about another segment.")
        question.logits = questions.to_logits(
            answer, body, n_samples=question.n_samples, n_classes=question.segment.n_classes
        )
        self._n_silent = 0
        self.facts.theta_rounds[answer.theta_round] += question.n_samples
        self._end(question, "")

    def _find(self, boot_nonce: bytes, n: int) -> _Question:
        question = self._open.get(n)
        if boot_nonce != self._boot_nonce or question is None or self._clock() > question.due:
            raise RemoteProtocolError(f"No question {n} is open.")
        return question

    def _end(self, question: _Question, outcome: str) -> None:
        self._open.pop(question.n, None)
        question.outcome, question.ended = outcome, self._clock()

    def _end_all(self, outcome: str) -> None:
        for question in list(self._open.values()):
            self._end(question, outcome)
        self._changed.notify_all()
