"""What is known of every device of a run: sessions, the open round, telemetry; and the devices' log lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.beside.service import Service
from coordinator.watching.log_ring import LogRing
from coordinator.watching.status import DeviceState, DeviceStatus
from toolkit.wire.seats import Seat, SeatPhase
from toolkit.wire.session import DevicePhase
from toolkit.wire.telemetry import Telemetry, read_log_lines, read_telemetry
from toolkit.wire.topics import Topics

if TYPE_CHECKING:
    from coordinator.rounds.underway import Underway
    from coordinator.store.round_report import RoundReport

SILENT_S = 60.0
"""Connected, but not heard for so long, a device is shown as silent: four reports are missing."""
MAX_DEVICES = 2048
"""Devices whose telemetry is kept; further ones are not shown."""


PHASES: dict[SeatPhase, str] = {
    SeatPhase.ABSENT: "",
    SeatPhase.MEASURING: DevicePhase.MEASURING,
    SeatPhase.READY: DevicePhase.JOINED,
    SeatPhase.ACTIVE: DevicePhase.TRAINING,
}
"""What a device's phase must be, by where its seat stands, until it says itself."""


@dataclass(slots=True)
class Report:
    """The last telemetry of a device, and when something of it was last heard (monotonic, seconds)."""

    heard_at: float
    telemetry: Telemetry | None = None
    n_dropped: int = 0


class FleetView(Service):
    """Takes telemetry and log lines; says how each device stands.

    Args:
        topics: of the fleet.
        log: takes the devices' lines.
        clock: monotonic seconds.
    """

    def __init__(self, topics: Topics, log: LogRing, *, clock: Callable[[], float]) -> None:
        self._topics = topics
        self._log = log
        self._clock = clock
        self._filters = (topics.device_telemetry("+"), topics.device_log("+"))
        self._reports: dict[str, Report] = {}
        self._accuracies: dict[str, tuple[float | None, float | None]] = {}
        self._underway: Underway | None = None

    @property
    def filters(self) -> Sequence[str]:
        """See :class:`Service`."""
        return self._filters

    def begin(self, underway: Underway) -> None:
        """See :class:`Service`."""
        self._underway = underway

    def take(self, topic: str, payload: bytes) -> None:
        """See :class:`Service`."""
        if topic.endswith("/telemetry"):
            device = self._topics.device_of(topic, leaf="telemetry")
            telemetry = read_telemetry(payload)
            report = self._report(device)
            if report is not None:
                report.telemetry = telemetry
            return
        device = self._topics.device_of(topic, leaf="log")
        told = read_log_lines(payload)
        report = self._report(device)
        if report is None:
            return
        if told.n_dropped > report.n_dropped:
            n = told.n_dropped - report.n_dropped
            self._log.add(f"{n} lines of {device} were left out", "warning", device=device)
        report.n_dropped = told.n_dropped
        for line in told.lines:
            self._log.add(line.text, line.level, device=device)

    def round_closed(self, report: RoundReport) -> None:
        """Take note of what a round came to."""
        for device in report.devices:
            if device.n_eval:
                self._accuracies[device.device] = (device.exit_accuracy, device.server_accuracy)

    @property
    def round(self) -> tuple[int, int, float] | None:
        """The open round, of how many, and for how many seconds; None before the first."""
        if self._underway is None:
            return None
        loop = self._underway.loop
        return loop.round, self._underway.state.common.rounds, self._clock() - loop.opened_at

    def devices(self, seats: Mapping[str, Seat]) -> list[DeviceStatus]:
        """Say how every device stands, by device id."""
        of_plan = self._underway.state.jobs if self._underway is not None else {}
        return [self._device(name, seats.get(name)) for name in sorted({*of_plan, *seats, *self._reports})]

    def _device(self, device: str, seat: Seat | None) -> DeviceStatus:
        report = self._reports.get(device)
        told = report.telemetry if report is not None else None
        heard = [seat.last_heard] if seat is not None and seat.last_heard else []
        heard += [report.heard_at] if report is not None else []
        age_s = max(0.0, self._clock() - max(heard)) if heard else None
        exit_accuracy, server_accuracy = self._accuracies.get(device, (None, None))
        status = DeviceStatus(
            device=device,
            state=_state(seat, age_s),
            last_seen_s=None if age_s is None else round(age_s, 1),
            phase=PHASES[seat.phase] if seat is not None else "",
            exit_accuracy=exit_accuracy,
            server_accuracy=server_accuracy,
            software=seat.hello.software if seat is not None and seat.hello is not None else "",
        )
        if self._underway is not None and device in self._underway.state.jobs:
            status.cut = self._underway.state.jobs[device].cut
            held = self._underway.loop.devices.get(device)
            if held is not None:
                status.n_done, status.n_owed, status.excused = held.next - 1, held.n_owed, held.excused
        if told is not None:
            _add_telemetry(status, told)
        return status

    def _report(self, device: str) -> Report | None:
        report = self._reports.get(device)
        if report is None:
            if len(self._reports) >= MAX_DEVICES:
                return None
            report = self._reports[device] = Report(self._clock())
        report.heard_at = self._clock()
        return report


def _state(seat: Seat | None, age_s: float | None) -> DeviceState:
    if seat is not None and seat.left:
        return "left"
    if age_s is None or (seat is not None and seat.hello is not None and not seat.connected):
        return "offline"
    # One without a hello here is of another run, or was refused; its telemetry says that it is up.
    return "silent" if age_s > SILENT_S else "online"


def _add_telemetry(status: DeviceStatus, told: Telemetry) -> None:
    status.phase = told.phase
    if told.exit_accuracy is not None:
        status.exit_accuracy = told.exit_accuracy
    status.temperature_c, status.throttled = told.temperature_c, list(told.throttled)
    status.memory_bytes, status.free_memory_bytes, status.load = (
        told.memory_bytes,
        told.free_memory_bytes,
        told.load,
    )
    status.software, status.uptime_s = told.software, told.uptime_s
    status.n_refused, status.last_error = told.n_refused, told.last_error
