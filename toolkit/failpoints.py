"""Places at which a process can be made to die, so that tests reach the moments that chance seldom hits.

:func:`failpoint` returns at once unless the environment named its place when the process started::

    HSEE_FAILPOINT=coordinator.applied       dies the first time it comes there
    HSEE_FAILPOINT=coordinator.applied:7     dies the seventh time

It dies as by a power cut to the process: SIGKILL, nothing is flushed. A simulation takes the place of the signal by
:func:`watched`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from toolkit.errors import UsageError, did_you_mean

VARIABLE = "HSEE_FAILPOINT"
FAILPOINTS = {
    "device.welcome_unsaved": "a job is here, nothing of it is on disk",
    "device.stepped": "a step was made, its checkpoint was not",
    "device.temp_written": "the new checkpoint stands beside the old one, not synced",
    "device.synced": "the new checkpoint is synced, not renamed",
    "device.renamed": "the new checkpoint has its name, the folder is not synced",
    "device.mid_chunks": "one chunk of a payload is handed to the link, the others are not",
    "coordinator.term_raised": "the term is durable, nothing is said yet",
    "coordinator.incarnation_issued": "an incarnation is durable, its welcome is not sent",
    "coordinator.payload_whole": "a payload is assembled, not taken up",
    "coordinator.applied": "a batch is trained on and in the ledger, which is not synced",
    "coordinator.mid_fold": "a round is closing, its copies are not one yet",
    "coordinator.aggregated": "the copies are one, the round is not closed",
    "coordinator.ledger_synced": "the ledger is durable, the checkpoint is not begun",
    "coordinator.temp_written": "the checkpoint stands beside its place, not synced",
    "coordinator.synced": "the checkpoint is synced, not renamed",
    "coordinator.renamed": "the checkpoint has its name, the folder is not synced",
    "coordinator.committed": "the checkpoint is durable, nobody is told",
    "coordinator.closed_untold": "the round is closed and committed, the next one is not told",
}
"""Every place by name, and what is true there."""

Action = Callable[[str], None]


def _die(_place: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _from_environment(text: str) -> Action | None:
    """Read the variable.

    Raises: UsageError: it names no place.
    """
    if not text:
        return None
    name, _, count = text.partition(":")
    if name not in FAILPOINTS or not (count or "1").isdecimal():
        raise UsageError(
            f"{VARIABLE}={text} names no failpoint.",
            hint=f"{did_you_mean(name, FAILPOINTS)} It is written NAME or NAME:COUNT.",
        )
    left = int(count or "1")

    def count_down(place: str) -> None:
        nonlocal left
        left -= place == name
        if left <= 0 and place == name:
            _die(place)

    return count_down


_action: Action | None = _from_environment(os.environ.get(VARIABLE, ""))


def failpoint(place: str) -> None:
    """Come past a place of :data:`FAILPOINTS`."""
    if _action is not None:
        _action(place)


@contextmanager
def watched(action: Action) -> Iterator[None]:
    """Within the block, call ``action`` with every place that is come past, instead of dying."""
    global _action  # noqa: PLW0603 - one process, one action
    before, _action = _action, action
    try:
        yield
    finally:
        _action = before
