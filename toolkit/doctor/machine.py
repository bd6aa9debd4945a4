"""The machine: system, Python, disk, memory, heat, clock. Each judgement takes what was read, so that it can be tried."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import psutil

import toolkit
from toolkit.findings import Finding

MB = 1024 * 1024
NEWEST_PYTHON = (3, 14)
FEW_DISK_MB = 200
SPARSE_DISK_MB = 1024
FEW_MEMORY_MB = 150
SPARSE_MEMORY_MB = 512
"""Training fits into it at the smallest cuts; inference needs less than half."""
HOT_C = 80.0
CLOCK_SLACK_S = 86_400.0
ASK_S = 3.0
"""How long a program of the system's may take to answer."""
CARD_MB_A_DAY = 2000.0
"""On a card of 16 GB it is its whole size in eight days: cheap ones last a few hundred such rounds."""

_THROTTLED_FILES = (
    "/sys/devices/platform/soc/soc:firmware/get_throttled",
    "/sys/devices/platform/soc/firmware/get_throttled",
)
_THROTTLE_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "temperature limit"}
_HAPPENED_BITS = 16
_SYNCHRONISED = Path("/run/systemd/timesync/synchronized")


def check_machine(home: Path, *, save_every_s: float) -> list[Finding]:
    """Judge this machine.

    Args:
        home: folder of the run folders; may be missing.
        save_every_s: how often an agent saves its training.
    """
    memory = psutil.virtual_memory()
    return [
        judge_system(platform.machine(), 8 * struct.calcsize("P"), _os_name()),
        judge_python(sys.version_info[:2]),
        judge_environment(
            in_venv=sys.prefix != sys.base_prefix,
            managed=(Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").exists(),
        ),
        judge_disk(_existing(home), shutil.disk_usage(_existing(home)).free // MB),
        judge_storage(_device_of(_existing(home)), _save_mb(home), save_every_s),
        judge_memory(memory.total // MB, memory.available // MB),
        judge_heat(_hottest_c(), _throttled()),
        judge_clock(time.time(), Path(toolkit.__file__).stat().st_mtime, synchronised=_is_synchronised()),
    ]


def judge_system(machine: str, n_bits: int, os_name: str) -> Finding:
    """Judge the system: there are wheels of torch and onnxruntime for 64 bits only."""
    detail = f"{os_name}, {machine}, {n_bits} bits"
    if n_bits < 64:  # noqa: PLR2004 - bits of an address
        return Finding(
            "system",
            "failed",
            detail,
            "Install the 64-bit image of your system: torch and onnxruntime exist for 64 bits only."
            + (" The kernel is 64-bit, the programs are not." if machine in ("aarch64", "x86_64") else ""),
        )
    return Finding("system", "ok", detail)


def judge_python(version: tuple[int, int]) -> Finding:
    """Judge Python's version; one that is too old can't run this at all."""
    detail = f"{version[0]}.{version[1]}"
    if version > NEWEST_PYTHON:
        return Finding(
            "python",
            "warning",
            f"{detail} is newer than what hsee was tried with",
            f"Make a virtual environment with Python 3.11 to 3.{NEWEST_PYTHON[1]}.",
        )
    return Finding("python", "ok", detail)


def judge_environment(*, in_venv: bool, managed: bool) -> Finding:
    """Judge where packages go (PEP 668): the system's own Python is not ours to change."""
    if in_venv:
        return Finding("environment", "ok", "a virtual environment")
    if managed:
        return Finding(
            "environment",
            "warning",
            "the system's own Python, which refuses pip (externally-managed-environment, PEP 668)",
            "python3 -m venv ~/hsee-venv && ~/hsee-venv/bin/pip install 'hsee[agent]'",
        )
    return Finding("environment", "ok", "no virtual environment, and this Python does not ask for one")


def judge_disk(folder: Path, free_mb: int) -> Finding:
    """Judge the room for checkpoints and runs."""
    detail = f"{free_mb} MB free for {folder}"
    if free_mb < SPARSE_DISK_MB:
        fix = "Delete old runs, or put them on another disk: [fleet] home in hsee.toml."
        return Finding("disk", "failed" if free_mb < FEW_DISK_MB else "warning", detail, fix)
    return Finding("disk", "ok", detail)


def judge_memory(total_mb: int, available_mb: int) -> Finding:
    """Judge the memory that is there now."""
    detail = f"{available_mb} of {total_mb} MB available"
    if available_mb < FEW_MEMORY_MB:
        return Finding(
            "memory",
            "failed",
            f"{detail}; inference needs {FEW_MEMORY_MB}",
            "Stop other programs, or add swap.",
        )
    if available_mb < SPARSE_MEMORY_MB:
        return Finding(
            "memory",
            "warning",
            f"{detail}; training needs about {SPARSE_MEMORY_MB}",
            "Stop other programs, add zram swap, or use this board for inference only. hsee profile measures it.",
        )
    return Finding("memory", "ok", detail)


def judge_heat(hottest_c: float | None, throttled: int | None) -> Finding:
    """Judge heat and supply.

    Args:
        hottest_c: of all sensors; None where there is none.
        throttled: a Raspberry Pi's word: bits 0 to 3 now, 16 to 19 since the start; None elsewhere.
    """
    now = [text for bit, text in _THROTTLE_BITS.items() if throttled and throttled >> bit & 1]
    before = [
        text for bit, text in _THROTTLE_BITS.items() if throttled and throttled >> bit + _HAPPENED_BITS & 1
    ]
    detail = "" if hottest_c is None else f"{hottest_c:.0f} C"
    if now or before:
        what = f"now: {', '.join(now)}" if now else f"since the start: {', '.join(before)}"
        return Finding(
            "heat",
            "warning",
            f"{detail}, slowed down {what}".lstrip(", "),
            "Use the board's own power supply and a heat sink or fan; times measured now are not this board's.",
        )
    if hottest_c is None:
        return Finding("heat", "skipped", "this machine shows no temperature")
    if hottest_c >= HOT_C:
        return Finding(
            "heat", "warning", detail, "Add a heat sink or fan: at about 85 C boards slow themselves down."
        )
    return Finding("heat", "ok", detail)


def judge_clock(now_s: float, files_s: float, *, synchronised: bool | None) -> Finding:
    """Judge the clock: TLS needs the day to be right; hsee's own order of events does not.

    Args:
        now_s: the clock, seconds since 1970.
        files_s: when hsee's own files were written, which can't be in the future.
        synchronised: whether the system says that it has set its clock by the network; None if it does not say.
    """
    shown = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now_s))
    if now_s < files_s - CLOCK_SLACK_S:
        return Finding(
            "clock",
            "failed",
            f"{shown} is before hsee was installed here; certificates will not hold yet",
            "sudo timedatectl set-ntp true, or set it by hand: sudo date -s 'YYYY-MM-DD HH:MM'",
        )
    if synchronised is False:
        return Finding(
            "clock",
            "warning",
            f"{shown}, and the system says that the network has not set it",
            "sudo timedatectl set-ntp true; a board without a battery forgets the time at every power cut.",
        )
    how = ", set by the network" if synchronised else ""
    return Finding("clock", "ok", f"{shown}{how}")


def judge_storage(device: str, save_mb: float, every_s: float) -> Finding:
    """Judge what training would write to the disk that holds the runs.

    Args:
        device: of the file system, as the system names it.
        save_mb: of one save of this board's training; 0 where it has none yet.
        every_s: how often it saves while it trains.
    """
    a_day = save_mb * 86_400 / every_s
    wear = f"; training saves {save_mb:.1f} MB every {every_s:g} s, {a_day:.0f} MB a day" if save_mb else ""
    detail = f"{device}{wear}"
    if not device.startswith("/dev/mmcblk"):
        return Finding("storage", "ok", detail)
    if a_day > CARD_MB_A_DAY:
        return Finding(
            "storage",
            "warning",
            f"{detail}, on an SD card or eMMC, which wears out",
            "Put [fleet] home on an SSD or a USB disk, or save less often: [device] checkpoint_every_s.",
        )
    return Finding("storage", "ok", f"{detail}, an SD card or eMMC: keep a copy of what can't be lost")


def _is_synchronised() -> bool | None:
    """Whether the system has set its clock by the network, as far as it says."""
    if _SYNCHRONISED.exists():
        return True
    program = shutil.which("timedatectl")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "show", "--property=NTPSynchronized", "--value"],
            capture_output=True,
            text=True,
            check=False,
            timeout=ASK_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"yes": True, "no": False}.get(done.stdout.strip())


def _device_of(folder: Path) -> str:
    """Name the file system that a folder is on; empty where the system does not say."""
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).device if mounts else ""


def _save_mb(home: Path) -> float:
    """Size of the newest save of a training here; 0 where there is none."""
    saves = sorted(home.glob("*/devices/*/training.safetensors"), key=lambda file: file.stat().st_mtime)
    return saves[-1].stat().st_size / MB if saves else 0.0


def _os_name() -> str:
    try:
        return str(platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()))
    except OSError:
        return platform.system()


def _existing(folder: Path) -> Path:
    path = folder.resolve()
    while not path.exists():
        path = path.parent
    return path


def _hottest_c() -> float | None:
    read = getattr(psutil, "sensors_temperatures", dict)
    found = [float(sensor.current) for sensors in read().values() for sensor in sensors]
    return max((c for c in found if c > 0), default=None)


def _throttled() -> int | None:
    for name in _THROTTLED_FILES:
        try:
            return int(Path(name).read_text().strip(), 16)
        except (OSError, ValueError):
            continue
    return None
