"""What the whole board draws, where it carries a sensor that says so: an INA219, or the INA3221 of a Jetson.

tegrastats prints what the same sensor says. A sensor tells power, not energy: it is asked again and again while the board
is measured.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SENSORS = frozenset({"ina209", "ina219", "ina220", "ina226", "ina230", "ina231", "ina238", "ina3221"})
SUPPLY_LABELS = frozenset({"VDD_IN", "POM_5V_IN"})
"""The channel of a Jetson's sensor that feeds the whole board; its others are parts of it."""
EVERY_S = 0.2


class BoardPower:
    """Adds up what a board draws, from now until it is closed.

    Args:
        root: of the file system.
        clock: monotonic seconds.
        every_s: how often the sensor is asked; 0 leaves that to the caller of :meth:`sample`.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = EVERY_S,
    ) -> None:
        self._root = root
        self._clock = clock
        self._lock = threading.Lock()
        self._energy_j = 0.0
        self._last: tuple[float, float] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.sample()
        if self.energy_j is not None and every_s:
            self._thread = threading.Thread(target=self._run, args=(every_s,), daemon=True)
            self._thread.start()

    @property
    def energy_j(self) -> float | None:
        """Joules so far; None where no sensor tells."""
        with self._lock:
            return None if self._last is None else self._energy_j

    def sample(self) -> None:
        """Ask the sensor once, and add what was drawn since it was asked last."""
        watts, now = self._watts(), self._clock()
        if watts is None:
            return
        with self._lock:
            if self._last is not None:
                before_s, before_w = self._last
                self._energy_j += (now - before_s) * (watts + before_w) / 2
            self._last = (now, watts)

    def close(self) -> None:
        """Ask no more. May be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            self.sample()

    def _watts(self) -> float | None:
        """What the first sensor that tells says."""
        for place in sorted(self._root.glob("sys/class/hwmon/hwmon*")):
            if self._text(place / "name") in SENSORS:
                watts = self._of_sensor(place)
                if watts is not None:
                    return watts
        return None

    def _of_sensor(self, place: Path) -> float | None:
        microwatts = self._number(place / "power1_input")
        if microwatts is not None:
            return microwatts / 1e6
        for label in sorted(place.glob("in*_label")):
            if self._text(label) in SUPPLY_LABELS:
                channel = label.name.removeprefix("in").removesuffix("_label")
                millivolts = self._number(place / f"in{channel}_input")
                milliamps = self._number(place / f"curr{channel}_input")
                if millivolts is not None and milliamps is not None:
                    return millivolts * milliamps / 1e6
        return None

    @staticmethod
    def _number(path: Path) -> float | None:
        try:
            return float(path.read_text())
        except (OSError, ValueError):
            return None

    @staticmethod
    def _text(path: Path) -> str:
        with suppress(OSError, UnicodeDecodeError):
            return path.read_text().strip()
        return ""
