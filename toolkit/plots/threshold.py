"""The threshold curve: what is gained and what is lost where the exits answer what they are sure of."""

from __future__ import annotations

from collections.abc import Sequence

from toolkit.plots.style import (
    ACCENT,
    INK,
    MUTED,
    Axes,
    Figure,
    cut_colours,
    floor_of,
    headline,
    new_figure,
    percent_axis,
)
from toolkit.simulate.results import CutInference, InferencePoint

_EXITS, _BYTES, _MACS = INK, "#7b6fb0", "#b08968"


def draw_threshold(curves: Sequence[CutInference], cuts: Sequence[str], name: str) -> Figure:
    """Draw accuracy above, and below the share that leaves early, bytes and compute, against the threshold.

    Args:
        curves: of one run, a column each.
        cuts: shallow ones first.
        name: of the run.
    """
    ordered = sorted(curves, key=lambda curve: cuts.index(curve.cut))
    figure = new_figure(1.2 + 3.5 * len(ordered), 6.2)
    axes = figure.subplots(2, len(ordered), squeeze=False, sharex=True, sharey="row", height_ratios=[1.15, 1])
    colours = cut_colours(cuts)
    for column, curve in enumerate(ordered):
        _draw_accuracy(axes[0][column], curve, colours[curve.cut])
        _draw_costs(axes[1][column], curve)
        axes[1][column].set_xlabel("threshold on normalised entropy")
    axes[0][0].set_ylim(_floor(ordered), 1.03)
    axes[0][0].set_ylabel("accuracy of all answers")
    axes[1][0].set_ylabel("share of samples, bytes, MACs")
    handles = _handles(ordered)
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles) if len(ordered) > 2 else 3)  # noqa: PLR2004 - columns that fit
    headline(
        figure,
        "Leaving early",
        f"{name}: a sample whose exit is surer than the threshold is answered by it, the others by the server; "
        f"thresholds chosen to lose at most {_points(ordered[0].target_drop)}, with 95 % confidence",
    )
    return figure


def _shown(curve: CutInference) -> Sequence[InferencePoint]:
    return curve.test or curve.held_out


def _floor(curves: Sequence[CutInference]) -> float:
    return floor_of(
        point.accuracy for curve in curves for points in (curve.test, curve.held_out) for point in points
    )


def _points(n: float) -> str:
    return f"{n:g} point{'' if n == 1 else 's'}"


def _draw_accuracy(axes: Axes, curve: CutInference, colour: str) -> None:
    points = _shown(curve)
    thresholds = [point.threshold for point in points]
    if curve.test:
        held_out = [point.accuracy for point in curve.held_out]
        axes.plot(thresholds, held_out, color=MUTED, linewidth=1.2, linestyle=(0, (1, 1.4)))
    axes.plot(thresholds, [point.accuracy for point in points], color=colour, linewidth=2.4)
    axes.set_title(f"cut after {curve.cut}", color=colour)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xlim(thresholds[0], 1.15)
    percent_axis(axes.yaxis)
    _mark_chosen(axes, curve)
    if curve.chosen is None:
        told = f"no threshold: {curve.why_none}"
        axes.text(0.03, 0.05, told, transform=axes.transAxes, color=ACCENT, fontsize=8.5)
        return
    point = points[curve.chosen]
    axes.plot(point.threshold, point.accuracy, "o", color=ACCENT, markersize=6.5, zorder=5)
    lost = f"\n{_points(round(point.drop, 1))} lost" if point.drop > 0 else ""
    axes.annotate(
        f"{point.accuracy:.1%}{lost}",
        (point.threshold, point.accuracy),
        xytext=(-9, -9),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8.5,
        color=INK,
    )


def _draw_costs(axes: Axes, curve: CutInference) -> None:
    points = _shown(curve)
    thresholds = [point.threshold for point in points]
    most_bytes, most_macs = curve.activation_bytes, curve.device_macs + curve.server_macs
    axes.plot(thresholds, [point.exit_rate for point in points], color=_EXITS)
    axes.plot(thresholds, [point.up_bytes / most_bytes for point in points], color=_BYTES)
    axes.plot(
        thresholds, [(point.device_macs + point.server_macs) / most_macs for point in points], color=_MACS
    )
    axes.set_ylim(0, 1.03)
    percent_axis(axes.yaxis)
    _mark_chosen(axes, curve)
    axes.set_title(
        f"100 % = {_size(most_bytes)} up, {_count(most_macs)}MAC a sample",
        fontsize=8.5,
        fontweight="normal",
        color=MUTED,
        pad=5,
    )


def _mark_chosen(axes: Axes, curve: CutInference) -> None:
    if curve.chosen is not None:
        at = curve.held_out[curve.chosen].threshold
        axes.axvline(at, color=ACCENT, linewidth=1.1, linestyle=(0, (3, 2)))


def _handles(curves: Sequence[CutInference]) -> list[Figure]:
    from matplotlib.lines import Line2D

    test = any(curve.test for curve in curves)
    handles = [
        Line2D(
            [],
            [],
            color=MUTED,
            linewidth=2.4,
            label="accuracy on the common test set" if test else "accuracy, own held-out",
        )
    ]
    if test:
        handles.append(
            Line2D(
                [], [], color=MUTED, linewidth=1.2, linestyle=(0, (1, 1.4)), label="on own held-out samples"
            )
        )
    if any(curve.chosen is not None for curve in curves):
        handles.append(
            Line2D([], [], color=ACCENT, linewidth=1.1, linestyle=(0, (3, 2)), label="chosen threshold")
        )
    handles += [
        Line2D([], [], color=colour, label=label)
        for colour, label in (
            (_EXITS, "leave early"),
            (_BYTES, "bytes up"),
            (_MACS, "MACs"),
        )
    ]
    return handles


def _size(n_bytes: float) -> str:
    return f"{n_bytes / 1024:.0f} KiB" if n_bytes >= 10 * 1024 else f"{n_bytes:,.0f} B"


def _count(macs: float) -> str:
    return f"{macs / 1e6:.3g} M" if macs >= 1e6 else f"{macs / 1e3:.3g} k"  # noqa: PLR2004 - a million
