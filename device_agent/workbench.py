"""What the agent needs of this board: its trainer, its measurement, its limits; made when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from device_agent.local_data import LocalData
from device_agent.saved_place import saved_place
from toolkit.config import Settings
from toolkit.errors import BrokerError, MachineError, ModelError
from toolkit.link.base import BrokerAddress, Link
from toolkit.profile.limits import enter_limits, parse_limits
from toolkit.profile.schema import parse_profile, profile_text
from toolkit.wire.job import OWN_MODEL, Job, ModelSpec
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

    def saved_place(self, run: str) -> tuple[int, int]:
        """How far what this device saved of a run has come, as (round, seq)."""
        return saved_place(self._path(run))

    def _path(self, run: str) -> Path:
        return Path(self._settings.fleet.home) / run / "devices" / self._device

    def make_trainer(self, job: Job) -> Trainer:
        """Make the trainer of a job; what this device saved of the run is taken up.

        Raises: RunError: another process of this device is at work in the run's folder. ModelError: the job names
            code that this board does not run.
        """
        self._check_allowed(job.model)
        from device_agent.state import DeviceFolder
        from device_agent.trainer import Trainer

        if self._folder is not None:
            self._folder.close()
        self._folder = DeviceFolder(self._path(job.run))
        trainer = Trainer(
            job,
            device=self._device,
            data=self._data,
            folder=self._folder,
            compute=self._settings.device.compute,
            checkpoint_every_s=self._settings.device.checkpoint_every_s,
        )
        self._enter_limits()
        return trainer

    def measure(self, request: MeasureRequest) -> str:
        """Measure this board as the coordinator asks; returns the profile as TOML text.

        Raises: ModelError: it names code that this board does not run. MachineError: no cut can be trained here.
        """
        self._check_allowed(request.model)
        from toolkit.profile.measure import measure

        profile = measure(
            request.model,
            batch_size=request.batch_size,
            exit_head=request.exit_head,
            limits=self._limits,
            quick=True,
            name=self._device,
        )
        if all(row.failed for row in profile.cuts):
            why = profile.cuts[0].failed if profile.cuts else "it has too little memory"
            raise MachineError(
                f"This board can't train {request.model.name}: {why}.",
                hint="Training needs about 512 MB. The board can still answer with an exported exit: hsee infer",
            )
        return profile_text(profile)

    def measure_link(self, text: str, link: Link, *, topic: str, address: BrokerAddress) -> str:
        """Measure the way to the broker that this board has joined by, at the sizes that its cuts would send.

        The smallest and the largest payload are enough, and short measurements: the others wait to begin.

        Args:
            text: the profile, as TOML.
            link: connected already; of it nobody else takes messages meanwhile.
            topic: of this device's own.
            address: of the broker.
        Returns: the profile with its link, or without where the broker went away; the plan then says that it is assumed.
        """
        from toolkit.profile.limits import slowdown
        from toolkit.profile.link_apart import as_wall_time
        from toolkit.profile.measure_link import QUICK_LINK, LinkMeasurement, load_of

        profile = parse_profile(text)
        rows = sorted((row for row in profile.cuts if not row.failed), key=lambda row: row.activation_bytes)
        if profile.training is None or not rows:
            return text
        loads = [load_of(row, profile.training.batch_size) for row in (rows[0], rows[-1])]
        measurement = LinkMeasurement(link, topic=topic, name=str(address), tls=address.tls, pace=QUICK_LINK)
        try:
            found = measurement.run(loads)
        except BrokerError as exc:
            self._say(f"the link is not measured, and the plan assumes one: {exc.message}")
            return text
        share = 1.0 if self._limits is None else 1 / slowdown(self._limits, threads=1)
        self._say(
            f"link: {found.up_bytes_per_s / 1e6:.3g} MB/s up, {found.down_bytes_per_s / 1e6:.3g} MB/s down, "
            f"{found.rtt_ms:.3g} ms there and back"
        )
        return profile_text(msgspec.structs.replace(profile, link=as_wall_time(found, share)))

    def write_fenced(self, detail: str) -> None:
        """Remember in the run's folder that another process took over."""
        if self._folder is not None:
            self._folder.write_fenced(detail)

    def close(self) -> None:
        """Let the run's folder go."""
        if self._folder is not None:
            self._folder.close()

    def _check_allowed(self, model: ModelSpec) -> None:
        """Whoever names a function to be called can have anything done: that is the board's owner's to allow."""
        if model.name.startswith(OWN_MODEL) and model.name not in self._settings.device.models:
            raise ModelError(
                f"The coordinator asks this board to build {model.name!r}, and its owner has not allowed that.",
                hint=f"If that code is yours: --set device.models={model.name}, or device.models in hsee.toml.",
                model=model.name,
            )

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
