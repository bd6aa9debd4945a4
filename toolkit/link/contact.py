"""How a program stands with its broker, and what its owner is told of it.

A program that was just started tries for a while, then says that there is no broker; one that had a connection tries
for ever, and tells of each change once.
"""

from __future__ import annotations

from collections.abc import Callable

from toolkit.errors import BrokerError, IdentityConflictError
from toolkit.link.base import CONNECT_S


class Contact:
    """Follows a link's connections.

    Args:
        clock: monotonic seconds.
        who: the program, as its owner calls it.
        connect_s: how long the first connection may take.

    Attributes:
        is_connected: whether the link is up.
        changed_at: when a connection came about or was lost.
    """

    def __init__(self, clock: Callable[[], float], *, who: str, connect_s: float = CONNECT_S) -> None:
        self._clock = clock
        self._who = who
        self.changed_at = clock()
        self._first_by: float | None = self.changed_at + connect_s
        self._is_trying_said = False
        self._refusal_said = ""
        self.is_connected = False

    @property
    def is_made(self) -> bool:
        """Whether there ever was a connection."""
        return self._first_by is None

    def made(self) -> float:
        """Take note that the link is up; returns the seconds that it was down since it was lost."""
        now = self._clock()
        away_s = now - self.changed_at if self.is_made and not self.is_connected else 0.0
        self.is_connected, self._first_by, self._refusal_said = True, None, ""
        self.changed_at = now
        return away_s

    def heard_until(self) -> float:
        """Until when the program has heard what was said to it: now, or when it lost the connection that it had."""
        return self.changed_at if self.is_made and not self.is_connected else self._clock()

    def lost(self, error: BrokerError) -> str:
        """Take note that a connection ended or an attempt failed.

        Returns: a line for the program's owner; empty where nothing new is to be said.
        Raises: BrokerError: the first connection did not come about, and won't.
        """
        was_connected, self.is_connected = self.is_connected, False
        due = self._first_by
        if due is not None:
            if not error.retryable or self._clock() >= due:
                raise error
            if self._is_trying_said:
                return ""
            self._is_trying_said = True
            return f"{error.message} Trying again for {due - self._clock():.0f} s."
        if was_connected or isinstance(error, IdentityConflictError):
            self.changed_at = self._clock()
            return f"lost the broker: {error.message} Trying again."
        if not error.retryable and error.code != self._refusal_said:
            self._refusal_said = error.code
            return f"the broker lets {self._who} in no more: {error} Trying again."
        return ""
