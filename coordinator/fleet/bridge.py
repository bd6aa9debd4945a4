"""The bridge word: what a coordinator says of itself to its fleet, and what it makes of the words of others."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from coordinator.fleet.rivals import Rivals
from coordinator.store.run_folder import RunFolder
from toolkit.errors import BrokerError, IdentityConflictError, RunError
from toolkit.link.base import Link
from toolkit.wire.topics import Topics
from toolkit.wire.words import BridgeWord, Ending, Presence, encode_word

RESTATE_S = 5.0
"""A coordinator answers the words of rivals with its own no more often than so."""

DOUBT_S = 10.0
"""A coordinator asks who else is at work no more often than so: a device may lie, and every device hears the word."""


def last_will(topics: Topics, folder: RunFolder) -> tuple[str, bytes]:
    """Topic and word by which a broker tells that the process that takes up a folder is gone."""
    word = BridgeWord("offline", folder.record.run, folder.record.term + 1, boot_nonce=folder.boot_nonce)
    return topics.bridge_state, encode_word(word)


class Bridge:
    """One coordinator process's word.

    Args:
        link: to say it on.
        topics: of the fleet.
        run: that is served.
        term: of this process.
        boot_nonce: of this process, in hexadecimal.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        link: Link,
        *,
        topics: Topics,
        run: str,
        term: int,
        boot_nonce: str,
        clock: Callable[[], float],
    ) -> None:
        self._link = link
        self._topics = topics
        self._own = BridgeWord("online", run, term, boot_nonce=boot_nonce)
        self._clock = clock
        self._rivals = Rivals(self._own)
        self._rival: BridgeWord | None = None
        self._is_spoken_over = False
        self._is_connected = False
        self._came_at = self._restated_at = self._doubted_at = float("-inf")

    def arrive(self) -> None:
        """Say that this coordinator is there, on a fresh connection."""
        self._is_connected, self._came_at = True, self._clock()
        self._rivals.arrive(self._came_at)
        self.say("online")

    def say(self, state: Presence, *, ended: Ending = "") -> None:
        """Say whether this coordinator is there, and how the run ended if it did."""
        word = msgspec.structs.replace(self._own, state=state, ended=ended)
        self._link.publish(self._topics.bridge_state, encode_word(word), retain=True)

    def tick(self) -> None:
        """Say again that this coordinator is there: its word has not come back, or a rival may not know it."""
        now = self._clock()
        may_be_lost = not self._rivals.is_standing or self._rivals.is_met(now)
        since_s = now - max(self._restated_at, self._came_at if not self._is_spoken_over else float("-inf"))
        if self._is_connected and (self._is_spoken_over or may_be_lost) and since_s >= RESTATE_S:
            self._restated_at = now
            self._is_spoken_over = False
            self.say("online")

    def doubt(self) -> None:
        """Say again that this coordinator is there, since a device obeys a higher term; who gave it that one answers.

        What a device says ends nothing, and asks no more often than every ``DOUBT_S``.
        """
        now = self._clock()
        if now - self._doubted_at >= DOUBT_S:
            self._doubted_at = now
            self._is_spoken_over = True

    def hear(self, word: BridgeWord) -> RunError | None:
        """Take a word: this one's own that comes back, a late will of it, or another coordinator's.

        Returns: why this coordinator has to give way, where it has.
        """
        own = self._own
        is_same_run = word.run == own.run
        if word == own:
            self._rivals.own_came_back()
        elif is_same_run and word.term > own.term:
            # PROTOCOL.md 7: "A coordinator that hears of a higher term of its run MUST end, and say nothing more"
            return self._lost_to(word)
        elif is_same_run and (word.term < own.term or word.boot_nonce == own.boot_nonce):
            # A late last will of an earlier connection, or a process of a lower term: the broker keeps its word for every
            # device that comes now. Whether this one's own came back before says nothing: it may have been lost.
            if word.term < own.term and word.state == "online":
                self._rivals.met_lower_term(self._clock())
            self.say("online")
        else:
            self._rival = word
            if self._rivals.lost_to(word, self._clock()):
                return self._lost_to(word)
            self._is_spoken_over = self._rivals.is_standing
            self.tick()
        return None

    def lose_connection(self, error: BrokerError) -> RunError | None:
        """Take the end of a connection, see :meth:`hear`."""
        self._is_connected = False
        is_evicted = isinstance(error, IdentityConflictError)
        is_lost = self._rivals.lost_connection(self._clock(), is_evicted=is_evicted)
        return self._lost_to(self._rival) if is_lost and self._rival is not None else None

    def _lost_to(self, rival: BridgeWord) -> RunError:
        own = self._own
        if rival.run != own.run:
            return RunError(
                f"Fleet {self._topics.fleet!r} is served by the run {rival.run!r} already.",
                hint="Wait for its end or stop it; or give this run a fleet of its own: --fleet",
                run=rival.run,
            )
        if rival.term > own.term:
            return RunError(
                f"Another coordinator has taken up run {own.run} (term {rival.term}; this one has {own.term}).",
                hint="Only one of them can go on, and it is the other one. Where that one is gone for good and this folder is a backup,"
                f" resume it again: each resume raises its term by one, and at most {rival.term + 1 - own.term} are needed.",
                term=rival.term,
            )
        return RunError(
            f"Another coordinator is at work on run {own.run}, from a copy of this folder (both have term {own.term}).",
            hint="Only one of them can go on, and it is the other one. To go on here all the same: stop it, and resume this"
            " one once more, which gives it the higher term.",
            term=own.term,
        )
