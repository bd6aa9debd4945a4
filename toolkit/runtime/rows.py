"""Samples from rows of text and bytes: csv (a sample or a time step a row), JSON lines, raw values; answered as they arrive."""

from __future__ import annotations

import csv
import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError, ShapeError
from toolkit.runtime.arrays import damaged, file_bytes, scale
from toolkit.runtime.csv_layout import Columns, CsvOptions, find_columns
from toolkit.runtime.labels import Sample, label_index

STDIN_KINDS = ("csv", "json", "float32", "uint8", "uint8-hwc")
"""What standard input may hold."""
_WINDOWED = 2
"""Axes of a sample that is a window: features and time steps."""
AS_IT_LOOKS = CsvOptions()
"""The columns' names and number say how a csv is read."""


class Lines(Protocol):
    """What lines of text are read from."""

    def readline(self, limit: int = -1, /) -> str:
        """Read a line, at most ``limit`` characters of it."""
        ...


class After:
    """Lines of which the beginning was read already.

    Args:
        beginning: of the first line, or all of it.
        rest: what follows.
    """

    def __init__(self, beginning: str, rest: Lines) -> None:
        self._beginning = beginning
        self._rest = rest

    def readline(self, limit: int = -1, /) -> str:
        """Read a line, at most ``limit`` characters of it."""
        line, self._beginning = self._beginning, ""
        if 0 <= limit < len(line):
            line, self._beginning = line[:limit], line[limit:]
        elif line and not line.endswith("\n"):
            line += self._rest.readline(limit if limit < 0 else limit - len(line))
        return line or self._rest.readline(limit)


