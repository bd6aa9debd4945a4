"""Answers what boards ask about samples they are not sure of: many boards' questions in one pass through the layers.

It rides beside training, or serves a run that is over. Answers come from committed layers, never from those that are
being trained. What it holds is bounded in bytes; what is late or too much gets no answer, and the board has its own.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coordinator.beside.routes import Routes, Served
from coordinator.beside.service import Publish, Service
from toolkit.errors import CheckpointError, LocalProtocolError, RemoteProtocolError
from toolkit.wire import chunks, frames, questions
from toolkit.wire.limits import CHUNK_OVERHEAD_BYTES, DEFAULT_CHUNK_BYTES, MAX_ASK_BYTES, MAX_TEXT_CHARACTERS
from toolkit.wire.messages import Ask, Chunk, Declined
from toolkit.wire.topics import Topics

BUDGET_BYTES = 64 * 1024 * 1024
"""Questions held, whole and in pieces, all boards together."""
MAX_WAITING = 1024
MAX_SAMPLES_A_PASS = 256
STALE_PIECES_S = 10.0
"""Pieces of a board's questions that never became whole are forgotten when it was silent for so long."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A whole question: ``due`` is the time at which nobody waits for it any more."""

    device: str
    ask: Ask
    body: memoryview
    due: float


@dataclass(slots=True)
class _Pieces:
    assembler: chunks.Assembler
    heard: float


_Open = tuple[_Waiting, NDArray[np.float32]]
"""A question and its activations (M, ...)."""


