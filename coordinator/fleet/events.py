"""What a run tells whoever watches it: typed events, no text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.fleet.planning import FleetPlan
from coordinator.store.round_report import RoundReport
from coordinator.store.run_record import Status


@dataclass(frozen=True, slots=True)
class Waiting:
    """Still gathering devices."""

    ready: tuple[str, ...]
    expected: int
    left_s: float


@dataclass(frozen=True, slots=True)
class PlanMade:
    """Every device has its cut."""

    plan: FleetPlan


@dataclass(frozen=True, slots=True)
class RoundClosed:
    """A round came to its end."""

    report: RoundReport
    cuts: Mapping[str, str]
    rounds: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that whoever watches should know, in a sentence."""

    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over."""

    status: Status
    detail: str


RunEvent = Waiting | PlanMade | RoundClosed | Notice | Ended
