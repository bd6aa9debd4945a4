"""The data that a board would train on: whether they can be read, how many there are of each class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from toolkit.errors import HseeError
from toolkit.findings import Finding
from toolkit.nn.datasets import load_source
from toolkit.runtime.pictures import list_class_folders, read_picture

FEW_SAMPLES = 10
"""Of a class: with fewer, the held-out part can't say much."""
MANY_CLASSES = 8
FOLDER = "folder:"


def check_data(source: str, *, root: Path | None = None) -> list[Finding]:
    """Judge a data source.

    Args:
        source: as ``device.data`` has it; empty where none is named.
        root: folder of torchvision's data sets.
    """
    if not source:
        return [
            Finding(
                "data",
                "skipped",
                "no data source is named: --data folder:PICTURES, or [device] data in hsee.toml",
            )
        ]
    try:
        return [judge_counts(source, *_look(source, root))]
    except HseeError as exc:
        return [
            Finding("data", "failed", exc.message, exc.hint or "Check the path and the form of the source.")
        ]


def judge_counts(source: str, counts: Mapping[str, int], shape: tuple[int, ...]) -> Finding:
    """Judge how many samples there are of each class; ``shape`` is one sample's."""
    shown = [f"{name} {n}" for name, n in list(counts.items())[:MANY_CLASSES]]
    more = f" and {len(counts) - MANY_CLASSES} more classes" if len(counts) > MANY_CLASSES else ""
    detail = (
        f"{source}: {sum(counts.values())} samples of {'x'.join(map(str, shape))}: {', '.join(shown)}{more}"
    )
    few = [name for name, n in counts.items() if n < FEW_SAMPLES]
    if few:
        return Finding(
            "data",
            "warning",
            detail,
            f"Add samples of {', '.join(few[:MANY_CLASSES])}: fewer than {FEW_SAMPLES} of a class say little.",
        )
    return Finding("data", "ok", detail)


def _look(source: str, root: Path | None) -> tuple[Mapping[str, int], tuple[int, ...]]:
    if source.startswith(FOLDER):
        # Every file is counted and one of each class is decoded: all of them would take minutes.
        found = list_class_folders(Path(source.removeprefix(FOLDER)).expanduser())
        folders = {name: files for name, files in found.items() if files}
        if len(folders) > 1:
            shapes = {read_picture(files[0]).shape for files in folders.values()}
            if len(shapes) == 1:  # otherwise the loader below says which picture is of another shape
                return {name: len(files) for name, files in folders.items()}, shapes.pop()
    dataset = load_source(source, root=root)
    return dataset.class_counts, dataset.shape
