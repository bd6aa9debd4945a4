"""Which of two coordinators goes on that meet in one fleet: of two runs, or of one run and term, from copies of a folder.

Pure: words and times are handed in. The one that came first goes on. Whoever came later read its word before its own
came back, and sees that it lives: it speaks again, or, where both have one account at the broker and cut each other off, its word
stands at the broker again.
"""

from __future__ import annotations

from toolkit.wire.words import BridgeWord

SETTLE_S = 30.0
"""Within so long after it came a coordinator gives way to one that was there; after it, who meets settles it by nonces."""
MET_S = 10.0
"""A rival that was heard of so lately may still have to be told."""


class Rivals:
    """What one coordinator process knows of others in its place.

    Args:
        own: its word.
    """

    def __init__(self, own: BridgeWord) -> None:
        self._own = own
        self._came_at = float("-inf")
        self._is_echoed = False
        self._elder: BridgeWord | None = None
        self._is_new = True
        self._cut_by: BridgeWord | None = None
        self._met: BridgeWord | None = None
        self._met_since = float("-inf")
        self._met_at = self._met_lower_at = float("-inf")

    def arrive(self, now: float) -> None:
        """Take note of a fresh connection."""
        self._came_at = now
        self._elder = None
        self._is_echoed = False

    def own_came_back(self) -> None:
        """Take note that the broker took this process's own word."""
        self._is_echoed = True

    @property
    def is_standing(self) -> bool:
        """Whether this process's own word came back on this connection."""
        return self._is_echoed

    def lost_to(self, word: BridgeWord, now: float) -> bool:
        """Whether a rival's word shows that this one has to give way."""
        is_twin = word.run == self._own.run
        if not self._is_echoed:  # what the broker kept, perhaps since before it was killed
            # A twin's last will says that it was cut off, maybe by this one; a run that ended is nobody's any more.
            is_there = word.state == "online" or (is_twin and not word.ended)
            self._elder = word if is_there else None
            self._met = word if is_there else self._met
            if word.ended:  # by the twin that it was at odds with: there is nothing left to do
                return is_twin and _is_same(word, self._met)
            # Its word stands where this one's own stood: it came back to it, and lives.
            return word.state == "online" and _is_same(word, self._cut_by)
        if word.state == "offline":
            return is_twin and bool(word.ended)
        # PROTOCOL.md 3: "The coordinator that came later gives way: it MUST end"
        is_first = _is_same(word, self._elder) and self._is_newcomer(now)
        # An earlier version has no nonce, and never gives way to a twin.
        return is_first or (is_twin and not word.boot_nonce) or self._insists(word, now)

    def lost_connection(self, now: float, *, is_evicted: bool) -> bool:
        """Whether the end of a connection shows that this one has to give way.

        Args:
            now: monotonic seconds.
            is_evicted: another process has the account.
        """
        # Perhaps by the elder, if it has this one's account, perhaps by nobody: what stands retained after it tells.
        is_by_twin = self._elder is not None and self._elder.run == self._own.run
        if self._is_new and is_by_twin and self._is_echoed and self._is_newcomer(now):
            self._cut_by = self._elder
        elif self._is_echoed:  # it stood alone: whoever it finds when it is back came later
            self._is_new = False
        return is_evicted and self._met is not None and self._insists(self._met, now)

    def met_lower_term(self, now: float) -> None:
        """Take note of a process that this one took the run over from, and that is still at work."""
        self._met_lower_at = now

    def is_met(self, now: float) -> bool:
        """Whether a rival may not know of this process: it was there before, or spoke lately."""
        return self._is_newcomer(now) or now - max(self._met_at, self._met_lower_at) <= MET_S

    def _is_newcomer(self, now: float) -> bool:
        return self._elder is not None and now - self._came_at < SETTLE_S

    def _insists(self, word: BridgeWord, now: float) -> bool:
        """Both took the place for theirs, since words were lost: whether this is the one that gives way."""
        if not _is_same(word, self._met) or now - self._met_at > SETTLE_S:
            self._met_since = now
        self._met, self._met_at = word, now
        return now - self._met_since >= SETTLE_S and word.boot_nonce < self._own.boot_nonce


def _is_same(word: BridgeWord, other: BridgeWord | None) -> bool:
    return other is not None and (word.run, word.boot_nonce) == (other.run, other.boot_nonce)
