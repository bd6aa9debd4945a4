"""Learning curves: what exits and the server's route came to, round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from toolkit.plots.style import MUTED, Axes, Figure, cut_colours, headline, new_figure, percent_axis
from toolkit.plots.told import RunTold, Told

Value = Callable[[Told], float | None]
Curve = dict[int, list[float]]
"""Round to what devices and seeds came to in it."""


def draw_learning(runs: Sequence[RunTold], cuts: Sequence[str]) -> Figure:
    """Draw accuracy and loss over the rounds, a colour a cut; shaded from the lowest quarter to the highest.

    Args:
        runs: of one scenario, a seed each.
        cuts: shallow ones first.
    """
    figure = new_figure(10.5, 4.4)
    accuracy, loss = figure.subplots(1, 2)
    colours = cut_colours(cuts)
    n_rounds = max(told.round for run in runs for told in run.rounds)
    for cut in cuts:
        for axes, route, of_exit in (
            (accuracy, lambda t: t.server_accuracy, False),
            (accuracy, lambda t: t.exit_accuracy, True),
            (loss, lambda t: t.server_loss_nats, False),
            (loss, lambda t: t.exit_loss_nats, True),
        ):
            curve = _curve(runs, cut, route)
            _draw_curve(axes, curve, colours[cut], of_exit=of_exit, sparse=len(curve) < n_rounds)
    accuracy.set_title("Accuracy on each device's own held-out samples")
    percent_axis(accuracy.yaxis)
    accuracy.set_ylim(0, 1.02)
    loss.set_title("Training loss, nats")
    loss.set_ylim(bottom=0)
    for axes in (accuracy, loss):
        _count_rounds(axes, n_rounds)
    _legend(figure, colours)
    n_devices = len(runs[0].cuts)
    headline(
        figure,
        "Learning curves",
        f"{runs[0].name if len(runs) == 1 else f'{len(runs)} seeds'}, {n_devices} devices: median over those with one cut; "
        "shaded between the quartiles",
    )
    return figure


def _curve(runs: Sequence[RunTold], cut: str, value: Value) -> Curve:
    found: Curve = {}
    for run in runs:
        for told in run.rounds:
            if told.cut == cut and (measured := value(told)) is not None:
                found.setdefault(told.round, []).append(measured)
    return dict(sorted(found.items()))


def _draw_curve(axes: Axes, curve: Curve, colour: str, *, of_exit: bool, sparse: bool) -> None:
    """Draw a curve; one that was not measured in every round shows where it was."""
    rounds = list(curve)
    middle = [statistics.median(values) for values in curve.values()]
    style = {"linestyle": (0, (2.2, 1.6)), "linewidth": 1.7} if of_exit else {}
    marker = "o" if sparse or len(rounds) == 1 else None
    axes.plot(rounds, middle, color=colour, marker=marker, markersize=4, **style)
    quarters = [
        statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3 for values in curve.values()
    ]
    low, high = [q[0] for q in quarters], [q[2] for q in quarters]
    axes.fill_between(rounds, low, high, color=colour, alpha=0.07 if of_exit else 0.13, linewidth=0)


def _count_rounds(axes: Axes, n_rounds: int) -> None:
    """Both panels show all rounds, wherever their curves begin."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("round")
    axes.set_xlim(0.5 if n_rounds == 1 else 1 - 0.01 * n_rounds, n_rounds * 1.01 + 0.49 * (n_rounds == 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.grid(visible=False, axis="x")


def _legend(figure: Figure, colours: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, label=f"cut after {cut}") for cut, colour in colours.items()]
    handles += [
        Line2D([], [], color=MUTED, label="server's route"),
        Line2D([], [], color=MUTED, linestyle=(0, (2.2, 1.6)), linewidth=1.7, label="exit"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))
