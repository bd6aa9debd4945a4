"""An agent's link, lent for a while to whoever measures it: what comes meanwhile is kept for the agent.

A second connection under the same account would evict the first.
"""

from __future__ import annotations

from collections import deque

from toolkit.link.base import Connected, Disconnected, Link, LinkEvent, Received
from toolkit.link.forwarding import ForwardingLink


class LendableLink(ForwardingLink):
    """A link that can be lent; apart from that it is the one it is made of.

    Args:
        link: not started yet.
    """

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._kept: deque[LinkEvent] = deque()
        self._lent_topics: set[str] = set()

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        """See ``Link``: what came while it was lent comes first; what comes late on a lent topic is nobody's."""
        if self._kept:
            timeout_s = 0.0
        events = [*self._kept, *self._link.poll(timeout_s)]
        self._kept.clear()
        return [e for e in events if not (isinstance(e, Received) and e.topic in self._lent_topics)]

    def lend(self, topic: str) -> LentLink:
        """Lend it, for messages on one topic of its account's own; until that one is closed nobody polls this one."""
        self._lent_topics.add(topic)
        return LentLink(self._link, topic, self._kept)


class LentLink(ForwardingLink):
    """A connection that is there already: it is neither made nor ended, and only one topic's messages come out of it.

    Args:
        link: of the agent.
        topic: whose messages come out.
        kept: takes all else, in order, for the agent.
    """

    def __init__(self, link: Link, topic: str, kept: deque[LinkEvent]) -> None:
        super().__init__(link)
        self._topic = topic
        self._kept = kept
        self._first: list[LinkEvent] = []

    def start(self) -> None:
        """Say how the connection stands, as if it were new."""
        self._kept.extend(self._link.poll(0.0))
        changes: list[LinkEvent] = [e for e in self._kept if isinstance(e, Connected | Disconnected)]
        self._first = changes[-1:] or [Connected(session_present=False)]

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        """See ``Link``: of this topic; the loss of the connection is told to the agent too."""
        if self._first:
            first, self._first = self._first, []
            return first
        events = self._link.poll(timeout_s)
        own = [e for e in events if isinstance(e, Received) and e.topic == self._topic]
        self._kept.extend(event for event in events if event not in own)
        return [*own, *(event for event in events if isinstance(event, Disconnected))]

    def close(self, timeout_s: float = 2.0) -> None:
        """Give it back: the connection goes on."""
