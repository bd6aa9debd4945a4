"""Being told to stop: SIGTERM and Ctrl-C wait for the end of a step or a commit, so that nothing is left half done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

_WATCHED = (signal.SIGTERM, signal.SIGINT)


class TerminatedError(Exception):
    """SIGTERM came."""


class StopSignals:
    """Watches both signals within a ``with`` block; the first is a wish, a second one is obeyed at once."""

    def __init__(self) -> None:
        self._wish: int | None = None
        self._obey_at_once = False
        self._previous = {number: signal.getsignal(number) for number in _WATCHED}

    @property
    def wanted(self) -> bool:
        """Whether a signal came."""
        return self._wish is not None

    def obey(self) -> None:
        """Do what the signal asked for, if one came.

        Raises: KeyboardInterrupt, TerminatedError: it did.
        """
        if self._wish == signal.SIGINT:
            raise KeyboardInterrupt
        if self._wish == signal.SIGTERM:
            raise TerminatedError

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Obey a signal at any point within this block: nothing in it can be torn."""
        self.obey()
        self._obey_at_once = True
        try:
            yield
        finally:
            self._obey_at_once = False

    def __enter__(self) -> Self:
        for number in _WATCHED:
            signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        second = self.wanted
        self._wish = number
        if second or self._obey_at_once:
            self.obey()
