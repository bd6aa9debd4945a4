"""How a child process ended that did not finish, in words."""

from __future__ import annotations

import signal
from typing import IO

from toolkit.profile.schema import Limits


def death_reason(returncode: int, last_words: str, *, limits: Limits | None, part: str) -> str:
    """Say why a child died.

    Args:
        returncode: as ``subprocess`` gives it: negative for a signal.
        last_words: the last line of its stderr.
        limits: that it ran within.
        part: the package most likely to be at fault when the CPU refuses an instruction.
    """
    if returncode == -signal.SIGKILL:
        limit = f" (limit {limits.memory_mb} MB)" if limits else ""
        return f"killed, as the system does when memory runs out{limit}"
    if returncode == -signal.SIGILL:
        return f"illegal instruction: the installed {part} does not suit this CPU"
    if returncode < 0:
        return f"killed by signal {signal.Signals(-returncode).name}"
    return last_words or f"exit status {returncode}"


def last_line(stderr: IO[bytes]) -> str:
    """Read the last line that a process wrote, shortened."""
    stderr.seek(0)
    lines = stderr.read()[-4096:].decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:512] if lines else ""
