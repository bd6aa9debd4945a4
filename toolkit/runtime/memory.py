"""How much memory this process may still take; asked before what would otherwise end in a kill without a word.

Nothing is imported for it: it is asked before numpy is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from toolkit.cgroups import PROC, lines_of, v1_groups, v2_group
from toolkit.errors import MachineError

MB = 2**20
START_BYTES = 20 * MB
"""Private memory of numpy and ONNX Runtime: a little less than was ever enough."""
START_ADDRESSES = 144 * MB
"""Addresses that they reserve, the same."""
LEAST_COPIES, MOST_COPIES = 2, 5
"""Of a segment's file, beside it while ONNX Runtime loads it: of int8, and of float32 that it lays out anew."""
_WORTH_A_LOOK_BYTES = 8 * MB
_FIX = "End other programs, raise the limit, or export a smaller bundle (--int8)."
_NO_MEMORY = ("failed to map segment", "annot allocate memory", "bad_alloc")
"""Words of the dynamic linker, and of numpy's about it."""


def prepare_start(*, proc: Path = PROC) -> None:
    """See that there is room for numpy and ONNX Runtime, which would not say what they lack.

    Raises: MachineError: there is not.
    """
    # Its threads would take a stack and a buffer each, and nobody multiplies matrices with numpy here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    addresses, memory = free_addresses(proc=proc), free_bytes(proc=proc)
    if addresses is not None and addresses < START_ADDRESSES:
        raise MachineError(
            f"This process may reserve {addresses // MB} MB more of address space (ulimit -v); numpy and ONNX Runtime take "
            f"about {START_ADDRESSES // MB} MB.",
            hint="Raise that limit; to bound memory, use a control group, which counts what is used.",
            free_bytes=addresses,
        )
    if memory is not None and memory < START_BYTES:
        raise MachineError(
            f"There are {memory // MB} MB of memory left for this process; numpy and ONNX Runtime take about "
            f"{START_BYTES // MB} MB before anything is loaded.",
            hint="End other programs, or raise the limit.",
            free_bytes=memory,
        )


def check_load(sizes: Sequence[int], *, where: str, say: Callable[[str], None], proc: Path = PROC) -> None:
    """See that a bundle's files can be loaded one after another.

    Args:
        sizes: bytes of each file that will run, in order.
        where: what messages call the bundle.
        say: takes a note where they may just not fit.
        proc: where the kernel describes this process.
    Raises: MachineError: they certainly do not fit.
    """
    least, most = (
        max(sum(sizes[:index]) + (1 + copies) * size for index, size in enumerate(sizes))
        for copies in (LEAST_COPIES, MOST_COPIES)
    )
    free = free_bytes(proc=proc) if most >= _WORTH_A_LOOK_BYTES else None
    if free is None or free >= most:
        return
    told = f"Loading {where} takes {least // MB} to {most // MB} MB for a moment, and there are {free // MB} MB left"
    if free < least:
        raise MachineError(f"{told}.", hint=_FIX, free_bytes=free)
    say(f"note: {told}: the system may end this process without a word.")


def error_of_import(exc: ImportError | MemoryError) -> MachineError | None:
    """What a failed import says of memory; None where it failed for another reason."""
    why = (str(exc).strip() or "no memory").splitlines()[-1].rstrip(".")
    if isinstance(exc, ImportError) and not any(word in str(exc) for word in _NO_MEMORY):
        return None
    return MachineError(
        f"There is too little memory to load what this command needs: {why}.",
        hint="End other programs, or raise the limit (ulimit -v, the control group).",
    )


def free_addresses(*, proc: Path = PROC) -> int | None:
    """Bytes of addresses left under RLIMIT_AS; None without such a limit."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return None
    taken = _kilobytes(proc / "self/status", "VmSize:")
    return None if taken is None else max(limit - taken, 0)


def free_bytes(*, proc: Path = PROC) -> int | None:
    """Bytes of memory left on this machine and in this process's control groups; None where nobody tells."""
    available = _kilobytes(proc / "meminfo", "MemAvailable:")
    swap = _kilobytes(proc / "meminfo", "SwapFree:") or 0
    rooms = [] if available is None else [available + swap]
    rooms += [room + swap for room in _group_rooms(proc)]
    return min(rooms, default=None)


def _group_rooms(proc: Path) -> Iterator[int]:
    """What each group around this process has left; pages of files that nobody uses now count as left."""
    v1, v2 = v1_groups(proc).get("memory"), v2_group(proc)
    if v1 is not None:
        for group in (v1, *v1.parents):
            limit = _number(group / "memory.limit_in_bytes")
            if limit is None:
                break
            if limit < sys.maxsize // 2:
                stat = group / "memory.stat"
                files = sum(_value(stat, key) or 0 for key in ("total_inactive_file", "total_active_file"))
                yield max(limit - (_number(group / "memory.usage_in_bytes") or 0) + files, 0)
    if v2 is not None:
        own, mount = v2
        for group in (own, *own.parents):
            limit = _number(group / "memory.max")
            if limit is not None:
                files = sum(
                    _value(group / "memory.stat", key) or 0 for key in ("inactive_file", "active_file")
                )
                yield max(limit - (_number(group / "memory.current") or 0) + files, 0)
            if group == mount:
                break


def _kilobytes(path: Path, key: str) -> int | None:
    value = _value(path, key)
    return None if value is None else 1024 * value


def _value(path: Path, key: str) -> int | None:
    """The number behind a word at a line's beginning."""
    for line in lines_of(path):
        words = line.split()
        if words[:1] == [key] and len(words) > 1 and words[1].isdecimal():
            return int(words[1])
    return None


def _number(path: Path) -> int | None:
    words = lines_of(path)[:1]
    return int(words[0]) if words and words[0].strip().isdecimal() else None
