"""A disk that forgets at a power cut what was not synced: content of files, and names in folders."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from toolkit.errors import RunError


@dataclass(eq=False)
class File:
    content: bytes = b""
    durable: bytes = b""

    def crash(self, rng: Random) -> None:
        """What was not synced is there, gone, or torn."""
        if self.content != self.durable:
            pairs = zip(self.content, self.durable, strict=False)
            same = next(
                (at for at, (a, b) in enumerate(pairs) if a != b), min(len(self.content), len(self.durable))
            )
            torn = self.content[: rng.randrange(same, len(self.content) + 1)]
            self.content = self.durable = rng.choice((self.durable, self.content, torn))


@dataclass(eq=False)
class Folder:
    names: dict[str, File | Folder] = field(default_factory=dict)
    history: list[dict[str, File | Folder]] = field(default_factory=lambda: [{}])
    """What the names were at the last sync, and after every change since."""

    def changed(self) -> None:
        self.history.append(dict(self.names))

    def sync(self) -> None:
        self.history = [dict(self.names)]

    def crash(self, rng: Random) -> None:
        """Names go back to what they were at any moment since they were synced."""
        self.names = dict(rng.choice(self.history))
        self.sync()
        for child in self.names.values():
            child.crash(rng)


@dataclass(eq=False)
class Hold:
    disk: VirtualDisk
    path: Path

    def close(self) -> None:
        if self.disk.held.get(self.path) is self:
            del self.disk.held[self.path]


class VirtualDisk:
    """``toolkit.disk.Disk`` in memory.

    Attributes:
        full: nothing more can be written.
        fails_sync: the next sync fails.
    """

    def __init__(self) -> None:
        self._root = Folder()
        self.held: dict[Path, Hold] = {}
        self.full = False
        self.fails_sync = False

    def exists(self, path: Path) -> bool:
        return self._find(path) is not None

    def read(self, path: Path) -> bytes:
        return self._file(path).content

    def names(self, folder: Path) -> list[str]:
        found = self._find(folder)
        return sorted(found.names) if isinstance(found, Folder) else []

    def make_folder(self, path: Path) -> None:
        here = self._root
        for part in path.parts[1:]:
            child = here.names.get(part)
            if child is None:
                child = here.names[part] = Folder()
                here.changed()
            if not isinstance(child, Folder):
                raise _error(errno.ENOTDIR, path)
            here = child

    def write(self, path: Path, content: bytes, *, mode: int = 0o666) -> None:
        del mode
        self._check_room(path)
        folder = self._folder(path.parent)
        folder.names[path.name] = File(bytes(content))
        folder.changed()

    def append(self, path: Path, content: bytes) -> None:
        if not self.exists(path):
            self.write(path, b"")
        self._check_room(path)
        self._file(path).content += content

    def cut(self, path: Path, length: int) -> None:
        file = self._file(path)
        file.content = file.content[:length]

    def sync(self, path: Path) -> None:
        if self.fails_sync:
            self.fails_sync = False
            raise _error(errno.EIO, path)
        file = self._file(path)
        file.durable = file.content

    def rename(self, old: Path, new: Path) -> None:
        source, target = self._folder(old.parent), self._folder(new.parent)
        there = target.names.get(new.name)
        if isinstance(there, Folder) and there.names:
            raise _error(errno.ENOTEMPTY, new)
        if old.name not in source.names:
            raise _error(errno.ENOENT, old)
        target.names[new.name] = source.names.pop(old.name)
        source.changed()
        if target is not source:
            target.changed()

    def sync_folder(self, folder: Path) -> None:
        self._folder(folder).sync()

    def remove(self, path: Path) -> None:
        folder = self._folder(path.parent)
        if path.name not in folder.names:
            raise _error(errno.ENOENT, path)
        del folder.names[path.name]
        folder.changed()

    def hold(self, path: Path, *, taken: RunError) -> Hold:
        self.make_folder(path.parent)
        if path in self.held:
            raise taken
        self.held[path] = Hold(self, path)
        return self.held[path]

    # What befalls it

    def kill(self) -> None:
        """The process that used it is gone; the system keeps what it wrote."""
        self.held.clear()

    def cut_power(self, rng: Random) -> None:
        """The machine is gone, and with it whatever was not synced."""
        self.held.clear()
        self._root.crash(rng)

    def flip(self, path: Path, rng: Random) -> None:
        """A bit rots."""
        file = self._file(path)
        if file.content:
            content = bytearray(file.content)
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            file.content = file.durable = bytes(content)

    def _find(self, path: Path) -> File | Folder | None:
        here: File | Folder | None = self._root
        for part in path.parts[1:]:
            here = here.names.get(part) if isinstance(here, Folder) else None
        return here

    def _file(self, path: Path) -> File:
        found = self._find(path)
        if not isinstance(found, File):
            raise _error(errno.ENOENT, path)
        return found

    def _folder(self, path: Path) -> Folder:
        found = self._find(path)
        if not isinstance(found, Folder):
            raise _error(errno.ENOENT, path)
        return found

    def _check_room(self, path: Path) -> None:
        if self.full:
            raise _error(errno.ENOSPC, path)


def _error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), str(path))
