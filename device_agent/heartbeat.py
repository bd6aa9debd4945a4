"""Tells how a board stands while it works: beside the agent's loop, so that a step of a minute silences nobody."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from device_agent.telemetry import Reporter, Standing
from toolkit.wire.session import DevicePhase

EVERY_S = 0.5
"""How often the reporter is asked whether anything is due."""


class Heartbeat:
    """Within a ``with`` block the reporter tells what is due, in a thread that computes nothing else.

    It only reads what the agent says of itself; the link takes messages from any thread. A loop that hangs is not its
    business but the watchdog's.

    Args:
        reporter: of this process.
        agent: that is told of; a fenced one is told of no more.
        every_s: between two looks.
    """

    def __init__(self, reporter: Reporter, agent: Standing, *, every_s: float = EVERY_S) -> None:
        self._reporter = reporter
        self._agent = agent
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._tell()  # the last lines, why it ended among them

    def _beat(self) -> None:
        while not self._over.wait(self._every_s):
            self._tell()

    def _tell(self) -> None:
        if self._agent.phase is not DevicePhase.FENCED:
            self._reporter.tick(self._agent)
