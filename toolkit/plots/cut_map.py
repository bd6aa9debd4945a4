"""The cut map: the network from left to right, how heavy its layers are, what crosses a cut, and who is cut where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolkit.plots.style import INK, MUTED, PAPER, Axes, Figure, cut_colours, headline, new_figure

_TOTAL = 100.0
_NARROWEST = 6.0
"""Widths are shares of the whole; a layer that costs next to nothing is still seen."""
_GAP = 6.5
_HEIGHT = 1.0
_PER_COLUMN = 6
"""Devices that are named; more than these stand in columns."""
_MOST_COLUMNS, _MOST_DOTS = 6, 90
_ROW = 0.24
_BLOCK, _BLOCK_EDGE, _FLOW = "#eef2f4", "#b9c4ca", "#9fb3bd"


@dataclass(frozen=True, slots=True)
class Layer:
    """A stage: its forward FLOP (2 x MAC) a sample, and bytes a sample that leave it over the wire if it is cut there."""

    name: str
    flop: int
    out_bytes: int


def draw_cut_map(layers: Sequence[Layer], cuts: Mapping[str, str], *, name: str, model: str) -> Figure:
    """Draw layers as wide as their FLOP, edges as thick as their bytes, and a marker a device at its cut.

    Args:
        layers: in order, the classifier last.
        cuts: device to the layer after which it is cut.
        name: of the run.
        model: in words.
    """
    total = sum(layer.flop for layer in layers) or 1
    widths = [max(_NARROWEST, _TOTAL * layer.flop / total) for layer in layers]
    tallest = max(_n_rows(n) for n in Counter(cuts.values()).values())
    shown = min(tallest, _PER_COLUMN)
    figure = new_figure(11, 3 + 0.3 * shown)
    axes = figure.subplots()
    axes.set_axis_off()
    most = max(layer.out_bytes for layer in layers[:-1])
    used = [layer.name for layer in layers if layer.name in set(cuts.values())]
    colours = cut_colours(used)
    x = 0.0
    for layer, width, last in zip(layers, widths, [False] * (len(layers) - 1) + [True], strict=True):
        _draw_block(axes, layer, x, width, total)
        x += width
        if last:
            break
        _draw_edge(axes, layer, x, most, colours.get(layer.name))
        if layer.name in colours:
            devices = [device for device, cut in cuts.items() if cut == layer.name]
            _draw_devices(axes, devices, x + _GAP / 2, colours[layer.name], tallest=tallest)
        x += _GAP
    axes.set_xlim(-1, x + 1)
    axes.set_ylim(-0.36, _HEIGHT + 0.34 + _ROW * shown)
    headline(
        figure,
        "Cut map",
        f"{name}, {model}, {total / 1e6:,.3g} MFLOP a sample: blocks as wide as their FLOP, edges as thick as the bytes a sample that cross them; "
        "a dot a device, at its cut",
    )
    return figure


def _draw_block(axes: Axes, layer: Layer, x: float, width: float, total: int) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (x, 0),
            width,
            _HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.6",
            mutation_aspect=0.06,
            facecolor=_BLOCK,
            edgecolor=_BLOCK_EDGE,
            linewidth=1.2,
        )
    )
    share = layer.flop / total
    told = f"{share:.0%}" if share >= 0.01 or not layer.flop else "<1%"  # noqa: PLR2004 - a percent
    narrow = width < 11  # noqa: PLR2004 - what a name needs
    axes.text(
        x + width / 2,
        _HEIGHT / 2 + (0 if narrow else 0.1),
        layer.name if not narrow else f"{layer.name}  {told}",
        ha="center",
        va="center",
        fontsize=10 if not narrow else 9,
        fontweight="bold",
        rotation=90 if narrow else 0,
    )
    if not narrow:
        axes.text(
            x + width / 2, _HEIGHT / 2 - 0.14, told, ha="center", va="center", fontsize=9.5, color=MUTED
        )


def _draw_edge(axes: Axes, layer: Layer, x: float, most: int, colour: str | None) -> None:
    from matplotlib.patches import Rectangle

    thick = max(0.02, 0.8 * _HEIGHT * layer.out_bytes / most)
    axes.add_patch(
        Rectangle(
            (x, _HEIGHT / 2 - thick / 2),
            _GAP,
            thick,
            facecolor=colour or _FLOW,
            alpha=0.55 if colour else 0.3,
        )
    )
    axes.text(
        x + _GAP / 2,
        -0.12,
        _size(layer.out_bytes),
        ha="center",
        va="top",
        fontsize=9,
        color=colour or MUTED,
        fontweight="bold" if colour else "normal",
    )
    if colour:
        axes.plot([x + _GAP / 2] * 2, [-0.06, _HEIGHT + 0.14], color=colour, linewidth=1.4, zorder=3)


def _draw_devices(axes: Axes, devices: Sequence[str], x: float, colour: str, *, tallest: int) -> None:
    n_drawn = min(len(devices), _MOST_DOTS)
    n_rows = _n_rows(len(devices))
    pitch = _ROW * min(1.0, _PER_COLUMN / tallest)
    size = 10 * min(1.0, _PER_COLUMN / tallest) ** 0.5
    n_columns = -(-n_drawn // n_rows)
    bottom = _HEIGHT + 0.26
    for at in range(n_drawn):
        column, from_top = divmod(at, n_rows)
        row = min(n_drawn - column * n_rows, n_rows) - 1 - from_top
        place = (x + 0.19 * size * (column - (n_columns - 1) / 2), bottom + pitch * row)
        axes.plot(*place, "o", color=colour, markersize=size, markeredgecolor=PAPER, mew=1.2, zorder=4)
        if len(devices) <= _PER_COLUMN:
            axes.text(place[0] + 1.2, place[1], devices[at], va="center", fontsize=9, color=INK)
    if len(devices) > _PER_COLUMN:
        drawn = "" if n_drawn == len(devices) else f", {n_drawn} drawn"
        top = bottom + pitch * (n_rows - 1) + 0.16
        axes.text(x, top, f"{len(devices)} devices{drawn}", ha="center", va="bottom", fontsize=9, color=INK)


def _n_rows(n_devices: int) -> int:
    """Of dots above a cut."""
    return max(min(n_devices, _PER_COLUMN), -(-min(n_devices, _MOST_DOTS) // _MOST_COLUMNS))


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1024:.0f} KiB" if n_bytes >= 10 * 1024 else f"{n_bytes:,} B"
