"""Measure a link in a fork of this process, so that it can be limited as the emulated board is, and fail on its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from toolkit.errors import BrokerError, HseeError, MachineError
from toolkit.profile.limits import enter_limits, slowdown, sweep
from toolkit.profile.link import Link
from toolkit.profile.measure_link import LinkMeasurement, Load
from toolkit.profile.schema import Limits


class LinkOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a measurement came to: a link, a part of one and what went wrong, or only that."""

    link: Link | None = None
    failed: str = ""
    hint: str = ""

    def error(self) -> BrokerError:
        """What went wrong, to be raised."""
        return BrokerError(self.failed, hint=self.hint)


def measure_apart(
    make: Callable[[], LinkMeasurement], loads: Sequence[Load], *, limits: Limits | None
) -> LinkOutcome:
    """Run a measurement in a fork.

    Args:
        make: makes it, with a link that is not started yet; called in the fork.
        loads: what the cuts would send.
        limits: of an emulated board.
    Raises: MachineError: the fork died.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(reading)
            # Ctrl-C comes to the parent, which ends this process.
            os.setsid()
            os.write(writing, msgspec.json.encode(_outcome(make, loads, limits)))
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as pipe:
            content = pipe.read()
    except BaseException:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(pid, 0)
        sweep()
    if status:
        raise MachineError(f"The process that measures the link died (status {status}).")
    return msgspec.json.decode(content, type=LinkOutcome)


def _outcome(
    make: Callable[[], LinkMeasurement], loads: Sequence[Load], limits: Limits | None
) -> LinkOutcome:
    share = 1.0
    measurement = None
    try:
        if limits is not None:
            enter_limits(limits)
            share = 1 / slowdown(limits, threads=1)
        measurement = make()
        return LinkOutcome(link=as_wall_time(measurement.run(loads), share))
    except HseeError as exc:
        found = measurement.found() if measurement is not None else None
        part = as_wall_time(found, share) if found is not None else None
        return LinkOutcome(link=part, failed=exc.message, hint=exc.hint)


def as_wall_time(link: Link, share: float) -> Link:
    """Turn processor times into the wall time that they take on the share of a core that the board has."""
    replace = msgspec.structs.replace
    return replace(link, transfers=tuple(replace(t, send_ms=t.send_ms / share) for t in link.transfers))
