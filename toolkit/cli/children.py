"""Child processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

STOP_S = 10.0
_PR_SET_PDEATHSIG = 1


class Children:
    """Starts commands of hsee and stops what still runs when the block ends, newest first."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def start(
        self, words: Sequence[str], *, env: Mapping[str, str] | None = None, log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start ``hsee`` with these words.

        Args:
            words: the command and its arguments.
            env: variables beside this process's own.
            log: takes its output; without one it writes where this process writes.
        """
        stream = None if log is None else log.open("ab")
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", "toolkit.cli.entry", *words],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream and subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,  # Ctrl-C reaches the parent alone, which stops all in order
                preexec_fn=partial(_die_with_parent, os.getpid()),  # noqa: PLW1509 - it only makes one system call
            )
        finally:
            if stream is not None:
                stream.close()
        self._running.append(child)
        return child

    def run(self, words: Sequence[str]) -> bytes:
        """Run ``hsee`` with these words to its end; returns what it printed to stdout.

        Raises: subprocess.CalledProcessError: it failed; its stderr is in it.
        """
        child = subprocess.Popen(
            [sys.executable, "-m", "toolkit.cli.entry", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=partial(_die_with_parent, os.getpid()),  # noqa: PLW1509 - it only makes one system call
        )
        self._running.append(child)
        out, err = child.communicate()
        self._running.remove(child)
        if child.returncode:
            raise subprocess.CalledProcessError(child.returncode, list(words), out, err)
        return out

    def stop(self) -> None:
        """Ask every child to stop, and after some seconds make it."""
        for child in reversed(self._running):
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for child in reversed(self._running):
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._running.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()


def _die_with_parent(parent: int) -> None:
    """Even where the parent is killed and can't stop anything."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before it could be watched
        os.kill(os.getpid(), signal.SIGTERM)
