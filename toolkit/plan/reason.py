"""The sentences of a plan: why a device has its cut, for people who have not read the code."""

from __future__ import annotations

from toolkit.plan.cost import CutCost, Objective
from toolkit.plan.schema import Infeasible, Limit, Neighbour


def reason(
    cost: CutCost,
    *,
    objective: Objective,
    limited_by: Limit,
    round_ms: float,
    server_round_ms: float,
    barred: Infeasible | None,
    deeper: Neighbour | None,
    pinned: bool,
    estimated: bool,
    partial: bool,
) -> str:
    """Say in one sentence what sets this device's pace, and what stands against a deeper cut.

    Args:
        cost: of the chosen cut.
        objective: of the plan.
        limited_by: what would have to improve first.
        round_ms: the fleet's round.
        server_round_ms: the server's part of it.
        barred: the next deeper cut, where the device can't take it.
        deeper: the next deeper cut that it could take.
        pinned: the cut was given, not chosen.
        estimated: the cut's times lie between those of cuts that were measured.
        partial: measuring was stopped before the last cut.
    """
    name = f"the {limited_by}" if limited_by in ("uplink", "server") else limited_by
    head = f"{duration(max(cost.compute_ms, cost.upload_ms))} a batch, limited by {name}"
    pace = _pace(cost, limited_by, server_round_ms)
    if barred is not None:
        outlook = f"the next cut, {barred.cut}, is ruled out: {barred.detail}"
    elif deeper is None:
        outlook = (
            "the profile is partial: a deeper cut, if the model has one, was not measured"
            if partial
            else "the model has no deeper cut"
        )
    elif objective == "makespan":
        outlook = f"at the next cut, {deeper.cut}, {_longer_round(round_ms, deeper.round_ms)}"
    else:
        outlook = f"at the next cut, {deeper.cut}, {_dearer(objective, cost, deeper)}"
    marks = f"{'pinned; ' if pinned else ''}{'estimated, not measured; ' if estimated else ''}"
    return f"{marks}{head}: {pace}; {outlook}."


def size(n_bytes: float) -> str:
    """Write a number of bytes with the unit that suits it: "0.5 KB", "130 KB", "12 MB"; a KB is 2**10 bytes."""
    for unit in ("KB", "MB", "GB"):
        n_bytes /= 1024
        if n_bytes < 1000 or unit == "GB":  # noqa: PLR2004 - four digits are too many
            break
    return f"{n_bytes:.2g} {unit}" if n_bytes < 9.95 else f"{n_bytes:,.0f} {unit}"  # noqa: PLR2004 - two digits below ten


def duration(ms: float) -> str:
    """Write a time with the unit that suits it: "0.42 ms", "48 ms", "1.3 s"."""
    if ms >= 999.5:  # noqa: PLR2004 - rounds to a second
        return f"{ms / 1e3:.3g} s" if ms < 1e6 else f"{ms / 1e3:,.0f} s"  # noqa: PLR2004 - no exponent
    return f"{ms:.2g} ms" if ms < 9.95 else f"{ms:.0f} ms"  # noqa: PLR2004 - two digits below ten


def _pace(cost: CutCost, limited_by: Limit, server_round_ms: float) -> str:
    step, upload = duration(cost.compute_ms), duration(cost.upload_ms)
    own = (
        f"computing takes {step}, and the upload ({upload}) happens meanwhile"
        if cost.compute_ms >= cost.upload_ms
        else f"the upload takes {upload}, and computing ({step}) happens meanwhile"
    )
    if limited_by != "server":
        return own
    return f"{own}; but the server needs {duration(server_round_ms)} a round for all devices, longer than any of them"


def _longer_round(now_ms: float, then_ms: float) -> str:
    instead = f" instead of {duration(now_ms)}" if then_ms > now_ms else ""
    return f"the fleet's round would take {duration(then_ms)}{instead}"


def _dearer(objective: Objective, cost: CutCost, deeper: Neighbour) -> str:
    if objective == "bytes":
        return f"it would send {size(deeper.round_bytes)} a round instead of {size(cost.round_bytes)}"
    now = duration(cost.round_compute_ms)
    return f"it would compute {duration(deeper.device_time_ms)} a round instead of {now}"
