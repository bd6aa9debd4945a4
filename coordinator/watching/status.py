"""How a run stands, as ``hsee status`` shows it and the local socket tells it; light, for whoever reads it."""

from __future__ import annotations

from typing import Literal

import msgspec

from coordinator.store.run_record import Status

DeviceState = Literal["online", "silent", "offline", "left", "unknown"]
"""Connected and heard lately; connected, but not heard for long; its last will came, or it was never here; it said
goodbye; or nobody is there who would know."""
GOOD: frozenset[DeviceState] = frozenset({"online", "left"})


class DeviceStatus(msgspec.Struct, kw_only=True):
    """One device. What is not known has its default.

    Attributes:
        last_seen_s: seconds since anything of it was heard.
        phase: of its session, as it says itself.
        n_done: items of its list in the open round that are here; of ``n_owed``.
        excused: why the open round does not wait for it.
        exit_accuracy: of its last finished round, on its own held-out samples; ``server_accuracy`` likewise, of the route
            through the server.
        uptime_s: of its process.
    """

    device: str
    state: DeviceState = "unknown"
    last_seen_s: float | None = None
    phase: str = ""
    cut: str = ""
    n_done: int = 0
    n_owed: int = 0
    excused: str = ""
    exit_accuracy: float | None = None
    server_accuracy: float | None = None
    temperature_c: float | None = None
    throttled: list[str] = []
    memory_bytes: int | None = None
    free_memory_bytes: int | None = None
    load: float | None = None
    software: str = ""
    uptime_s: float | None = None
    n_refused: int = 0
    last_error: str = ""


class RunStatus(msgspec.Struct, kw_only=True):
    """One run.

    Attributes:
        is_live: whether its coordinator runs and told this itself; else it is what the run folder holds.
        is_connected: whether its coordinator is connected to the broker.
        round: the open one, of ``rounds``; the last closed one where none is open.
        round_s: seconds since it opened.
        n_ready: while gathering, devices that could be planned with, of ``n_expected``; others still measure.
        left_s: while gathering, seconds until the run gives up.
        n_refused: messages that broke the protocol.
    """

    schema: int = 1
    run: str
    folder: str
    is_live: bool
    status: Status
    detail: str = ""
    fleet: str = ""
    broker: str = ""
    is_connected: bool = False
    term: int = 0
    started: str = ""
    round: int = 0
    rounds: int = 0
    round_s: float | None = None
    n_expected: int = 0
    n_ready: int = 0
    left_s: float | None = None
    n_refused: int = 0
    devices: list[DeviceStatus] = []

    @property
    def is_good(self) -> bool:
        """Whether nothing needs a person."""
        if not self.is_live:
            return self.status in ("finished", "stopped")
        return self.is_connected and all(device.state in GOOD for device in self.devices)
