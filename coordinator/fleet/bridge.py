"""The bridge word: what a coordinator says of itself to its fleet, and what it makes of the words of others."""

from __future__ import annotations

from collections.abc import Callable

from toolkit.errors import RunError
from toolkit.link.base import Link
from toolkit.wire.topics import Topics
from toolkit.wire.words import BridgeWord, Ending, Presence, encode_word

NEWCOMER_S = 10.0
"""A coordinator that hears another run's coordinator answer so soon after it came gives way to it."""
RESTATE_S = 5.0
"""A coordinator answers the words of others in its fleet with its own no more often than so."""


class Bridge:
    """One coordinator process's word.

    Args:
        link: to say it on.
        topics: of the fleet.
        run: that is served.
        term: of this process.
        clock: monotonic seconds.
    """

    def __init__(
        self, link: Link, *, topics: Topics, run: str, term: int, clock: Callable[[], float]
    ) -> None:
        self._link = link
        self._topics = topics
        self._run = run
        self._term = term
        self._clock = clock
        self._came_at: float | None = None
        self._restated_at = float("-inf")
        self._is_echoed = False
        self._elder = ""

    def say(self, state: Presence, *, ended: Ending = "") -> None:
        """Say whether this coordinator is there, and how the run ended if it did."""
        if self._came_at is None:
            self._came_at = self._clock()
        word = encode_word(BridgeWord(state, self._run, self._term, ended))
        self._link.publish(self._topics.bridge_state, word, retain=True)

    def taken_over_by(self, word: BridgeWord) -> RunError | None:
        """Say why this coordinator must end, where a word shows that its run was taken up elsewhere."""
        # PROTOCOL.md 7: "A coordinator that hears of a higher term of its run MUST end, and say nothing more"
        if word.run != self._run or word.term <= self._term:
            return None
        return RunError(
            f"Another coordinator has taken up run {self._run} (term {word.term}; this one has {self._term}).",
            hint="Only one of them can go on, and it is the other one.",
            term=word.term,
        )

    def hear(self, word: BridgeWord) -> None:
        """Take a word: this one's own that comes back, a late will of it, or another run's.

        Raises: RunError: another run had the fleet before.
        """
        if word.run == self._run:
            if word.term == self._term and word.state == "online":
                self._is_echoed = True
            else:
                # A late last will of an earlier connection, or a process of a lower term: the broker keeps its word for every
                # device that comes now. Whether this one's own came back before says nothing: it may have been lost.
                self.say("online")
        elif not self._is_echoed:
            self._elder = word.run if word.state == "online" else ""
        else:
            self._on_other_run(word)

    def _on_other_run(self, word: BridgeWord) -> None:
        """Another run's word behind this one's own first: its coordinator lives."""
        now = self._clock()
        is_new = self._came_at is not None and now - self._came_at < NEWCOMER_S
        # PROTOCOL.md 3: "The coordinator that came later gives way: it MUST end"
        if word.state == "online" and is_new and word.run == self._elder:
            raise RunError(
                f"Fleet {self._topics.fleet!r} is served by the run {word.run!r} already.",
                hint="Wait for its end or stop it; or give this run a fleet of its own: --fleet",
                run=word.run,
            )
        if now - self._restated_at >= RESTATE_S:
            self._restated_at = now
            self.say("online")
