"""What the coordinator hands down between rounds: asked for until it is here, put together within bounds."""

from __future__ import annotations

from toolkit.wire import chunks
from toolkit.wire.messages import Chunk
from toolkit.wire.session import RESEND_AFTER_S


class Fetching:
    """Remembers what was asked for, and collects the chunks of the answer.

    Args:
        max_bytes: no payload of the job can be longer.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._assembler = chunks.Assembler(self._max_bytes)
        self._round = 0
        self._quiet_since = 0.0

    def is_due(self, round_: int, now: float) -> bool:
        """Whether to ask for a round's results now: for the first time, or because nothing came for so long."""
        if round_ == self._round and now - self._quiet_since < RESEND_AFTER_S:
            return False
        self._round, self._quiet_since = round_, now
        return True

    def add(self, chunk: Chunk, body: memoryview, now: float) -> bytes | None:
        """Take one chunk; returns the whole payload once its last piece is here.

        Raises: RemoteProtocolError: it announces more than any payload of the job has, or contradicts itself.
        """
        self._quiet_since = now
        return self._assembler.add(chunk, body)

    def forget(self) -> None:
        """Let go of what is half here, and ask anew when there is something to ask for."""
        self._assembler = chunks.Assembler(self._max_bytes)
        self._round = 0
