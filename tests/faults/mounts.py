"""Disks of a row's own: of any size, copied as a power cut would leave them, read-only in the middle of a write."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.scene import SkippedRowError

SETTLE_S = 5.0


def _run(*words: object) -> str:
    try:
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
        )
    except (OSError, subprocess.CalledProcessError) as exc:
        said = getattr(exc, "stderr", "") or exc
        raise SkippedRowError(f"{words[0]} can't be used here: {said}") from exc
    return done.stdout.strip()


@contextmanager
def mounted(source: Path | str, folder: Path, *options: str) -> Iterator[None]:
    """Mount something at a folder, which is made.

    Raises: SkippedRowError: this machine does not let us.
    """
    folder.mkdir(exist_ok=True)
    _run("mount", *options, source, folder)
    try:
        yield
    finally:
        _run("umount", "--lazy", folder)


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[None]:
    """A disk in memory of a size."""
    with mounted("tmpfs", folder, "-t", "tmpfs", "-o", f"size={n_bytes}"):
        yield


def resize(folder: Path, n_bytes: int) -> None:
    """Give a small disk another size."""
    _run("mount", "-o", f"remount,size={n_bytes}", folder)


def free_bytes(folder: Path) -> int:
    """What can still be written there."""
    return shutil.disk_usage(folder).free


def fill(filler: Path) -> None:
    """Add to a file until its disk takes nothing more."""
    with filler.open("ab", buffering=0) as file:
        for n_bytes in (1 << 20, 1 << 12, 1):
            try:
                while file.write(b"\0" * n_bytes):
                    pass
            except OSError:
                continue


class Image:
    """A disk in a file: ext4 on a loop device, which keeps what was not synced to itself for minutes.

    Args:
        path: of the file; made.
        folder: where it is mounted; made.
        n_bytes: its size.
    """

    def __init__(self, path: Path, folder: Path, n_bytes: int = 64 << 20) -> None:
        self.path = path
        self.folder = folder
        with path.open("wb") as file:
            file.truncate(n_bytes)
        _run("mkfs.ext4", "-q", path)
        self._device = _run("losetup", "--find", "--show", path)
        self._stat = Path("/sys/block") / Path(self._device).name / "stat"
        folder.mkdir(exist_ok=True)
        try:
            self.mount()
        except SkippedRowError:
            _run("losetup", "--detach", self._device)
            raise

    def mount(self) -> None:
        """Put it at its folder; what a power cut or a failed disk left is mended by its journal."""
        _run("mount", "-o", "commit=300", self._device, self.folder)

    def unmount(self) -> None:
        """Take it away in order."""
        _run("umount", self.folder)

    def close(self) -> None:
        """Take it away, whoever still uses it."""
        _run("umount", "--lazy", self.folder)
        _run("losetup", "--detach", self._device)

    def fail(self) -> None:
        """Let the file system find an error: from now on nothing can be written to it, by whoever has files open."""
        _run("mount", "-o", "remount,abort", self.folder)

    def copy(self, target: Path) -> None:
        """Copy what has reached the device; nothing may reach it meanwhile, or it is copied again.

        Processes that write to it are stopped.
        """
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            before = self._stat.read_text()
            _run("cp", "--sparse=always", self.path, target)
            if self._stat.read_text() == before and self._is_idle():
                return
            assert time.monotonic() < deadline_s, "the disk never comes to rest"

    def _is_idle(self) -> bool:
        return set(self._stat.with_name("inflight").read_text().split()) == {"0"}
