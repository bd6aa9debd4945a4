"""Reading samples to answer: pictures, folders of pictures, .npz, .npy, .csv and standard input.

Values stay raw: pictures in [0, 1], channels first, nothing normalised.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError, ShapeError, did_you_mean
from toolkit.runtime.arrays import MAX_FILE_BYTES, damaged, file_bytes, open_npy, open_npz, scale
from toolkit.runtime.pictures import PICTURE_SUFFIXES, list_class_folders, list_pictures, read_picture

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


@dataclass(frozen=True, slots=True)
class _Sample:
    name: str
    x: NDArray[np.float32]
    label: int | None


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
) -> Iterator[Samples]:
    """Read a source batch by batch; standard input is answered as its rows arrive.

    Args:
        source: a picture; a folder of pictures, or where it has none of its own, of class folders; .npz with ``x`` and perhaps ``y`` (indices, or
            names; indices into ``classes`` where the file has it); .npy; .csv, a flattened sample a row, with the
            label last or in the column ``label``; or ``-``, csv on standard input.
        input_shape: of one sample, channels first.
        class_names: what labels are looked up in; None leaves labels unread.
        batch: samples at a time; the last batch may be smaller.
        fit: resize pictures and convert their colours to fit ``input_shape``.

    Raises:
        DataNotFoundError, DataError: missing, damaged, empty, of no known kind, NaN or Inf in a sample, unknown label.
        ShapeError: a sample has another shape.
    """
    each = _each(str(source), tuple(input_shape), class_names, fit=fit)
    yield _gathered(list(islice(each, batch)), str(source))
    while group := list(islice(each, batch)):
        yield _gathered(group, str(source))


def _gathered(samples: Sequence[_Sample], source: str) -> Samples:
    if not samples:
        raise DataError(f"{'Standard input' if source == '-' else source} holds no samples.", source=source)
    labels = [s.label for s in samples if s.label is not None]
    return Samples(
        names=tuple(s.name for s in samples),
        x=np.stack([s.x for s in samples]),
        labels=np.asarray(labels, np.int64) if labels else None,
    )


def _each(
    source: str, shape: tuple[int, ...], class_names: Sequence[str] | None, *, fit: bool
) -> Iterator[_Sample]:
    path = Path(source)
    suffix = path.suffix.lower()
    if source == "-":
        rows = _csv_rows(sys.stdin, "standard input", shape, class_names)
    elif path.is_dir():
        rows = _folder_pictures(path, shape, class_names, fit=fit)
    elif suffix in PICTURE_SUFFIXES:
        rows = iter([_Sample(path.name, read_picture(path, fit=shape if fit else None), None)])
    elif suffix in (".npz", ".npy"):
        rows = _array_rows(path, shape, class_names)
    elif suffix == ".csv":
        rows = _csv_file_rows(path, shape, class_names)
    else:
        file_bytes(path)
        raise DataError(
            f"{source} is of no kind that can be read.",
            hint="Give a picture, a folder of pictures, .npz, .npy, .csv, or - for csv on standard input.",
            path=source,
        )
    for sample in rows:
        _check_sample(sample, shape)
        yield sample


def _check_sample(sample: _Sample, shape: tuple[int, ...]) -> None:
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
) -> Iterator[_Sample]:
    loose = list_pictures(path)
    classes = {None: loose} if loose else list_class_folders(path)
    for name, pictures in classes.items():
        label = None
        if name is not None and class_names is not None:
            label = _label_index(name, class_names, f"The folder {path / name}")
        for picture in pictures:
            x = read_picture(picture, fit=shape if fit else None)
            yield _Sample(str(picture.relative_to(path)), x, label)


def _array_rows(path: Path, shape: tuple[int, ...], class_names: Sequence[str] | None) -> Iterator[_Sample]:
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
        yield _Sample(name, scale(x[index], name=name), None if labels is None else labels[index])


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
        _label_index(label, class_names, f"'y' of {path.name}[{index}]")
        for index, label in enumerate(y.tolist())
    ]


def _label_index(label: str | int, class_names: Sequence[str], where: str) -> int:
    if label in class_names:
        return class_names.index(str(label))
    text = str(label).strip()
    if text.isdecimal() and int(text) < len(class_names):
        return int(text)
    raise DataError(
        f"{where} names the class {text!r}, which the model does not know.",
        hint=f"{did_you_mean(text, class_names)} Use --no-labels to answer without looking at labels.",
        label=text,
    )


def _csv_file_rows(
    path: Path, shape: tuple[int, ...], class_names: Sequence[str] | None
) -> Iterator[_Sample]:
    file_bytes(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from _csv_rows(stream, path.name, shape, class_names)
    except OSError as exc:
        raise damaged(path, exc) from exc


def _csv_rows(
    stream: IO[str], where: str, shape: tuple[int, ...], class_names: Sequence[str] | None
) -> Iterator[_Sample]:
    n_values = math.prod(shape)
    rows = csv.reader(_lines(stream, where, most=64 * (n_values + 2) + 1024))
    n_rows = 0
    try:
        first = next(rows, [])
        has_names = bool(first) and not any(_is_number(c) or not c.strip() for c in first[:-1] or first)
        named = {name.strip(): i for i, name in enumerate(first)} if has_names else {}
        label_at = named.get("label", n_values if len(first) == n_values + 1 else None)
        values_at = [i for i in range(len(first)) if i not in (label_at, named.get("user"))]
        for row in rows if has_names else chain([first] if first else [], rows):
            n_rows += 1
            name = f"{where} row {n_rows}"
            if len(row) != len(first) or len(values_at) != n_values:
                raise ShapeError(
                    f"{name} has {len(row)} values; the model takes {n_values} a sample: shape {shape}, flattened.",
                    hint="One sample a row, values separated by commas, the label last or in the column 'label'.",
                    expected=n_values,
                    got=len(row),
                )
            x = np.asarray([_number(row[i], name, i) for i in values_at], np.float32).reshape(shape)
            label = None
            if label_at is not None and class_names is not None:
                label = _label_index(row[label_at], class_names, name)
            yield _Sample(name, x, label)
    except (csv.Error, UnicodeDecodeError) as exc:
        raise DataError(f"{where} can't be read as csv after row {n_rows}: {exc}.", row=n_rows) from exc


def _lines(stream: IO[str], where: str, *, most: int) -> Iterator[str]:
    # A line without an end must not fill the memory.
    while line := stream.readline(most):
        if len(line) == most and not line.endswith("\n"):
            raise DataError(
                f"{where} has a line longer than {most} characters: this is not one sample a row."
            )
        if line.strip():
            yield line


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, name: str, column: int) -> float:
    try:
        return float(cell)
    except ValueError as exc:
        raise DataError(f"{name}, column {column + 1}: {cell!r} is not a number.", sample=name) from exc
