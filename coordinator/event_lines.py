"""A run's events as lines: what a terminal without a table, a log, the journal and ``hsee logs`` show."""

from __future__ import annotations

from coordinator.events import Ended, Notice, PlanMade, RoundClosed, RunEvent, Waiting

BYTES_PER_MB = 1e6


def percent(share: float | None) -> str:
    """A share as text; "-" where there is none."""
    return "-" if share is None else f"{share:.1%}"


def lines_of(event: RunEvent) -> list[str]:
    """Tell an event in words."""
    match event:
        case Waiting(ready=ready, expected=expected, left_s=left_s):
            joined = f" ({', '.join(ready)})" if ready else ""
            return [f"waiting: {len(ready)} of {expected} devices{joined}, {left_s:.0f} s left"]
        case PlanMade(plan=plan):
            cuts = [f"{device}: cut after {cut}: {plan.reasons[device]}" for device, cut in plan.cuts.items()]
            return [f"classes: {', '.join(plan.classes)}", *cuts]
        case RoundClosed(report=report, cuts=_, rounds=rounds):
            cells = "; ".join(
                f"{d.device} exit {percent(d.exit_accuracy)} server {percent(d.server_accuracy)}"
                + (f" ({d.n_void} void)" if d.n_void else "")
                for d in report.devices
            )
            mb = sum(d.n_bytes for d in report.devices) / BYTES_PER_MB
            return [f"round {report.round}/{rounds}: {cells}; {mb:.1f} MB up; {report.seconds:.1f} s"]
        case Notice(text=text):
            return [text]
        case Ended(status=status, detail=detail):
            return [f"{status}: {detail}"]
