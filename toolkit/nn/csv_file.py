"""Samples from a csv file: a row each, or windows of consecutive rows of a recording.

``csv:FILE`` reads a sample a row. Options stand behind a question mark, as in
``csv:walks.csv?window=128&stride=64&label=activity&user=person&group=trial``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError, DataNotFoundError, did_you_mean

_MIN_WINDOW = 2


class CsvOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a csv file is read.

    Attributes:
        label: column of the class; empty for ``label``, or the last where no first line names the columns.
        user: column of who made a row; empty for ``user`` where there is such a column.
        columns: the features, comma-separated, in this order; empty for all other columns.
        window: rows in a sample; 0 for a sample a row.
        stride: rows from a window's start to the next one's; 0 for windows that touch and do not overlap.
        group: column that tells recordings apart, beside the user.
    """

    label: str = ""
    user: str = ""
    columns: str = ""
    window: int = 0
    stride: int = 0
    group: str = ""


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


@dataclass(frozen=True, slots=True)
class _Columns:
    """Where things stand in a row; ``user`` and ``group`` are -1 where there are none."""

    width: int
    features: tuple[int, ...]
    label: int
    user: int
    group: int


def read_csv(path: str) -> CsvSamples:
    """Read a file.

    Args:
        path: of the file, in UTF-8, and perhaps ``?`` and options (:class:`CsvOptions`), joined by ``&``. A first line
            that holds the label's column names the columns.

    Raises:
        DataNotFoundError: it is not there or is no text.
        DataError: an option or a column that does not exist, a row that does not fit, or no window is full.
    """
    name, options = _parse_options(path)
    file = Path(name).expanduser()
    rows = _read_rows(file)
    header = rows.pop(0) if rows and (options.label or "label") in rows[0] else None
    columns = _find_columns(file, options, header, rows)
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


def _parse_options(path: str) -> tuple[str, CsvOptions]:
    name, _, query = path.partition("?")
    given: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        key, _, value = pair.partition("=")
        if key not in CsvOptions.__struct_fields__:
            raise DataError(
                f"A csv file has no option {key!r}.", hint=did_you_mean(key, CsvOptions.__struct_fields__)
            )
        given[key] = value
    try:
        options = msgspec.convert(given, CsvOptions, strict=False)
    except msgspec.ValidationError as exc:
        raise DataError(
            f"csv:{path}: {exc}.", hint="For example ?window=128&stride=64: both are numbers of rows."
        ) from exc
    if ("window" in given and options.window < _MIN_WINDOW) or ("stride" in given and options.stride < 1):
        raise DataError(
            f"csv:{path}: a window has at least {_MIN_WINDOW} rows, and a stride at least 1.",
            hint="For a sample a row leave both out.",
        )
    if not options.window and (options.stride or options.group):
        raise DataError(
            f"csv:{path}: stride and group are of windows.", hint="Give a window too: ?window=128&stride=64"
        )
    return name, options


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


def _find_columns(
    file: Path, options: CsvOptions, header: list[str] | None, rows: list[list[str]]
) -> _Columns:
    wanted = [name for name in (options.label, options.user, options.group, options.columns) if name]
    if header is None:
        if wanted:
            first = rows[0] if rows else []
            raise DataError(
                f"{file}: no column is called {(options.label or 'label')!r}.",
                hint=did_you_mean(options.label or "label", first)
                or "A first line has to name the columns, where options name some.",
                columns=first,
            )
        width = len(rows[0]) if rows else 0
        return _Columns(width, tuple(range(width - 1)), width - 1, -1, -1)

    def place(name: str, usual: str = "") -> int:
        if name and name not in header:
            raise DataError(
                f"{file} has no column {name!r}.", hint=did_you_mean(name, header), columns=header
            )
        name = name or (usual if usual in header else "")
        return header.index(name) if name else -1

    label, user, group = place(options.label, "label"), place(options.user, "user"), place(options.group)
    if options.columns:
        features = tuple(place(name) for name in options.columns.split(","))
    else:
        features = tuple(at for at in range(len(header)) if at not in (label, user, group))
    return _Columns(len(header), features, label, user, group)


def _read_features(file: Path, rows: list[list[str]], columns: _Columns) -> NDArray[np.float32]:
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
            if longest >= _MIN_WINDOW
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
