"""The sentences of a plan: why a device has its cut, for people who have not read the code."""

from __future__ import annotations

from toolkit.plan.cost import CutCost
from toolkit.plan.schema import Infeasible, Limit, Neighbour


def reason(
    cost: CutCost,
    *,
    limited_by: Limit,
    round_ms: float,
    server_round_ms: float,
    barred: Infeasible | None,
    deeper: Neighbour | None,
    pinned: bool,
) -> str:
    """Say in one sentence what sets this device's pace, and what stands against a deeper cut.

    Args:
        cost: of the chosen cut.
        limited_by: what would have to improve first.
        round_ms: the fleet's round.
        server_round_ms: the server's part of it.
        barred: the next deeper cut, where the device can't take it.
        deeper: the next deeper cut that it could take.
        pinned: the cut was given, not chosen.
    """
    name = f"the {limited_by}" if limited_by in ("uplink", "server") else limited_by
    head = f"{duration(max(cost.step_ms, cost.upload_ms))} a batch, limited by {name}"
    pace = _pace(cost, limited_by, server_round_ms)
    return f"{'pinned; ' if pinned else ''}{head}: {pace}; {_outlook(round_ms, barred, deeper)}."


def duration(ms: float) -> str:
    """Write a time with the unit that suits it: "0.42 ms", "48 ms", "1.3 s"."""
    if ms >= 999.5:  # noqa: PLR2004 - rounds to a second
        return f"{ms / 1e3:.3g} s" if ms < 1e6 else f"{ms / 1e3:,.0f} s"  # noqa: PLR2004 - no exponent
    return f"{ms:.2g} ms" if ms < 9.95 else f"{ms:.0f} ms"  # noqa: PLR2004 - two digits below ten


def _pace(cost: CutCost, limited_by: Limit, server_round_ms: float) -> str:
    if limited_by == "server":
        return (
            f"the server needs {duration(server_round_ms)} a round for all devices, longer than any of them"
        )
    step, upload = duration(cost.step_ms), duration(cost.upload_ms)
    if cost.step_ms >= cost.upload_ms:
        return f"computing takes {step}, and the upload ({upload}) happens meanwhile"
    return f"the upload takes {upload}, and computing ({step}) happens meanwhile"


def _outlook(round_ms: float, barred: Infeasible | None, deeper: Neighbour | None) -> str:
    if barred is not None:
        return f"the next cut, {barred.cut}, is ruled out: {barred.detail}"
    if deeper is None:
        return "the model has no deeper cut"
    after, now = duration(deeper.round_ms), duration(round_ms)
    if deeper.round_ms > round_ms:
        return f"at the next cut, {deeper.cut}, the fleet's round would take {after} instead of {now}"
    return f"at the next cut, {deeper.cut}, the fleet's round would take {after}"
