"""What the processor took, in joules, where the system tells: Intel's and AMD's RAPL counters."""

from __future__ import annotations

from pathlib import Path

RAPL = Path("/sys/class/powercap")


class EnergyMeter:
    """Reads the counters of all processor packages, from when it is made; it counts the whole machine, not this process.

    Args:
        folder: of the counters.
    """

    def __init__(self, folder: Path = RAPL) -> None:
        # A package is intel-rapl:0; what stands below it (intel-rapl:0:1) is a part of it.
        self._packages = [path for path in sorted(folder.glob("*-rapl:*")) if path.name.count(":") == 1]
        self._began = self._read()

    def joules(self) -> float | None:
        """Joules since it was made; None where the counters are missing or only root may read them."""
        now = self._read()
        if self._began is None or now is None:
            return None
        total = 0
        for package, before, after in zip(self._packages, self._began, now, strict=True):
            # The counter begins again at zero.
            total += (
                after - before
                if after >= before
                else after + _number(package / "max_energy_range_uj") - before
            )
        return total / 1e6

    def _read(self) -> list[int] | None:
        try:
            return [_number(package / "energy_uj") for package in self._packages] or None
        except (OSError, ValueError):
            return None


def _number(path: Path) -> int:
    return int(path.read_text())
