"""What the agent needs of this board: its trainer, its measurement, its limits; made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from device_agent.local_data import LocalData
from toolkit.config import Settings
from toolkit.profile.limits import enter_limits, parse_limits
from toolkit.profile.schema import profile_text
from toolkit.wire.job import Job
from toolkit.wire.messages import MeasureRequest

if TYPE_CHECKING:
    from device_agent.state import DeviceFolder
    from device_agent.trainer import Trainer


class Workbench:
    """Makes what takes torch, once a job or a measurement asks for it.

    Args:
        settings: of this process.
        device: its id.
        data: of this board.
        say: takes lines for whoever watches.
    """

    def __init__(
        self, settings: Settings, *, device: str, data: LocalData, say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._device = device
        self._data = data
        self._say = say
        self._limits = parse_limits(settings.device.emulate) if settings.device.emulate else None
        self._limited = False
        self._folder: DeviceFolder | None = None

    def make_trainer(self, job: Job) -> Trainer:
        """Make the trainer of a job; what this device saved of the run is taken up.

        Raises: RunError: another process of this device is at work in the run's folder.
        """
        from device_agent.state import DeviceFolder
        from device_agent.trainer import Trainer

        if self._folder is not None:
            self._folder.close()
        self._folder = DeviceFolder(Path(self._settings.fleet.home) / job.run / "devices" / self._device)
        trainer = Trainer(
            job,
            device=self._device,
            data=self._data,
            folder=self._folder,
            compute=self._settings.device.compute,
        )
        self._enter_limits()
        return trainer

    def measure(self, request: MeasureRequest) -> str:
        """Measure this board as the coordinator asks; returns the profile as TOML text."""
        from toolkit.profile.measure import measure

        profile = measure(
            request.model,
            batch_size=request.batch_size,
            exit_head=request.exit_head,
            limits=self._limits,
            quick=True,
            name=self._device,
        )
        return profile_text(profile)

    def write_fenced(self, detail: str) -> None:
        """Remember in the run's folder that another process took over."""
        if self._folder is not None:
            self._folder.write_fenced(detail)

    def close(self) -> None:
        """Let the run's folder go."""
        if self._folder is not None:
            self._folder.close()

    def _enter_limits(self) -> None:
        """Stand for a weaker board from here on: after torch was imported, which would take it very long."""
        if self._limits is None or self._limited:
            return
        self._limited = True
        mechanism = enter_limits(self._limits)
        text = f"{self._limits.cpu_percent:g} % of one core, {self._limits.memory_mb} MB"
        if mechanism == "factor":
            self._say(
                f"stands for a board of {text}; this machine allows no cgroup, so it runs at full speed"
            )
        else:
            self._say(f"stands for a board of {text} ({mechanism})")