class OffloadService(Service):
    """Serves a run's routes.

    Args:
        run: the run's id.
        topics: of the fleet.
        routes: where the layers come from.
        clock: monotonic seconds.
        budget_bytes: of questions that may be held.
        chunk_bytes: most bytes of an answer in a message.
    """

    def __init__(
        self,
        run: str,
        *,
        topics: Topics,
        routes: Routes,
        clock: Callable[[], float],
        budget_bytes: int = BUDGET_BYTES,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    ) -> None:
        self._chunk_bytes = chunk_bytes
        self._run = run
        self._topics = topics
        self._routes = routes
        self._clock = clock
        self._budget_bytes = budget_bytes
        self._pieces: dict[str, _Pieces] = {}
        self._waiting: list[_Waiting] = []
        self._declined: deque[tuple[str, Declined]] = deque(maxlen=MAX_WAITING)
        self.n_answered = 0
        self.n_passes = 0
        self.n_declined = 0
        self.n_expired = 0
        self.n_dropped = 0

    @property
    def filters(self) -> tuple[str, ...]:
        """The questions of every board of the fleet."""
        return (self._topics.all_asks,)

    @property
    def held_bytes(self) -> int:
        """Bytes of questions, whole and in pieces."""
        in_pieces = sum(of.assembler.held_bytes for of in self._pieces.values())
        return in_pieces + sum(len(question.body) for question in self._waiting)

    def take(self, topic: str, payload: bytes) -> None:
        """Take a piece of a question; see :meth:`coordinator.beside.service.Service.take`."""
        device = self._topics.device_of(topic, leaf="ask")
        chunk, body = frames.decode(payload)
        if not isinstance(chunk, Chunk):
            raise RemoteProtocolError(f"A board does not ask with a {type(chunk).__name__}.")
        now = self._clock()
        pieces = self._pieces.setdefault(device, _Pieces(chunks.Assembler(MAX_ASK_BYTES), now))
        pieces.heard = now
        if self.held_bytes + len(body) + CHUNK_OVERHEAD_BYTES > self._budget_bytes:
            self.n_dropped += 1
        else:
            whole = pieces.assembler.add(chunk, body)
            if whole is not None:
                self._take_whole(device, whole, now)

    def tick(self, publish: Publish) -> bool:
        """Decline one question and answer one pass; see :meth:`coordinator.beside.service.Service.tick`."""
        self._forget_silent()
        chosen, taken = self._next_pass()
        if taken:
            self._answer(chosen, taken, publish)
        if self._declined:
            device, declined = self._declined.popleft()
            publish(self._topics.answer(device), frames.encode(declined), qos=0)
        return bool(self._waiting or self._declined)

    # What waits

    def _take_whole(self, device: str, whole: bytes, now: float) -> None:
        ask, body = questions.decode_ask(whole, device=device)
        question = _Waiting(device, ask, body, now + ask.ttl_ms / 1000)
        if ask.run != self._run:
            self._decline(question, "run", f"The run {self._run} is served here, not {ask.run}.")
        elif len(self._waiting) >= MAX_WAITING:
            self._decline(question, "busy", f"{MAX_WAITING} questions wait already.")
        else:
            self._waiting.append(question)

    def _decline(self, question: _Waiting, code: str, why: str) -> None:
        ask = question.ask
        message = why[:MAX_TEXT_CHARACTERS]
        self._declined.append(
            (question.device, Declined(boot_nonce=ask.boot_nonce, n=ask.n, code=code, message=message))
        )
        self.n_declined += 1

    def _forget_silent(self) -> None:
        now = self._clock()
        for device in [d for d, of in self._pieces.items() if now - of.heard >= STALE_PIECES_S]:
            del self._pieces[device]

    def _drop_expired(self) -> None:
        # PROTOCOL.md 15: "A question whose time is over MUST be dropped before anything is computed for it."
        now = self._clock()
        n_before = len(self._waiting)
        self._waiting = [question for question in self._waiting if question.due > now]
        self.n_expired += n_before - len(self._waiting)

    def _next_pass(self) -> tuple[tuple[int, str], list[_Open]]:
        """The oldest question, and the others that the same layers answer, as far as they fit one pass."""
        self._drop_expired()
        served = self._routes.served() if self._waiting else Served((), {})
        chosen: tuple[int, str] = (0, "")
        taken: list[_Open] = []
        later: list[_Waiting] = []
        n_samples = 0
        for question in self._waiting:
            route = served.route_for(question.ask)
            if route is None:
                known = ", ".join(sorted(served.shapes)) or "none before the first round is closed"
                self._decline(question, "cut", f"No cut {question.ask.cut!r} is served: {known}.")
            elif taken and (route != chosen or n_samples >= MAX_SAMPLES_A_PASS):
                later.append(question)
            elif (h := self._activations(question, served.shapes[route[1]])) is not None:
                chosen = route
                taken.append((question, h))
                n_samples += len(h)
        self._waiting = later
        return chosen, taken

    def _activations(self, question: _Waiting, shape: Sequence[int]) -> NDArray[np.float32] | None:
        try:
            return questions.to_activations(question.ask, question.body, activation_shape=shape)
        except RemoteProtocolError as exc:
            self._decline(question, "cut", exc.message)
            return None

    # What is answered

    def _answer(self, chosen: tuple[int, str], taken: list[_Open], publish: Publish) -> None:
        try:
            route = self._routes.get(*chosen)
        except (
            CheckpointError
        ) as exc:  # a newer commit has taken its place since: rare, and the board has an answer
            for question, _ in taken:
                self._decline(question, "cut", exc.message)
            return
        logits = route.logits(np.concatenate([h for _, h in taken]))
        self.n_passes += 1
        first = 0
        for question, h in taken:
            rows = logits[first : first + len(h)]
            first += len(h)
            try:
                answer = questions.encode_answer(question.ask, rows, theta_round=route.round)
            except LocalProtocolError:  # activations far beyond the training's
                self._decline(question, "cut", "These activations have no finite logits.")
                continue
            for chunk in chunks.split(answer, payload_id=os.urandom(16), chunk_bytes=self._chunk_bytes):
                publish(self._topics.answer(question.device), chunk, qos=0)
            self.n_answered += 1
