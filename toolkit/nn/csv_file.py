"""Samples from a csv file: a row each, or windows of consecutive rows of a recording."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError, DataNotFoundError, did_you_mean
from toolkit.runtime.csv_layout import MIN_WINDOW, Columns, CsvOptions, find_columns, parse_csv_source


@dataclass(frozen=True, slots=True)
class CsvSamples:
    """What a file holds.

    Attributes:
        x: (N, F), or windows (N, F, W).
        labels: one a sample.
        user: likewise; None where the file does not say.
    """

    x: NDArray[np.float32]
    labels: list[str]
    user: list[str] | None


def read_csv(path: str) -> CsvSamples:
    """Read a file.

    Args:
        path: of the file, in UTF-8, and perhaps ``?`` and options (:mod:`toolkit.runtime.csv_layout`), joined by ``&``. A first line
            that holds the label's column names the columns.

    Raises:
        DataNotFoundError: it is not there or is no text.
        DataError: an option or a column that does not exist, a row that does not fit, or no window is full.
    """
    name, options = parse_csv_source(path)
    file = Path(name).expanduser()
    rows = _read_rows(file)
    header = rows.pop(0) if rows and (options.label or "label") in rows[0] else None
    columns = _columns_of(file, options, header, rows)
    x = _read_features(file, rows, columns)
    labels = [row[columns.label] for row in rows]
    user = None if columns.user < 0 else [row[columns.user] for row in rows]
    if not options.window:
        return CsvSamples(x, labels, user)
    group = None if columns.group < 0 else [row[columns.group] for row in rows]
    starts = _window_starts(file, options, labels, user, group)
    return CsvSamples(
        np.stack([x[start : start + options.window].T for start in starts]),
        [labels[start] for start in starts],
        None if user is None else [user[start] for start in starts],
    )


def _read_rows(file: Path) -> list[list[str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            return [row for row in csv.reader(stream) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise DataNotFoundError(
            f"{file} can't be read: {exc}.",
            hint="Check the path; it must be a text file in UTF-8.",
            path=str(file),
        ) from exc


def _columns_of(file: Path, options: CsvOptions, header: list[str] | None, rows: list[list[str]]) -> Columns:
    if header is not None:
        return find_columns(str(file), options, header)
    if options.named:
        first = rows[0] if rows else []
        raise DataError(
            f"{file}: no column is called {(options.label or 'label')!r}.",
            hint=did_you_mean(options.label or "label", first)
            or "A first line has to name the columns, where options name some.",
            columns=first,
        )
    width = len(rows[0]) if rows else 0
    return Columns(width, tuple(range(width - 1)), width - 1, -1, -1)


def _read_features(file: Path, rows: list[list[str]], columns: Columns) -> NDArray[np.float32]:
    x = np.empty((len(rows), len(columns.features)), np.float32)
    for n, row in enumerate(rows):
        try:
            x[n] = [float(row[column]) for column in columns.features]
        except (IndexError, ValueError) as exc:
            raise DataError(
                f"{file}, row {n + 1} of the data: {exc}.",
                hint=f"Every row needs {len(columns.features)} numbers and a label, which stands last "
                "unless a first line names the columns ('label', perhaps 'user'); ?label=NAME names another column.",
                row=n + 1,
            ) from exc
        if len(row) != columns.width:
            raise DataError(
                f"{file}, row {n + 1} of the data has {len(row)} values; the first line has {columns.width}.",
                hint="Every row needs the same columns.",
                row=n + 1,
            )
    return x


def _window_starts(
    file: Path,
    options: CsvOptions,
    labels: Sequence[str],
    user: Sequence[str] | None,
    group: Sequence[str] | None,
) -> list[int]:
    """Rows at which full windows begin; a window holds rows of one recording, one user and one label."""
    keys = list(zip(labels, user or labels, group or labels, strict=True))
    longest = 0
    starts: list[int] = []
    for first, last in _stretches(keys):
        longest = max(longest, last - first)
        starts += range(first, last - options.window + 1, options.stride or options.window)
    if not starts:
        raise DataError(
            f"{file}: no window of {options.window} rows is full; the longest stretch of one label has {longest}.",
            hint=f"Take a window of at most {longest} rows."
            if longest >= MIN_WINDOW
            else "Sort the rows by recording and time.",
            longest=longest,
        )
    return starts


def _stretches(keys: Sequence[object]) -> Iterator[tuple[int, int]]:
    """First row and the row after the last of each stretch of equal keys."""
    first = 0
    for at in range(1, len(keys) + 1):
        if at == len(keys) or keys[at] != keys[first]:
            yield first, at
            first = at