def csv_file_rows(
    path: Path,
    shape: tuple[int, ...],
    class_names: Sequence[str] | None,
    options: CsvOptions = AS_IT_LOOKS,
) -> Iterator[Sample]:
    """Read a csv file; arguments and errors as of :func:`csv_rows`."""
    file_bytes(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from csv_rows(stream, path.name, shape, class_names, options)
    except OSError as exc:
        raise damaged(path, exc) from exc


def csv_rows(
    stream: Lines,
    where: str,
    shape: tuple[int, ...],
    class_names: Sequence[str] | None,
    options: CsvOptions = AS_IT_LOOKS,
) -> Iterator[Sample]:
    """Read csv: a flattened sample a row, or, for a shape (features, time), rows of features, one a time step.

    The label, where there is one, stands last or in the column ``label``; a column ``user`` is passed over. A window ends
    where label, user or recording change, as in training.

    Args:
        stream: of text.
        where: what messages call it.
        shape: of a sample.
        class_names: what labels are looked up in; None leaves labels unread.
        options: as those of training; ``window``, where it is given, has to be the model's.
    Raises: DataError, ShapeError: a column that there is not, a row that does not fit, is no number, or names an unknown class.
    """
    n_values = math.prod(shape)
    rows = csv.reader(_lines(stream, where, most=64 * (n_values + 2) + 1024))
    n_rows = 0
    try:
        first = next(rows, [])
        has_names = bool(first) and not any(_is_number(c) or not c.strip() for c in first[:-1] or first)
        columns = _columns_of(first, where, options, has_names=has_names)
        windowed = _is_windowed(columns, where, options, shape)
        expected = shape[0] if windowed else n_values
        columns = _label_found(columns, expected)
        window = _Window(shape, options.stride)
        for row in rows if has_names else chain([first] if first else [], rows):
            n_rows += 1
            name = f"{where} row {n_rows}"
            if len(row) != columns.width or len(columns.features) != expected:
                raise ShapeError(
                    f"{name} has {len(row)} values; the model takes {_in_words(shape)}.",
                    hint="Values separated by commas, the label last or in the column 'label'"
                    + ("; csv:FILE?columns=A,B names those to take." if has_names else "."),
                    expected=expected,
                    got=len(row),
                )
            values = [_number(row[i], name, i) for i in columns.features]
            label = (
                None
                if columns.label < 0 or class_names is None
                else label_index(row[columns.label], class_names, name)
            )
            if not windowed:
                yield Sample(name, np.asarray(values, np.float32).reshape(shape), label)
                continue
            kind = tuple(row[i] for i in (columns.label, columns.user, columns.group) if i >= 0)
            if (x := window.add(values, kind)) is not None:
                yield Sample(f"{where} rows {n_rows - shape[1] + 1} to {n_rows}", x, label)
    except (csv.Error, UnicodeDecodeError) as exc:
        raise DataError(f"{where} can't be read as csv after row {n_rows}: {exc}.", row=n_rows) from exc


class _Window:
    """The latest time steps of one recording."""

    def __init__(self, shape: tuple[int, ...], stride: int) -> None:
        self._n_steps = shape[-1]
        self._stride = stride or self._n_steps
        self._kind: tuple[str, ...] | None = None
        self._steps: deque[list[float]] = deque(maxlen=self._n_steps)
        self._until_next = self._n_steps

    def add(self, values: list[float], kind: tuple[str, ...]) -> NDArray[np.float32] | None:
        """Add a step; returns (F, W) where a window is full and due."""
        if kind != self._kind:
            self._kind = kind
            self._steps.clear()
            self._until_next = self._n_steps
        self._steps.append(values)
        self._until_next -= 1
        if self._until_next:
            return None
        self._until_next = self._stride
        return np.ascontiguousarray(np.asarray(self._steps, np.float32).T)


def json_rows(
    stream: Lines, where: str, shape: tuple[int, ...], class_names: Sequence[str] | None
) -> Iterator[Sample]:
    """Read JSON lines: an array a line, nested as the sample or flat, or an object with it in ``x``.

    An object may have a ``name`` and a ``label`` too.

    Raises: DataError, ShapeError: a line that is no such JSON, holds something else than numbers, or another number of
        values.
    """
    n_values = math.prod(shape)
    for number, line in enumerate(_lines(stream, where, most=64 * (n_values + 2) + 4096), 1):
        name = f"{where} line {number}"
        try:
            given = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise DataError(f"{name} is no JSON: {exc}.", row=number) from exc
        fields: dict[str, Any] = given if isinstance(given, dict) else {"x": given}
        try:
            x = np.asarray(fields.get("x"), np.float32)
        except (ValueError, TypeError, OverflowError) as exc:
            raise DataError(f"{name} holds no array of numbers in 'x'.", row=number) from exc
        if x.size != n_values:
            raise ShapeError(
                f"{name} has {x.size} values; the model takes {_in_words(shape)}.",
                hint='Write {"x": [[...], ...]} or the array alone.',
                expected=n_values,
                got=x.size,
            )
        label = fields.get("label")
        known = None if label is None or class_names is None else label_index(label, class_names, name)
        yield Sample(str(fields.get("name", name)), x.reshape(shape) if x.ndim == 1 else x, known)


def raw_rows(stream: IO[bytes], where: str, shape: tuple[int, ...], kind: str) -> Iterator[Sample]:
    """Read raw values, sample after sample with nothing between them.

    Args:
        stream: of bytes.
        where: what messages call it.
        shape: of a sample.
        kind: ``float32`` (little-endian) or ``uint8`` (scaled to [0, 1]), channels first; ``uint8-hwc``: channels last.
    Raises: DataError: it ends in the middle of a sample.
    """
    dtype = np.dtype("<f4") if kind == "float32" else np.dtype(np.uint8)
    laid_out = (*shape[1:], shape[0]) if kind == "uint8-hwc" else shape
    n_bytes = math.prod(shape) * dtype.itemsize
    number = 0
    while content := _read_whole(stream, n_bytes):
        number += 1
        if len(content) < n_bytes:
            raise DataError(
                f"{where} ends after {len(content)} of the {n_bytes} bytes of sample {number}: shape {shape} as {kind}.",
                expected=n_bytes,
                got=len(content),
            )
        values = np.frombuffer(content, dtype).reshape(laid_out)
        x = scale(np.moveaxis(values, -1, 0) if kind == "uint8-hwc" else values)
        yield Sample(f"{where} sample {number}", np.ascontiguousarray(x, np.float32), None)


def _read_whole(stream: IO[bytes], n_bytes: int) -> bytes:
    content = b""
    while len(content) < n_bytes and (piece := stream.read(n_bytes - len(content))):
        content += piece
    return content


def _columns_of(first: Sequence[str], where: str, options: CsvOptions, *, has_names: bool) -> Columns:
    if has_names:
        return find_columns(where, options, [name.strip() for name in first])
    if options.named:
        raise DataError(
            f"{where} has no first line that names its columns.",
            hint=f"Without one the columns can't be called {', '.join(options.named)}.",
        )
    return Columns(len(first), tuple(range(len(first))), -1, -1, -1)


def _is_windowed(columns: Columns, where: str, options: CsvOptions, shape: tuple[int, ...]) -> bool:
    """Say whether a row is a time step, of which many are a sample."""
    if options.window and shape[1:] != (options.window,):
        raise ShapeError(
            f"A sample of {where} has {options.window} rows; the model takes {_in_words(shape)}.",
            hint="Leave the window out: a model knows its own.",
            expected=list(shape),
            got=options.window,
        )
    return len(shape) == _WINDOWED and len(_label_found(columns, shape[0]).features) == shape[0]


def _label_found(columns: Columns, expected: int) -> Columns:
    """Take the last column for the label, where none is called so and there is one more than a row has values."""
    if columns.label >= 0 or len(columns.features) != expected + 1:
        return columns
    return replace(columns, features=columns.features[:-1], label=columns.features[-1])


def _in_words(shape: tuple[int, ...]) -> str:
    flat = f"{math.prod(shape)} a sample: shape {shape}, flattened"
    return (
        f"{flat}; or {shape[0]} a time step, {shape[1]} of them a sample" if len(shape) == _WINDOWED else flat
    )


def _lines(stream: Lines, where: str, *, most: int) -> Iterator[str]:
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
