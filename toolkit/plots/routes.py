"""Accuracy by exit and route: what a device answers alone, and what the fleet answers for it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolkit.plots.style import (
    INK,
    MUTED,
    PAPER,
    Axes,
    Figure,
    cut_colours,
    floor_of,
    headline,
    new_figure,
    percent_axis,
)
from toolkit.plots.told import RunTold

MOST_ROWS = 40
"""Devices drawn one by one; of more, or of several seeds, the cuts are drawn."""
_NAMES = {"exit": "exit", "server": "server's route", "whole": "whole network"}


@dataclass(frozen=True, slots=True)
class Row:
    """A device or a cut: values by route, of one device or of many."""

    label: str
    cut: str
    values: Mapping[str, Sequence[float]]


def draw_routes(runs: Sequence[RunTold], cuts: Sequence[str]) -> Figure:
    """Draw the last state's accuracy, a row a device or a cut, on own samples and on the common test set.

    Args:
        runs: of one scenario, a seed each.
        cuts: shallow ones first.
    """
    panels = [("Own held-out samples", own)] if (own := _rows(runs, cuts, common=False)) else []
    if common := _rows(runs, cuts, common=True):
        panels.append(("Common test set", common))
    n_rows = max(len(rows) for _, rows in panels)
    figure = new_figure(5.2 * len(panels) + 0.6, 1.75 + 0.34 * n_rows)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    colours = cut_colours(cuts)
    floor = floor_of(
        v for _, rows in panels for row in rows for values in row.values.values() for v in values
    )
    for place, (title, rows) in zip(axes, panels, strict=True):
        _draw_panel(place, rows, colours)
        place.set_xlim(floor, 1 + 0.03 * (1 - floor))
        place.set_title(title)
    _legend(figure, list(panels[0][1][0].values))
    many = len(panels[0][1][0].values.get("exit", next(iter(panels[0][1][0].values.values())))) > 1
    headline(
        figure,
        "Accuracy by exit and route",
        f"{runs[0].name if len(runs) == 1 else f'{len(runs)} seeds'}, last state"
        + ("; large: mean, small: each device (exits beneath the line)" if many else "; a row a device"),
    )
    return figure


def _rows(runs: Sequence[RunTold], cuts: Sequence[str], *, common: bool) -> list[Row]:
    by_device = _measured(runs, common=common)
    devices = sorted(by_device, key=lambda at: (cuts.index(by_device[at][0]), at))
    if len(runs) == 1 and len(devices) <= MOST_ROWS:
        return [
            Row(device, by_device[seed, device][0], {r: [v] for r, v in by_device[seed, device][1].items()})
            for seed, device in devices
        ]
    rows = []
    for cut in cuts:
        of_cut = [values for own, values in by_device.values() if own == cut]
        if of_cut:
            routes = {route: [values[route] for values in of_cut] for route in of_cut[0]}
            rows.append(Row(cut, cut, routes))
    return rows


def _measured(
    runs: Sequence[RunTold], *, common: bool
) -> dict[tuple[int, str], tuple[str, dict[str, float]]]:
    """(Run, device) to its cut and accuracy by route; of a run without a result from the last round's rows."""
    found: dict[tuple[int, str], tuple[str, dict[str, float]]] = {}
    for number, run in enumerate(runs):
        if run.result is not None:
            for device in run.result.devices:
                values = {
                    route: value
                    for route, accuracy in device.accuracy.items()
                    if (value := accuracy.common if common else accuracy.own) is not None
                }
                if values:
                    found[number, device.device] = (device.cut, values)
        elif not common:
            for told in run.rounds:  # a later round's row takes the place of an earlier one's
                both = (("exit", told.exit_accuracy), ("server", told.server_accuracy))
                if measured := {route: value for route, value in both if value is not None}:
                    found[number, told.device] = (told.cut, measured)
    return found


def _draw_panel(axes: Axes, rows: Sequence[Row], colours: Mapping[str, str]) -> None:
    for at, row in enumerate(rows):
        colour = colours[row.cut]
        means = {route: statistics.fmean(values) for route, values in row.values.items()}
        axes.plot(
            [min(means.values()), max(means.values())], [at, at], color=colour, alpha=0.35, linewidth=2.4
        )
        for route, values in row.values.items():
            if len(values) > 1:  # of exits beneath the line, of the whole network's answers above it
                beside = [at + (0.2 if route == "exit" else -0.2)] * len(values)
                axes.plot(values, beside, "o", color=colour, alpha=0.45, markersize=3.2, mew=0)
            face = PAPER if route == "exit" else colour
            axes.plot(
                means[route], at, "o", markersize=8, markerfacecolor=face, markeredgecolor=colour, mew=1.8
            )
        _tell_means(axes, at, means)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    # A panel to the right shares the labels of the first and has none.
    for tick, row in zip(axes.get_yticklabels(), rows, strict=False):
        tick.set_color(INK if row.label != row.cut else colours[row.cut])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    percent_axis(axes.xaxis)
    axes.grid(visible=False, axis="y")


def _tell_means(axes: Axes, at: int, means: Mapping[str, float]) -> None:
    """Write the lowest mean to the left of its mark, and the highest to the right."""
    ends = {"right": min(means.values())} if len(means) > 1 else {}
    for side, mean in (ends | {"left": max(means.values())}).items():
        axes.annotate(
            f"{mean:.0%}",
            (mean, at),
            xytext=(-8 if side == "right" else 8, 0),
            textcoords="offset points",
            ha=side,
            va="center_baseline",
            fontsize=8,
            color=MUTED,
        )


def _label(row: Row) -> str:
    return f"cut after {row.cut}" if row.label == row.cut else f"{row.label}  ·  {row.cut}"


def _legend(figure: Figure, routes: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=8,
            mew=1.8,
            markeredgecolor=MUTED,
            markerfacecolor=PAPER if route == "exit" else MUTED,
            label=_NAMES.get(route, route),
        )
        for route in routes
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))
