"""Which columns of a csv file are features, label, user and recording, and how rows become windows.

``csv:FILE`` is a sample a row. Options stand behind a question mark, as in
``csv:walks.csv?window=128&stride=64&label=activity&user=person&group=trial``: the same words train and are answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from toolkit.errors import DataError, did_you_mean

CSV = "csv:"
MIN_WINDOW = 2
"""Rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvOptions:
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

    @property
    def named(self) -> list[str]:
        """Columns that are called by name."""
        return [name for name in (self.label, self.user, self.group, self.columns) if name]


@dataclass(frozen=True, slots=True)
class Columns:
    """Where things stand in a row; ``label``, ``user`` and ``group`` are -1 where there are none."""

    width: int
    features: tuple[int, ...]
    label: int
    user: int
    group: int


def parse_csv_source(path: str) -> tuple[str, CsvOptions]:
    """Split a path from its options.

    Args:
        path: of a file, and perhaps ``?`` and options, joined by ``&``.
    Raises: DataError: an option that there is not, or that has no such value.
    """
    name, _, query = path.partition("?")
    known = [field.name for field in fields(CsvOptions)]
    given: dict[str, Any] = {}
    for pair in query.split("&") if query else ():
        key, _, value = pair.partition("=")
        if key not in known:
            raise DataError(f"A csv file has no option {key!r}.", hint=did_you_mean(key, known))
        given[key] = _n_rows(path, key, value) if key in ("window", "stride") else value
    options = CsvOptions(**given)
    if not options.window and (options.stride or options.group):
        raise DataError(
            f"{CSV}{path}: stride and group are of windows.", hint="Give a window too: ?window=128&stride=64"
        )
    return name, options


def _n_rows(path: str, key: str, value: str) -> int:
    try:
        n = int(value)
    except ValueError as exc:
        raise DataError(
            f"{CSV}{path}: {key} is {value!r}, which is no number of rows.",
            hint="For example ?window=128&stride=64: both are numbers of rows.",
        ) from exc
    if n < (MIN_WINDOW if key == "window" else 1):
        raise DataError(
            f"{CSV}{path}: a window has at least {MIN_WINDOW} rows, and a stride at least 1.",
            hint="For a sample a row leave both out.",
        )
    return n


def find_columns(where: str, options: CsvOptions, header: Sequence[str]) -> Columns:
    """Say where things stand in the rows of a file whose first line names its columns.

    Args:
        where: what messages call the file.
        options: names that are not the usual ones.
        header: the first line's.
    Raises: DataError: it has no column of a name that the options give.
    """

    def place(name: str, usual: str = "") -> int:
        if name and name not in header:
            raise DataError(
                f"{where} has no column {name!r}.", hint=did_you_mean(name, header), columns=list(header)
            )
        name = name or (usual if usual in header else "")
        return header.index(name) if name else -1

    label, user, group = place(options.label, "label"), place(options.user, "user"), place(options.group)
    if options.columns:
        features = tuple(place(name) for name in options.columns.split(","))
    else:
        features = tuple(at for at in range(len(header)) if at not in (label, user, group))
    return Columns(len(header), features, label, user, group)
