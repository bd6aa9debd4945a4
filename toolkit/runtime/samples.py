"""Reading samples to answer: pictures, folders of pictures, .npz, .npy, .csv, .jsonl, cameras and standard input.

Values stay raw: pictures in [0, 1], channels first, nothing normalised.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError, DataNotFoundError, ShapeError
from toolkit.runtime.arrays import MAX_FILE_BYTES, damaged, file_bytes, open_npy, open_npz, scale
from toolkit.runtime.camera import CAMERA, camera_frames
from toolkit.runtime.csv_layout import CSV, CsvOptions, parse_csv_source
from toolkit.runtime.labels import Sample, label_index
from toolkit.runtime.pictures import PICTURE_SUFFIXES, list_class_folders, list_pictures, read_picture
from toolkit.runtime.rows import After, csv_file_rows, csv_rows, json_rows, raw_rows

MAX_FIRST_LINE = 1024
"""Characters of standard input by which its kind is told."""
_KINDS = (CSV, "folder:", "npz:")
"""What a source of training begins with; here a path may stand alone."""
_TRAINED_WITH = ("digits", "torchvision", "python")
"""The first word of a source that only training knows: its packages are not on a board that infers."""

__all__ = [
    "PICTURE_SUFFIXES",
    "Samples",
    "list_class_folders",
    "open_npy",
    "open_npz",
    "read_batches",
    "read_picture",
    "read_samples",
    "scale",
]


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples in the order of their source.

    Attributes:
        names: N names, by which messages and answers call them.
        x: (N, *input_shape), raw.
        labels: (N,) indices into the class names, or None where the source has no labels.
    """

    names: tuple[str, ...]
    x: NDArray[np.float32]
    labels: NDArray[np.int64] | None


