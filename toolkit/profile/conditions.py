"""What state the board is in: memory, clock, temperature, throttling, power, energy; read, never guessed.

Every reading is optional: what the system does not tell stays out of the profile.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from toolkit.profile.power import BoardPower
from toolkit.profile.schema import BYTES_PER_MB, Conditions, Limits
from toolkit.runtime.energy import EnergyMeter

FEATURES = frozenset(
    {
        *(
            "avx",
            "avx2",
            "avx512f",
            "avx512_vnni",
            "avx_vnni",
            "avx512_bf16",
            "amx_int8",
            "amx_bf16",
            "fma",
            "f16c",
        ),
        *("neon", "asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16", "fphp"),
    }
)
"""The CPU features that ML kernels choose by."""
PI_THROTTLE = Path("sys/devices/platform/soc/soc:firmware/get_throttled")
PI_REASONS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}
RAPL = "sys/class/powercap"


@dataclass
class ConditionReader:
    """Reads the board before and after a measurement.

    Attributes:
        limits: of an emulated board; what the host alone could tell is left out then.
        root: of the file system.
    """

    limits: Limits | None = None
    root: Path = field(default=Path("/"))

    def __post_init__(self) -> None:
        self._began_s = time.monotonic()
        # Neither is an emulated board's: the host would be told.
        self._processor_meter = EnergyMeter(self.root / RAPL) if self.limits is None else None
        self._power_meter = BoardPower(self.root) if self.limits is None else None
        self._events = self._throttle_events()
        self._before = self._now()

    def conditions(self, *, copy_bytes_per_s: float | None) -> Conditions:
        """Describe the board over the time since this reader was made."""
        after = self._now()
        energy_j = board_energy_j = None
        if self._processor_meter is not None:
            energy_j = self._processor_meter.joules()
        if self._power_meter is not None:
            self._power_meter.sample()
            board_energy_j = self._power_meter.energy_j
        is_told = energy_j is not None or board_energy_j is not None
        return msgspec.structs.replace(
            self._before,
            copy_bytes_per_s=copy_bytes_per_s,
            clock_mhz_after=after.clock_mhz_before,
            temperature_c_after=after.temperature_c_before,
            throttle=tuple(sorted({*self._before.throttle, *after.throttle, *self._new_events()})),
            energy_j=None if energy_j is None else round(energy_j, 2),
            board_energy_j=None if board_energy_j is None else round(board_energy_j, 2),
            energy_s=round(time.monotonic() - self._began_s, 1) if is_told else None,
        )

    def close(self) -> None:
        """Watch no more."""
        if self._power_meter is not None:
            self._power_meter.close()

    def _now(self) -> Conditions:
        free_mb = psutil.virtual_memory().available / BYTES_PER_MB
        if self.limits is not None:
            free_mb = min(free_mb, float(self.limits.memory_mb))
        return Conditions(
            free_memory_mb=round(free_mb, 1),
            swap_mb=round(psutil.swap_memory().total / BYTES_PER_MB, 1) if self.limits is None else None,
            cpu_features=self._features(),
            clock_mhz_before=self._clock_mhz(),
            temperature_c_before=self._temperature_c(),
            throttle=self._pi_throttle(),
            power=self._power(),
        )

    def _features(self) -> tuple[str, ...]:
        for line in self._text("proc/cpuinfo").splitlines():
            name, _, words = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return tuple(sorted(FEATURES & set(words.split())))
        return ()

    def _clock_mhz(self) -> float | None:
        khz = self._number("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
        return None if khz is None else round(khz / 1e3, 1)

    def _temperature_c(self) -> float | None:
        """The hottest zone: boards name them as they like."""
        found = [
            self._number(str(path.relative_to(self.root)))
            for path in self.root.glob("sys/class/thermal/thermal_zone*/temp")
        ]
        known = [millidegrees / 1e3 for millidegrees in found if millidegrees is not None]
        return round(max(known), 1) if known else None

    def _pi_throttle(self) -> tuple[str, ...]:
        """What a Raspberry Pi's firmware says of this moment: the low four bits of its word."""
        with suppress(ValueError):
            word = int(self._text(str(PI_THROTTLE)) or "0", 16)
            return tuple(reason for bit, reason in PI_REASONS.items() if word >> bit & 1)
        return ()

    def _throttle_events(self) -> float:
        """How often x86 cores were held back for heat, since they started."""
        pattern = "sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count"
        counts = [self._number(str(path.relative_to(self.root))) for path in self.root.glob(pattern)]
        return sum(count for count in counts if count is not None)

    def _new_events(self) -> tuple[str, ...]:
        return ("held back for heat",) if self._throttle_events() > self._events else ()

    def _power(self) -> Literal["mains", "battery", ""]:
        """Mains or battery, where a supply says that it feeds the board."""
        supplies = {
            self._text(f"{path.relative_to(self.root)}/type"): path
            for path in self.root.glob("sys/class/power_supply/*")
        }
        for kind, path in supplies.items():
            if kind in ("Mains", "USB") and self._text(f"{path.relative_to(self.root)}/online") == "1":
                return "mains"
        battery = supplies.get("Battery")
        if battery is not None and self._text(f"{battery.relative_to(self.root)}/status") == "Discharging":
            return "battery"
        return ""

    def _number(self, name: str) -> float | None:
        try:
            return float(self._text(name))
        except ValueError:
            return None

    def _text(self, name: str) -> str:
        try:
            return (self.root / name).read_text().strip("\0\n ")
        except (OSError, UnicodeDecodeError):
            return ""
