"""What rides beside a run's training: a service has topics of its own and a turn in every poll of the coordinator.

Training knows no service and waits for none. A service never blocks and bounds what it keeps; what it does in one turn
is one small piece, so that a training step and a message are never far away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from coordinator.rounds.underway import Underway


class Publish(Protocol):
    """Hands a message to the link: :meth:`toolkit.link.base.Link.publish`."""

    def __call__(self, topic: str, payload: bytes | bytearray, *, qos: int = 1, retain: bool = False) -> None:
        """Publish without blocking."""


class Service:
    """Does nothing yet. Override what a service needs."""

    @property
    def filters(self) -> Sequence[str]:
        """Topic filters whose messages come to :meth:`take`, and to nobody else; the same for the process's life."""
        return ()

    def begin(self, underway: Underway) -> None:
        """Take note of the run with its plan; told once, before its first round here opens."""

    def take(self, topic: str, payload: bytes) -> None:
        """Take one message; keep it for :meth:`tick`.

        Raises: RemoteProtocolError: it is refused; the coordinator counts it and goes on.
        """

    def tick(self, publish: Publish) -> bool:
        """Do one small piece of work.

        Returns: whether there is more to do at once.
        """
        del publish
        return False

    def close(self) -> None:
        """Let go of what it holds; the link is closed already."""