def read_samples(
    source: str | Path,
    *,
    input_shape: Sequence[int],
    class_names: Sequence[str] | None = None,
    fit: bool = False,
) -> Samples:
    """Read a whole source into memory; arguments, results and errors as of :func:`read_batches`."""
    each = _each(str(source), tuple(input_shape), class_names, fit=fit)
    most = max(1, MAX_FILE_BYTES // (4 * math.prod(input_shape)))
    samples = list(islice(each, most + 1))
    if len(samples) > most:
        raise DataError(f"{source} holds more than the {most} samples that are read into memory at once.")
    return _gathered(samples, str(source))


def read_batches(
    source: str | Path,
    *,
    input_shape: Sequence[int],
    class_names: Sequence[str] | None = None,
    batch: int = 1,
    fit: bool = False,
    stdin: str | None = None,
    stride: int = 0,
) -> Iterator[Samples]:
    """Read a source batch by batch; standard input is answered as its rows arrive.

    Args:
        source: a picture; a folder of pictures, or where it has none of its own, of class folders; .npz with ``x`` and
            perhaps ``y`` (indices, or names; indices into ``classes`` where the file has it); .npy; .csv, a flattened
            sample a row, or for windows (features, time) a time step a row, with the label last or in the column
            ``label``; .jsonl; ``camera:0`` or ``camera:FILE``; or ``-``, standard input. ``csv:FILE?...``, ``npz:FILE`` and
            ``folder:PATH`` are taken as training takes them.
        input_shape: of one sample, channels first.
        class_names: what labels are looked up in; None leaves labels unread.
        batch: samples at a time; the last batch may be smaller.
        fit: resize pictures and convert their colours to fit ``input_shape``; a camera's always are.
        stdin: one of :data:`toolkit.runtime.rows.STDIN_KINDS`; by default csv, or JSON where the first line says so.
        stride: rows from one window of a csv to the next; 0 for windows that touch.

    Raises:
        DataNotFoundError, DataError: missing, damaged, empty, of no known kind, NaN or Inf in a sample, unknown label.
        ShapeError: a sample has another shape.
    """
    each = _each(str(source), tuple(input_shape), class_names, fit=fit, stdin=stdin, stride=stride)
    yield _gathered(list(islice(each, batch)), str(source))
    while group := list(islice(each, batch)):
        yield _gathered(group, str(source))


def _gathered(samples: Sequence[Sample], source: str) -> Samples:
    if not samples:
        raise DataError(f"{'Standard input' if source == '-' else source} holds no samples.", source=source)
    labels = [s.label for s in samples if s.label is not None]
    return Samples(
        names=tuple(s.name for s in samples),
        x=np.stack([s.x for s in samples]),
        labels=np.asarray(labels, np.int64) if labels else None,
    )


def _each(
    source: str,
    shape: tuple[int, ...],
    class_names: Sequence[str] | None,
    *,
    fit: bool,
    stdin: str | None = None,
    stride: int = 0,
) -> Iterator[Sample]:
    options = CsvOptions(stride=stride)
    kind = next((kind for kind in _KINDS if source.startswith(kind)), "")
    source = source.removeprefix(kind)
    if kind == CSV:
        source, options = parse_csv_source(source)
        options = replace(options, stride=stride or options.stride)
    path = Path(source)
    suffix = path.suffix.lower()
    if source == "-":
        rows = _standard_input(stdin, shape, class_names, options)
    elif source.startswith(CAMERA):
        rows = camera_frames(source.removeprefix(CAMERA), shape)
    elif path.is_dir():
        rows = _folder_pictures(path, shape, class_names, fit=fit)
    elif suffix in PICTURE_SUFFIXES:
        rows = iter([Sample(path.name, read_picture(path, fit=shape if fit else None), None)])
    elif suffix in (".npz", ".npy"):
        rows = _array_rows(path, shape, class_names)
    elif suffix == ".csv" or kind == CSV:
        rows = csv_file_rows(path, shape, class_names, options)
    elif suffix == ".jsonl":
        rows = _json_file_rows(path, shape, class_names)
    else:
        raise _unreadable(source)
    for sample in rows:
        _check_sample(sample, shape)
        yield sample


def _unreadable(source: str) -> DataError:
    """Why a source can't be read that looks like none of those that can."""
    path = Path(source)
    if source.partition(":")[0] in _TRAINED_WITH and not path.exists():
        said = (
            f"{source} names data to train with; inference reads files, folders, a camera or standard input."
        )
    else:
        file_bytes(path)
        said = f"{source} is of no kind that can be read."
    return DataError(
        said,
        hint="Give a picture, a folder of pictures, .npz, .npy, .csv, .jsonl, camera:0, or - for standard input.",
        path=source,
    )


def _check_sample(sample: Sample, shape: tuple[int, ...]) -> None:
    if sample.x.shape != shape:
        raise ShapeError(
            f"{sample.name} has shape {sample.x.shape}; the model takes {shape}.",
            hint=_shape_hint(sample.x.shape, shape),
            expected=shape,
            got=sample.x.shape,
            sample=sample.name,
        )
    if not np.isfinite(sample.x).all():
        n_bad = int(np.count_nonzero(~np.isfinite(sample.x)))
        raise DataError(
            f"{sample.name} holds NaN or Inf in {n_bad} of its {sample.x.size} values.",
            hint="Repair or leave out this sample; an answer to it would mean nothing.",
            sample=sample.name,
        )


def _shape_hint(got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if len(expected) > 1 and got == (*expected[1:], expected[0]):
        return "Its channels come last; the model takes channels first: np.moveaxis(x, -1, 1)."
    if len(got) == len(expected) == 3 and got[0] in (1, 3) and expected[0] in (1, 3):  # noqa: PLR2004 - C, H, W
        return "For pictures --fit resizes and converts colours."
    if math.prod(got) == math.prod(expected):
        return f"It has the right number of values: reshape it to (N, {', '.join(map(str, expected))})."
    return "Shapes are of one sample, channels first."


def _folder_pictures(
    path: Path, shape: tuple[int, ...], class_names: Sequence[str] | None, *, fit: bool
) -> Iterator[Sample]:
    loose = list_pictures(path)
    try:
        classes = {None: loose} if loose else list_class_folders(path)
    except DataNotFoundError:
        raise
    except DataError as exc:
        raise DataError(
            f"{path} holds no pictures, neither by themselves nor in class folders.",
            hint=f"Pictures end in {', '.join(PICTURE_SUFFIXES)}; arrays and tables are given by file.",
            path=str(path),
        ) from exc
    for name, pictures in classes.items():
        label = None
        if name is not None and class_names is not None:
            label = label_index(name, class_names, f"The folder {path / name}")
        for picture in pictures:
            x = read_picture(picture, fit=shape if fit else None)
            yield Sample(str(picture.relative_to(path)), x, label)


def _array_rows(path: Path, shape: tuple[int, ...], class_names: Sequence[str] | None) -> Iterator[Sample]:
    arrays = {"x": open_npy(path)} if path.suffix.lower() == ".npy" else open_npz(path)
    if "x" not in arrays:
        raise DataError(
            f"{path} has no array 'x'; it has: {', '.join(arrays) or 'none'}.",
            hint="Save it with np.savez(path, x=samples, y=labels); y may be left out.",
            path=str(path),
        )
    x = arrays["x"]
    if x.shape == shape:
        x = x[None]
    labels = _array_labels(arrays, x, class_names, path)
    for index in range(len(x) if x.ndim else 0):
        name = f"{path.name}[{index}]"
        yield Sample(name, scale(x[index], name=name), None if labels is None else labels[index])


def _array_labels(
    arrays: Mapping[str, NDArray[Any]], x: NDArray[Any], class_names: Sequence[str] | None, path: Path
) -> list[int] | None:
    if class_names is None or "y" not in arrays:
        return None
    y = arrays["y"]
    if y.shape != x.shape[:1] or y.dtype.kind not in "iuU":
        raise DataError(
            f"'y' of {path} is {y.dtype} of shape {y.shape}; expected {x.shape[:1]} class indices or class names.",
            path=str(path),
        )
    if y.dtype.kind != "U" and "classes" in arrays:
        own = [str(name) for name in arrays["classes"].ravel()]
        y = np.asarray([own[i] if 0 <= i < len(own) else str(i) for i in y.tolist()], np.str_)
    return [
        label_index(label, class_names, f"'y' of {path.name}[{index}]")
        for index, label in enumerate(y.tolist())
    ]


def _json_file_rows(
    path: Path, shape: tuple[int, ...], class_names: Sequence[str] | None
) -> Iterator[Sample]:
    file_bytes(path)
    try:
        with path.open(encoding="utf-8") as stream:
            yield from json_rows(stream, path.name, shape, class_names)
    except (OSError, UnicodeDecodeError) as exc:
        raise damaged(path, exc) from exc


def _standard_input(
    kind: str | None, shape: tuple[int, ...], class_names: Sequence[str] | None, options: CsvOptions
) -> Iterator[Sample]:
    where = "standard input"
    if kind in ("float32", "uint8", "uint8-hwc"):
        yield from raw_rows(sys.stdin.buffer, where, shape, kind)
        return
    try:
        first = sys.stdin.readline(MAX_FIRST_LINE)
    except UnicodeDecodeError as exc:
        raise _no_text() from exc
    if any(
        sign == "\0" or "\udc80" <= sign <= "\udcff" for sign in first
    ):  # how Python reads bytes that are no text
        raise _no_text()
    stream = After(first, sys.stdin)
    if kind == "json" or (kind is None and first.lstrip()[:1] in ("{", "[")):
        yield from json_rows(stream, where, shape, class_names)
    else:
        yield from csv_rows(stream, where, shape, class_names, options)


def _no_text() -> DataError:
    return DataError(
        "Standard input is no text.", hint="Raw values need --stdin float32, uint8 or uint8-hwc."
    )
