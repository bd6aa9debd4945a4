"""What a process leaves on disk: content replaced whole or not at all, and files held for one process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from toolkit.errors import RunError, writing

_syncs: ContextVar[bool] = ContextVar("syncs", default=True)


@contextmanager
def without_sync() -> Iterator[None]:
    """Within the block, :func:`write_atomically` survives a kill but no power cut: for simulations, of many devices."""
    before = _syncs.set(False)
    try:
        yield
    finally:
        _syncs.reset(before)


PRIVATE = 0o600
"""Mode of a file that only its owner may read."""
PRIVATE_FOLDER = 0o700


def write_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace a file's content: written beside it, synced, renamed, and the folder synced.

    Args:
        path: of the file; its folder exists.
        content: all of it.
        mode: of the new file, less the process's umask; ``PRIVATE`` for secrets, from the first byte on.
    Raises: MachineError: the disk refuses it; the old content is whole.
    """
    beside = path.with_name(path.name + ".new")
    with writing(path):
        beside.unlink(missing_ok=True)  # left by a killed process, with whatever mode
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            if _syncs.get():
                os.fsync(file.fileno())
        beside.replace(path)
        if _syncs.get():
            sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: what was renamed into it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileLock:
    """A file held by this process until it is closed or the process ends, however it ends.

    Args:
        path: of the file; it and its folder are made if missing.
        taken: what to raise where another process holds it.

    Raises: MachineError: the disk refuses it.
    """

    def __init__(self, path: Path, *, taken: RunError) -> None:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            self._file.close()
            raise taken from exc

    def close(self) -> None:
        """Let it go."""
        self._file.close()
