"""Make this process as slow and as small as a board: a cgroup of its own, or a declared factor.

Version 1 and version 2 of cgroups are tried; a group is made only below the group that the process is in (version 2:
or beside it, where the parent hands its controllers down), so limits set from outside keep holding.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from pathlib import Path

from toolkit.cgroups import PROC, lines_of, v1_groups, v2_group
from toolkit.errors import UsageError
from toolkit.profile.schema import BYTES_PER_MB, Limits, Mechanism

PERIOD_US = 10_000
"""Short, so that a step of a few milliseconds is slowed like a long one; the kernel's default is ten times as long."""
MIN_QUOTA_US = 1_000
GROUP_PREFIX = "hsee-"


def parse_limits(text: str) -> Limits:
    """Read limits as a user writes them: ``25%,512`` is a quarter of one core and 512 MB.

    Raises: UsageError: it is not of that form, or a number is out of range.
    """
    cpu, comma, memory = text.partition(",")
    try:
        limits = Limits(cpu_percent=float(cpu.strip().removesuffix("%")), memory_mb=int(memory.strip()))
    except ValueError:
        limits = None
    if not comma or limits is None or not 1 <= limits.cpu_percent <= 100_000 or limits.memory_mb < 1:  # noqa: PLR2004 - percent
        raise UsageError(
            f"Limits are written CPU%,MB with CPU from 1 and MB from 1, not {text!r}.",
            hint="A quarter of one core and 512 MB: 25%,512",
        )
    return limits


def slowdown(limits: Limits, *, threads: int) -> float:
    """What measured times are multiplied by where no cgroup slows the process.

    Args:
        limits: percent of one core.
        threads: that the process computes with.
    Returns: at least 1.
    """
    return max(1.0, 100.0 * threads / limits.cpu_percent)


def enter_limits(limits: Limits, *, proc: Path = PROC) -> Mechanism:
    """Put this process into a group of its own with these limits, until it exits. Enter after heavy imports.

    What the process holds already counts: the group may take the limit less today's resident memory, because
    a page stays charged to the group that first touched it.

    Args:
        limits: of CPU time and memory.
        proc: where the kernel describes this process.
    Returns: what enforces the limits; with ``factor`` nothing does, and the caller multiplies measured times by
        :func:`slowdown`.
    """
    sweep(proc=proc)
    room_bytes = max(limits.memory_mb * BYTES_PER_MB - resident_bytes(proc=proc), BYTES_PER_MB)
    ways: tuple[tuple[Mechanism, list[dict[Path, dict[str, int | str]]]], ...] = (
        ("cgroup-v1", _v1_settings(limits, room_bytes, proc)),
        ("cgroup-v2", _v2_settings(limits, room_bytes, proc)),
    )
    for mechanism, candidates in ways:
        for settings in candidates:
            if _enter(settings):
                return mechanism
    return "factor"


def resident_bytes(*, peak: bool = False, proc: Path = PROC) -> int:
    """Resident memory of this process, or its greatest since :func:`reset_peak`, in bytes.

    Not ``ru_maxrss``: that one is inherited, so a child started by a large process would report its parent.
    """
    key = "VmHWM:" if peak else "VmRSS:"
    for line in (proc / "self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak(*, proc: Path = PROC) -> None:
    """Let the peak of resident memory start again at what is resident now, where the kernel allows it."""
    with contextlib.suppress(OSError):
        (proc / "self/clear_refs").write_text("5")


def sweep(*, proc: Path = PROC) -> None:
    """Remove the groups that processes left behind which died before they could: by ``kill -9``, say."""
    for parent in {p for way in (_v1_parents(proc).values(), _v2_parents(proc)) for p in way}:
        for group in parent.glob(f"{GROUP_PREFIX}*"):
            pid = group.name.removeprefix(GROUP_PREFIX)
            if pid == str(os.getpid()) or not (proc / pid).exists():
                # Refused while a process is in it, of another container's numbering perhaps: then it is not ours.
                with contextlib.suppress(OSError):
                    group.rmdir()


def _enter(settings: dict[Path, dict[str, int | str]]) -> bool:
    """Make the groups, set their limits and move in; whatever fails, nothing is left behind."""
    with contextlib.ExitStack() as undo:
        try:
            for group in settings:
                group.mkdir()
                undo.callback(_leave, group)
            for group, values in settings.items():
                for name, value in values.items():
                    (group / name).write_text(str(value))
            for group in settings:
                (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            return False
        # A forked child inherits the handler but not the right to take its parent's group down.
        owner, leave = os.getpid(), undo.pop_all()
        atexit.register(lambda: leave.close() if os.getpid() == owner else None)
    return True


def _leave(group: Path) -> None:
    with contextlib.suppress(OSError):
        if str(os.getpid()) in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(str(os.getpid()))
    # Refused where a child still runs in the group, or we could not leave: it is swept at the next use.
    with contextlib.suppress(OSError):
        group.rmdir()


def _v1_settings(limits: Limits, room_bytes: int, proc: Path) -> list[dict[Path, dict[str, int | str]]]:
    parents = _v1_parents(proc)
    if {"cpu", "memory"} - set(parents):
        return []
    period_us, quota_us = _quota(limits)
    cpu: dict[str, int | str] = {"cpu.cfs_period_us": period_us, "cpu.cfs_quota_us": quota_us}
    memory: dict[str, int | str] = {"memory.limit_in_bytes": room_bytes}
    name = f"{GROUP_PREFIX}{os.getpid()}"
    cpu_group, memory_group = parents["cpu"] / name, parents["memory"] / name
    return [
        {cpu_group: {**cpu, **memory}}
        if cpu_group == memory_group
        else {cpu_group: cpu, memory_group: memory}
    ]


def _v2_settings(limits: Limits, room_bytes: int, proc: Path) -> list[dict[Path, dict[str, int | str]]]:
    period_us, quota_us = _quota(limits)
    values: dict[str, int | str] = {"cpu.max": f"{quota_us} {period_us}", "memory.max": room_bytes}
    return [{parent / f"{GROUP_PREFIX}{os.getpid()}": values} for parent in _v2_parents(proc)]


def _quota(limits: Limits) -> tuple[int, int]:
    period_us = max(PERIOD_US, round(MIN_QUOTA_US * 100 / limits.cpu_percent))
    return period_us, round(period_us * limits.cpu_percent / 100)


def _v1_parents(proc: Path) -> dict[str, Path]:
    """Where a group may be made, by controller: the group this process is in."""
    return {c: group for c, group in v1_groups(proc).items() if c in ("cpu", "memory")}


def _v2_parents(proc: Path) -> list[Path]:
    """Where a group may be made that has CPU and memory limits: below this process's group, or beside it."""
    found = v2_group(proc)
    if found is None:
        return []
    own, mount = found
    candidates = [own] if own == mount else [own, own.parent]
    return [
        p
        for p in candidates
        if {"cpu", "memory"} <= set(" ".join(lines_of(p / "cgroup.subtree_control")).split())
    ]
