"""What this machine is: processor, cores, memory."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from toolkit.profile.schema import BYTES_PER_MB, Board, Limits

MODEL_KEYS = ("model name", "Model", "Hardware", "cpu model")


def read_board(limits: Limits | None = None) -> Board:
    """Describe this machine, or the board that ``limits`` make of it."""
    memory_bytes = int(psutil.virtual_memory().total)
    n_cores = len(os.sched_getaffinity(0))
    if limits is not None:
        memory_bytes = min(memory_bytes, limits.memory_mb * BYTES_PER_MB)
        n_cores = min(n_cores, max(1, -int(-limits.cpu_percent // 100)))
    return Board(
        cpu=_cpu_name(),
        architecture=platform.machine() or "unknown",
        n_cores=n_cores,
        memory_bytes=memory_bytes,
        hardware="" if limits else _hardware_name(),
    )


def machine_name() -> str:
    """Name the machine's class, not the machine: processor, cores, kernel."""
    n_cores = len(os.sched_getaffinity(0))
    return f"{_hardware_name() or _cpu_name()}, {n_cores} cores, {platform.system()} {platform.release()}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = {key.strip(): value.strip() for key, colon, value in (s.partition(":") for s in lines) if colon}
    name = next((found[key] for key in MODEL_KEYS if found.get(key)), "")
    return (name or platform.processor() or platform.machine() or "unknown")[:256]


def _hardware_name() -> str:
    """Read the name that a board's device tree gives it: "Raspberry Pi 4 Model B Rev 1.4"."""
    try:
        return Path("/proc/device-tree/model").read_text().strip("\0\n ")[:256]
    except (OSError, UnicodeDecodeError):
        return ""
