"""What a process leaves on disk: content replaced whole or not at all, and files held for one process.

What must survive a power cut goes through a :class:`Disk`, which is passed in: the system's, or one of a simulation
that forgets whatever was not synced.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol

from toolkit.errors import RunError, writing

_syncs: ContextVar[bool] = ContextVar("syncs", default=True)


@contextmanager
def without_sync() -> Iterator[None]:
    """Within the block, what is written survives a kill but no power cut: for simulations, of many devices."""
    before = _syncs.set(False)
    try:
        yield
    finally:
        _syncs.reset(before)


PRIVATE = 0o600
"""Mode of a file that only its owner may read."""
PRIVATE_FOLDER = 0o700
SHARED = 0o666
"""Mode of any other file, less the process's umask."""


class Held(Protocol):
    """A file held for this process."""

    def close(self) -> None:
        """Let it go."""


class Disk(Protocol):
    """Files and folders, and what of them survives a power cut: content by :meth:`sync`, names by :meth:`sync_folder`.

    Every method raises OSError as the system would.
    """

    def exists(self, path: Path) -> bool:
        """Whether a file or folder is there."""
        ...

    def read(self, path: Path) -> bytes:
        """Read a whole file."""
        ...

    def names(self, folder: Path) -> list[str]:
        """List a folder in order; empty where there is none."""
        ...

    def make_folder(self, path: Path) -> None:
        """Make a folder and those above it, not durable; nothing happens where it is there."""

    def write(self, path: Path, content: bytes, *, mode: int = SHARED) -> None:
        """Write a new file, for one that is there; not durable."""

    def append(self, path: Path, content: bytes) -> None:
        """Write behind a file's end; not durable."""

    def cut(self, path: Path, length: int) -> None:
        """Cut a file to its first ``length`` bytes; not durable."""

    def sync(self, path: Path) -> None:
        """Make a file's content durable."""

    def rename(self, old: Path, new: Path) -> None:
        """Give a file, or a folder that has no other in its place, another name; not durable."""

    def sync_folder(self, folder: Path) -> None:
        """Make the names in a folder durable."""

    def remove(self, path: Path) -> None:
        """Remove a file, or a folder with all in it; not durable."""

    def hold(self, path: Path, *, taken: RunError) -> Held:
        """Hold a file for this process until it ends; see :class:`FileLock`."""
        ...


class SystemDisk:
    """The disks of this machine; within :func:`without_sync` it does not wait for them."""

    def exists(self, path: Path) -> bool:
        """See :class:`Disk`."""
        return path.exists()

    def read(self, path: Path) -> bytes:
        """See :class:`Disk`."""
        return path.read_bytes()

    def names(self, folder: Path) -> list[str]:
        """See :class:`Disk`."""
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def make_folder(self, path: Path) -> None:
        """See :class:`Disk`."""
        path.mkdir(parents=True, exist_ok=True)

    def write(self, path: Path, content: bytes, *, mode: int = SHARED) -> None:
        """See :class:`Disk`."""
        path.unlink(missing_ok=True)  # left by a killed process, with whatever mode
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)

    def append(self, path: Path, content: bytes) -> None:
        """See :class:`Disk`."""
        with path.open("ab") as file:
            file.write(content)

    def cut(self, path: Path, length: int) -> None:
        """See :class:`Disk`."""
        os.truncate(path, length)

    def sync(self, path: Path) -> None:
        """See :class:`Disk`."""
        self._sync(path, os.O_RDWR)

    def rename(self, old: Path, new: Path) -> None:
        """See :class:`Disk`."""
        old.replace(new)

    def sync_folder(self, folder: Path) -> None:
        """See :class:`Disk`."""
        self._sync(folder, os.O_RDONLY)

    def remove(self, path: Path) -> None:
        """See :class:`Disk`."""
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def hold(self, path: Path, *, taken: RunError) -> Held:
        """See :class:`Disk`."""
        return FileLock(path, taken=taken)

    def _sync(self, path: Path, flags: int) -> None:
        if not _syncs.get():
            return
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


SYSTEM_DISK = SystemDisk()


def write_atomically(path: Path, content: bytes, *, mode: int = SHARED, disk: Disk = SYSTEM_DISK) -> None:
    """Replace a file's content: written beside it, synced, renamed, and the folder synced.

    Args:
        path: of the file; its folder exists.
        content: all of it.
        mode: of the new file, less the process's umask; ``PRIVATE`` for secrets, from the first byte on.
        disk: that holds it.
    Raises: MachineError: the disk refuses it; the old content is whole.
    """
    beside = path.with_name(path.name + ".new")
    with writing(path):
        disk.write(beside, content, mode=mode)
        disk.sync(beside)
        disk.rename(beside, path)
        disk.sync_folder(path.parent)


def make_folder_durably(path: Path, *, disk: Disk = SYSTEM_DISK) -> None:
    """Make a folder and those above it, so that a power cut leaves them.

    Raises: MachineError: the disk refuses it.
    """
    missing = []
    while not disk.exists(path):
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        with writing(folder):
            disk.make_folder(folder)
            disk.sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder of this machine durable: what was renamed into it survives a power cut."""
    SYSTEM_DISK.sync_folder(folder)


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
