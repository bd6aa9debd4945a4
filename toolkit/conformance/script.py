"""The play: one run with one device, in which every MUST that can be seen from outside has its moment.

Each act says what the coordinator does and judges what the device did. Sentences are PROTOCOL.md's own; a test holds
them to it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from toolkit.conformance.player import (
    ROUND_STEPS,
    SETTLE_S,
    WINDOW,
    Player,
    codec_of,
    unless,
)
from toolkit.conformance.stage import with_unknown_keys
from toolkit.findings import Finding
from toolkit.wire import frames
from toolkit.wire.messages import Assignment, Fenced, Refusal, Welcome


class Stopped(Exception):  # noqa: N818 - not an error: the rest can't be judged
    """Nothing after this can be judged."""


class Script(Player):
    """The acts, in order."""

    def play(self) -> list[Finding]:
        """Play the whole run; returns a finding for each sentence, in order."""
        self._acts(
            self._joining,
            self._foreign_welcome,
            self._first_credit,
            self._stale_credit,
            self._lost_batches,
            self._rest_of_the_round,
            self._next_round,
            self._coordinator_gone,
            self._coordinator_back,
            self._newer_plan,
            self._end,
        )
        return self.findings

    def play_dismissal(self, kind: type[Fenced | Refusal]) -> list[Finding]:
        """Play a run in which the device is fenced, or refused, at its first hello."""
        self._acts(self._joining, lambda: self._dismissal(kind))
        return self.findings

    def _acts(self, *acts: Callable[[], None]) -> None:
        try:
            for act in acts:
                act()
        except Stopped:
            pass
        finally:
            self._stage.say_word("offline", self._term)

    # Acts

    def _joining(self) -> None:
        stage = self._stage
        stage.say_word("online", self._term)
        came = stage.wait_for(lambda: bool(stage.greetings), self._cap_s)
        if not came:
            self._judge(
                7,
                'A device waits for a bridge word "online", subscribes to its `down` topic of that run, and says hello',
                wrong=f"no hello within {self._cap_s:g} s; refused: {stage.faults[-1:] or 'nothing'}",
            )
            raise Stopped
        hello = stage.greetings[0].hello
        self._judge(
            7,
            'A device waits for a bridge word "online", subscribes to its `down` topic of that run, and says hello',
            wrong="" if hello.device == stage.device else f"on {stage.device!r} it names {hello.device!r}",
        )
        self._judge(
            13,
            "A device offers all versions it speaks in `protocols`",
            wrong=unless(1 in hello.protocols, f"offers {hello.protocols}, not 1"),
        )
        stage.wait_for(lambda: bool(stage.words), self._cap_s)
        nonce = hello.boot_nonce.hex()
        self._judge(
            3,
            'A process publishes its word "online" after every CONNACK',
            wrong=unless(
                any(word.state == "online" and word.boot_nonce == nonce for word in stage.words),
                f"words: {stage.words}; nonce of the hello: {nonce}",
            ),
        )

    def _foreign_welcome(self) -> None:
        stage = self._stage
        before = len(stage.greetings)
        other = secrets.token_bytes(16)
        stage.say(Welcome(boot_nonce=other, run=stage.run, term=9, incarnation=9, protocol=1))
        stage.say(Fenced(boot_nonce=other, incarnation=9))
        stage.say(Assignment(term=9, plan_version=9, job=self._job()))
        stage.say(
            self._state(round_=1, next_=1, limit=1 + WINDOW, term=9, incarnation=9, plan_version=9, n=90)
        )
        again = stage.wait_for(lambda: len(stage.greetings) > before, 5.0 / self._pace + self._cap_s)
        self._judge(
            7,
            "and every 5 s while it is not answered",
            wrong=unless(again, "a hello that is not answered is not said again"),
        )
        self._keep_quiet()
        same = {greeting.hello.boot_nonce for greeting in stage.greetings}
        self._judge(
            7,
            "drawn at random when the process starts, the same in all its hellos",
            wrong=unless(len(same) == 1, f"{len(same)} nonces in hellos of one process"),
        )
        self._judge(
            7,
            "A device MUST ignore a welcome that names another boot nonce, and any lower term.",
            wrong=unless(not stage.batches, "it sends batches for orders that were not meant for it"),
        )

    def _first_credit(self) -> None:
        stage = self._stage
        for frame in _noise(stage.run):
            stage.say_bytes(frame)
        stage.answer = self._welcome
        self._welcome()
        state = self._state(round_=1, next_=1, limit=1 + WINDOW)
        stage.say_bytes(with_unknown_keys(state))
        got = self._expect(
            "8", [1, 2], round_=1, sentence="A device sends the seqs of its credit in order, each once."
        )
        self._judge(
            2,
            "It MUST ignore keys it does not know, at any depth.",
            wrong=unless(bool(got), "a state message with unknown keys is not obeyed"),
        )
        self._judge(
            2,
            "A receiver MUST refuse a message shorter than 12 bytes or with another magic.",
            wrong=unless(bool(got), "after torn and foreign messages it does not go on"),
        )
        if not got:
            raise Stopped
        self._keep_quiet()
        self._judge(
            8,
            "A device MUST NOT send other seqs.",
            wrong=unless(self._n_new() == 0, f"beyond its credit it sent {self._seqs()}"),
        )

    def _stale_credit(self) -> None:
        stage = self._stage
        far = partial(self._state, round_=1, next_=1, limit=ROUND_STEPS + 1)
        stage.say(far(n=self._n - 1 or 1))
        stage.say(far(n=self._n + 50, incarnation=self._incarnation + 1))
        stage.say(far(n=self._n + 50, term=self._term - 1))
        self._keep_quiet()
        self._judge(
            8,
            "A device MUST obey the state message with the highest (term, n) and ignore all others.",
            wrong=unless(self._n_new() == 0, f"stale orders made it send {self._seqs()}"),
        )

    def _lost_batches(self) -> None:
        """Name the same next again and again, as if both batches were lost."""
        stage = self._stage
        earlier = {batch.header.seq: batch for batch in stage.batches}
        self._taken = len(stage.batches)
        deadline_s = time.monotonic() + 6.0 / self._pace + self._cap_s
        while self._n_new() < WINDOW and time.monotonic() < deadline_s:
            stage.say(self._state(round_=1, next_=1, limit=1 + WINDOW))
            stage.wait_for(lambda: self._n_new() >= WINDOW, 1.0 / self._pace)
        again = stage.batches[self._taken :]
        self._judge(
            8,
            "It MUST send them again, from `next` on, when a state message names the same `next` in the same round for 5 s",
            wrong=unless(
                [batch.header.seq for batch in again] == [1, 2],
                f"sent again: {[b.header.seq for b in again]}",
            ),
        )
        ids = {batch.payload_id for batch in stage.batches}
        self._judge(
            4,
            "drawn at random for each rendering",
            wrong=unless(len(ids) == len(stage.batches), "two payloads have one payload id"),
        )
        pairs = [(earlier[b.header.seq].header, b.header) for b in again if b.header.seq in earlier]
        unsaid = [now.seq for then, now in pairs if now.sha256 != then.sha256 and not now.remade]
        self._judge(
            9,
            "asked for a batch that its training has passed, it makes it again and says `remade`",
            wrong=unless(not unsaid, f"seqs {unsaid} came with other bytes and did not say remade"),
        )
        self._taken = len(stage.batches)

    def _rest_of_the_round(self) -> None:
        n_items = self._n_train() + self._n_eval()
        self._stage.say(self._state(round_=1, next_=1 + WINDOW, limit=n_items + 1))
        rest = list(range(1 + WINDOW, n_items + 1))
        got = self._expect(
            "9",
            rest,
            round_=1,
            sentence="A device's list in a round is its training batches (seq 1 to n_train), then its held-out batches",
        )
        kinds = {b.header.seq: b.header.kind for b in self._stage.batches}
        wrong = [s for s, kind in kinds.items() if (kind == "train") != (s <= self._n_train())]
        self._judge(
            6,
            "`kind` MUST be `train` for the seqs of training batches and `eval` for the others.",
            wrong=unless(not wrong, f"seqs {wrong} are of the wrong kind"),
        )
        shapes = {tuple(b.header.tensors[0].shape[1:]) for b in self._stage.batches}
        self._judge(
            6,
            "of shape (n, activation shape at the cut)",
            wrong=unless(len(shapes) == 1, f"activations of {len(shapes)} shapes: {sorted(shapes)}"),
        )
        codecs = {codec_of(b) for b in self._stage.batches}
        self._judge(
            7,
            "or one of them with `+zstd`; for `h`",
            wrong=unless(codecs == {self._codec}, f"the job says {self._codec}, it sends {sorted(codecs)}"),
        )
        steps = [b.header.segment_step for b in self._stage.batches]
        self._judge(
            9,
            "A device MUST train on a (round, seq) at most once",
            wrong=unless(
                max(steps) <= self._n_train(),
                f"{max(steps)} steps for {self._n_train()} batches",
            ),
        )
        if not got:
            raise Stopped

    def _next_round(self) -> None:
        self._stage.say(self._state(round_=2, next_=1, limit=1 + WINDOW))
        got = self._expect(
            "8", [1, 2], round_=2, sentence="When `round` changes, the device enters it at `next`"
        )
        if not got:
            raise Stopped

    def _coordinator_gone(self) -> None:
        stage = self._stage
        stage.answer = None
        stage.say_word("offline", self._term)
        stage.listen_for(SETTLE_S)
        stage.say(self._state(round_=2, next_=1, limit=ROUND_STEPS))
        self._keep_quiet()
        self._judge(
            11,
            "devices keep their job, and send nothing",
            wrong=unless(self._n_new() == 0, f"with its coordinator offline it sent {self._seqs()}"),
        )

    def _coordinator_back(self) -> None:
        stage = self._stage
        before = len(stage.greetings)
        self._term, self._n, self._incarnation = self._term + 1, 0, self._incarnation + 1
        stage.say_word("online", self._term)
        back = stage.wait_for(lambda: len(stage.greetings) > before, self._cap_s)
        self._judge(
            11,
            'Its next word "online" makes every device say hello',
            wrong=unless(back, "no hello after the word"),
        )
        if not back:
            raise Stopped
        stage.say(Welcome(boot_nonce=self._nonce(), run=stage.run, term=1, incarnation=1, protocol=1))
        stage.answer = self._welcome
        self._welcome()
        stage.say(Assignment(term=self._term - 1, plan_version=self._plan + 1, job=self._job()))
        stage.say(self._state(round_=2, next_=1 + WINDOW, limit=2 + WINDOW))
        got = self._expect("8", [1 + WINDOW], round_=2, sentence="It goes on at `next` after a reconnect.")
        stage.say(self._state(round_=2, next_=1, limit=ROUND_STEPS, term=self._term - 1, n=99))
        self._keep_quiet()
        self._judge(
            7,
            "A device MUST ignore an assignment of another term than its own, or of a lower plan version.",
            wrong=unless(self._n_new() == 0, f"orders of an earlier term made it send {self._seqs()}"),
        )
        if not got:
            raise Stopped

    def _newer_plan(self) -> None:
        stage = self._stage
        before = len(stage.greetings)
        self._plan += 1
        stage.say(self._state(round_=2, next_=2 + WINDOW, limit=3 + WINDOW))
        asked = stage.wait_for(lambda: len(stage.greetings) > before, self._cap_s)
        self._judge(
            8,
            "A device that is told of a plan for which it holds no assignment MUST say hello.",
            wrong=unless(asked, "no hello"),
        )
        if not asked:
            raise Stopped
        stage.say(Assignment(term=self._term, plan_version=self._plan - 1, job=self._job()))
        stage.say(self._state(round_=2, next_=2 + WINDOW, limit=3 + WINDOW))
        self._expect(
            "7", [2 + WINDOW], round_=2, sentence="One for the job that it has already changes nothing."
        )

    def _end(self) -> None:
        stage = self._stage
        stage.say(self._state(round_=2, next_=3 + WINDOW, limit=3 + WINDOW, phase="finished"))
        stage.listen_for(SETTLE_S)
        stage.say(self._state(round_=2, next_=3 + WINDOW, limit=4 + WINDOW))
        self._keep_quiet()
        self._judge(
            8,
            "`finished` and `failed` end the session for good.",
            wrong=unless(self._n_new() == 0, f"after the end it sent {self._seqs()}"),
        )
        self._no_faults()

    def _dismissal(self, kind: type[Fenced | Refusal]) -> None:
        stage = self._stage
        if kind is Fenced:
            stage.say(Fenced(boot_nonce=self._nonce(), incarnation=7))
        else:
            stage.say(Refusal(boot_nonce=self._nonce(), code="late", message="This is a test."))
        stage.listen_for(SETTLE_S)
        before = len(stage.greetings)
        stage.listen_for(8.0 / self._pace)
        self._judge(
            7,
            "A device that is refused or fenced MUST stop for good",
            wrong=unless(
                len(stage.greetings) == before, f"it said hello again {len(stage.greetings) - before} times"
            ),
        )
        self._no_faults()


def _noise(run: str) -> Iterator[bytes]:
    """What a device must drop and go on: torn, foreign, of another version, of no type, a device's own message."""
    good = bytes(frames.encode(Welcome(boot_nonce=bytes(16), run=run, term=1, incarnation=1, protocol=1)))
    yield b""
    yield good[:7]
    yield good[:-3]
    yield b"JSON" + good[4:]
    yield good[:4] + b"\x02" + good[5:]
    yield good[:8] + b"\xff\xff\xff\xff" + good[12:]
    for header in ({"type": "shutdown"}, {"type": "state", "term": -1}, {"type": "bye", "x": 1}):
        packed = msgspec.msgpack.encode(header)
        yield good[:8] + len(packed).to_bytes(4, "little") + packed
