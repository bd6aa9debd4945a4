"""Exits of a network that was never trained, one ONNX file a cut: how long a board takes to answer does not hang on weights."""

from __future__ import annotations

from pathlib import Path

from toolkit.disk import write_atomically
from toolkit.errors import writing
from toolkit.export.graph import Piece, set_metadata, to_onnx
from toolkit.nn.cut import cut_layers, take_segment
from toolkit.nn.sizes import device_part
from toolkit.nn.zoo import build_network
from toolkit.wire.job import ModelSpec

WHY = "random weights: for hsee profile --onnx, it answers nothing"


def export_random_exits(
    folder: Path, model: ModelSpec, *, exit_head: str = "auto", seed: int = 0
) -> list[Path]:
    """Write each cut's segment and exit with random weights.

    Args:
        folder: made where it is missing; files of the same names are replaced.
        model: the network.
        exit_head: behind each cut.
        seed: of the weights.
    Returns: a file a cut, shallow first, named for it.
    Raises: ModelError: there is no such model or head. BundleError: torch can't export it. MachineError: the folder
        can't be written.
    """
    network = build_network(model, seed=seed)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for cut in cut_layers(network):
        part, _ = device_part(network, model, cut, exit_head=exit_head, seed=seed)
        piece = Piece(take_segment(network, cut), part[1], exit_name=cut)
        proto = to_onnx(piece, model.input_shape)
        path = folder / f"{cut}.onnx"
        write_atomically(path, set_metadata(proto, {"hsee.cut": cut, "hsee.random": WHY}))
        paths.append(path)
    return paths
