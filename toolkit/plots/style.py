"""One look for all drawings: colours, type, and how a figure becomes a file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import require, writing

FileFormat = Literal["svg", "png"]
Figure = Any
Axes = Any
"""matplotlib's own; it is loaded when something is drawn, and its types tell little."""

INK, MUTED, FAINT, PAPER = "#22303c", "#66757f", "#dfe5e8", "#ffffff"
ACCENT = "#c8553d"
_HEAD_INCHES = 0.72
_CUT_COLOURS = ("#2a9d8f", "#e09f3e", "#3d5a98", "#9b5094", "#6b8f3a", "#b5654a")
"""Shallow cuts first; told apart by people who see red and green alike."""

_STYLE: Any = {  # matplotlib types its 400 keys one by one
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.labelsize": 9.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "path",
    "svg.hashsalt": "hsee",
}


@contextmanager
def drawing() -> Iterator[None]:
    """Within the block, figures have this look and need no screen.

    Raises: MissingPartError: matplotlib is not installed.
    """
    require("matplotlib", part="plots", purpose="Drawing a run")
    import matplotlib as mpl

    with mpl.rc_context({**_STYLE, "backend": "agg"}):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of so many inches that belongs to no window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MplFigure

    figure = MplFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure; its format is the file's ending. The same figure gives the same SVG.

    Raises: MachineError: the disk refuses it.
    """
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    with writing(path):
        figure.savefig(path, dpi=160, metadata=metadata)
    return path


def headline(figure: Figure, title: str, told: str) -> None:
    """Head a figure with what it shows, and beneath in small type with what it was made of."""
    height = figure.get_figheight()
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - _HEAD_INCHES / height))
    for words, inches, look in (
        (title, 0.12, {"fontsize": 13.5, "fontweight": "bold"}),
        (told, 0.42, {"fontsize": 9, "color": MUTED}),
    ):
        figure.text(0.012, 1 - inches / height, words, ha="left", va="top", **look)


def cut_colours(cuts: Sequence[str]) -> dict[str, str]:
    """A colour for each cut, shallow ones first."""
    return {cut: _CUT_COLOURS[i % len(_CUT_COLOURS)] for i, cut in enumerate(cuts)}


def percent_axis(axis: Any) -> None:
    """Let an axis of shares tell percent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def floor_of(shares: Iterable[float]) -> float:
    """Where an axis of shares may begin, so that small differences are seen: a full ten percent below the lowest."""
    return max(0.0, math.floor(min(shares) * 10 - 0.5) / 10)
