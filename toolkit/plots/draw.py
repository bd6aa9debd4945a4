"""From a run folder to its drawings."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from toolkit.errors import ModelError, writing
from toolkit.plots.cut_map import Layer, draw_cut_map
from toolkit.plots.learning import draw_learning
from toolkit.plots.routes import draw_routes
from toolkit.plots.style import Figure, FileFormat, drawing, save
from toolkit.plots.threshold import draw_threshold
from toolkit.plots.told import RunTold, read_runs
from toolkit.wire.tensors import activation_bytes

FOLDER = "pictures"


@dataclass(frozen=True, slots=True)
class Drawn:
    """The files, in the order in which they are best looked at; and what could not be drawn, in words."""

    files: tuple[Path, ...]
    left_out: tuple[str, ...]


def draw_run(folder: Path, target: Path | None = None, *, file_format: FileFormat = "svg") -> Drawn:
    """Draw what a run folder, or a simulation of several seeds, holds.

    The cut map, learning curves and accuracy by route; and of a simulation the threshold curves.

    Args:
        folder: of the run.
        target: where the files go; by default ``pictures`` in the folder.
        file_format: "svg" or "png".

    Raises:
        UsageError: it is no run folder.
        CheckpointError: what it holds is damaged.
        MissingPartError: matplotlib is not installed.
        MachineError: the files can't be written.
    """
    runs = read_runs(folder)
    place = target or folder / FOLDER
    layers, left_out = _layers(runs[0])
    cuts = _shallow_first(runs, layers)
    with drawing():
        figures = _figures(runs, cuts, layers)
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
        files = [save(figure, place / f"{name}.{file_format}") for name, figure in figures.items()]
    return Drawn(tuple(files), left_out)


def _figures(runs: Sequence[RunTold], cuts: Sequence[str], layers: Sequence[Layer]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    first = runs[0]
    if layers:
        model = next(iter(first.jobs.values())).model.name
        figures["cut-map"] = draw_cut_map(layers, first.cuts, name=first.name, model=model)
    if any(run.rounds for run in runs):
        figures["learning"] = draw_learning(runs, cuts)
    if any(run.rounds or run.result for run in runs):
        figures["accuracy"] = draw_routes(runs, cuts)
    for run in runs:
        if run.inference:
            end = f"-{run.name}" if len(runs) > 1 else ""
            figures[f"threshold{end}"] = draw_threshold(run.inference, cuts, run.name)
    return figures


def _layers(run: RunTold) -> tuple[list[Layer], tuple[str, ...]]:
    """The network's layers; none, and why, where they can't be counted here."""
    if not run.jobs:
        return [], ()
    if importlib.util.find_spec("torch") is None:
        return [], ("no cut map: counting a network's layers needs torch (pip install 'hsee[coordinator]')",)
    from toolkit.nn.cut import describe
    from toolkit.nn.zoo import build_network

    job = next(iter(run.jobs.values()))
    try:
        stages = describe(build_network(job.model, seed=job.seed), job.model.input_shape)
    except ModelError as exc:  # a model of the user's own, which is not installed here
        return [], (f"no cut map: {exc}",)
    return [
        Layer(stage.name, stage.flop, activation_bytes(prod(stage.shape), job.codec)) for stage in stages
    ], ()


def _shallow_first(runs: Sequence[RunTold], layers: Sequence[Layer]) -> list[str]:
    """The cuts that occur; as they occur where nobody knows the network."""
    found = dict.fromkeys(cut for run in runs for cut in run.cuts.values())
    for run in runs:
        if run.result is not None:
            found |= dict.fromkeys(device.cut for device in run.result.devices)
    known = [layer.name for layer in layers]
    return sorted(found, key=lambda cut: known.index(cut) if cut in known else len(known))
