"""Where this process stands among the kernel's control groups, version 1 and version 2; reads, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


def v1_groups(proc: Path = PROC) -> dict[str, Path]:
    """The group that this process is in, by controller."""
    mounts = {c: m for kind, m, options in _mounts(proc) if kind == "cgroup" for c in options}
    found = {}
    for line in lines_of(proc / "self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller in mounts:
                found[controller] = mounts[controller] / path.lstrip("/")
    return found


def v2_group(proc: Path = PROC) -> tuple[Path, Path] | None:
    """The group that this process is in and the root of them all; None without version 2."""
    mount = next((m for kind, m, _ in _mounts(proc) if kind == "cgroup2"), None)
    path = next(
        (p for line in lines_of(proc / "self/cgroup") for n, _, p in [line.split(":", 2)] if n == "0"), None
    )
    return None if mount is None or path is None else (mount / path.lstrip("/"), mount)


def lines_of(path: Path) -> list[str]:
    """Lines of a file of the kernel's; none where it can't be read."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _mounts(proc: Path) -> Iterator[tuple[str, Path, list[str]]]:
    for line in lines_of(proc / "self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind.startswith("cgroup"):
            yield kind, Path(before.split()[4]), options.split(",")
