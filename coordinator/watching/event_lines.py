"""A run's events as lines: what a terminal without a table, a log, the journal and ``hsee logs`` show."""

from __future__ import annotations

from collections.abc import Collection

from coordinator.fleet.events import Ended, Notice, PlanMade, RoundClosed, RunEvent, Waiting
from coordinator.store.round_report import RoundReport
from toolkit.wire.job import influence_line

BYTES_PER_MB = 1e6


def percent(share: float | None) -> str:
    """A share as text; "-" where there is none."""
    return "-" if share is None else f"{share:.1%}"


def traffic(report: RoundReport) -> str:
    """What a round's payloads came to: all that went up, and of weights what went up and down."""
    up, weights, down = (
        sum(n) / BYTES_PER_MB
        for n in zip(*((d.n_bytes, d.weights_bytes, d.lowered_bytes) for d in report.devices), strict=True)
    )
    of_weights = f", weights {weights:.2f} MB up, {down:.2f} MB down" if weights or down else ""
    return f"{up:.1f} MB up{of_weights}"


def _others(shares: Collection[float]) -> str:
    """The other exits on the same side of the cut, input first."""
    return f" ({', '.join(map(percent, shares))})" if shares else ""


def lines_of(event: RunEvent) -> list[str]:
    """Tell an event in words."""
    match event:
        case Waiting(ready=ready, expected=expected, left_s=left_s):
            joined = f" ({', '.join(ready)})" if ready else ""
            return [f"waiting: {len(ready)} of {expected} devices{joined}, {left_s:.0f} s left"]
        case PlanMade(plan=plan):
            cuts = [f"{device}: cut after {cut}: {plan.reasons[device]}" for device, cut in plan.cuts.items()]
            return [f"classes: {', '.join(plan.classes)}", influence_line(plan.influence), *cuts]
        case RoundClosed(report=report, cuts=_, rounds=rounds):
            cells = "; ".join(
                f"{d.device} exit {percent(d.exit_accuracy)}{_others(d.shallow_accuracy.values())}"
                f" server {percent(d.server_accuracy)}{_others(d.server_exit_accuracy.values())}"
                + (f" ({d.n_void} void)" if d.n_void else "")
                for d in report.devices
            )
            return [f"round {report.round}/{rounds}: {cells}; {traffic(report)}; {report.seconds:.1f} s"]
        case Notice(text=text):
            return [text]
        case Ended(status=status, detail=detail):
            return [f"{status}: {detail}"]
