"""What a run folder says of its run, for whoever reads it: light, because commands on any machine do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from csv import DictReader
from pathlib import Path
from typing import Literal

import msgspec

from toolkit.errors import DamagedError
from toolkit.sealed import digest_of, digest_of_content

Status = Literal["waiting", "training", "finished", "failed", "stopped"]

RECORD_FILE = "run.json"
COPY_FILE = "run-copy.json"
"""The same again: what must never go back survives a bit that rots in one of them."""
METRICS_FILE = "metrics.csv"
CHECKPOINTS = "checkpoints"
_GENERATION = re.compile(r"(\d{6,})-round-(\d+)")
METRICS = (
    "round",
    "device",
    "cut",
    "exit_accuracy",
    "server_accuracy",
    "exit_loss_nats",
    "server_loss_nats",
    "n_steps",
    "n_void",
    "n_eval",
    "up_bytes",
    "weights_up_bytes",
    "down_bytes",
    "seconds",
    "further_exits",
)
"""Columns of metrics.csv. Of ``up_bytes`` so many are weights; ``further_exits`` are ``stage=accuracy``, input first."""


class RunRecord(msgspec.Struct, kw_only=True):
    """run.json: where a run stands, and the numbers that must never go back.

    Attributes:
        nonces: of the process that speaks for each device, in hexadecimal.
        superseded: those of the processes before it, oldest first.
        rewound_to: the closed round that an operator took the run back to; none where that was taken note of.
        rewound_from: the number of the checkpoint that was the newest before; it counts no more.
        config_sha256: of config.toml, as this run wrote it last.
        n_saved: counts the times that it was written.
        sha256: of its JSON without white space, in which this field is empty.
    """

    schema: int = 1
    run: str
    status: Status = "waiting"
    detail: str = ""
    term: int = 0
    incarnations: dict[str, int] = {}
    nonces: dict[str, str] = {}
    superseded: dict[str, list[str]] = {}
    started: str = ""
    ended: str = ""
    rounds_closed: int = 0
    rewound_to: int | None = None
    rewound_from: int | None = None
    config_sha256: str = ""
    n_saved: int = 0
    sha256: str = ""


def read_record(folder: Path) -> RunRecord:
    """Read run.json of a run folder, or its copy.

    Raises: DamagedError: both are damaged. OSError: neither is there.
    """
    paths = [path for path in (folder / RECORD_FILE, folder / COPY_FILE) if path.exists()]
    record, _ = newest_record({path: path.read_bytes() for path in paths or [folder / RECORD_FILE]})
    return record


def encode_record(record: RunRecord) -> bytes:
    """Write a record as run.json holds it, with its digest."""
    record.sha256 = digest_of(record)
    return msgspec.json.format(msgspec.json.encode(record), indent=1)


def newest_record(contents: Mapping[Path, bytes]) -> tuple[RunRecord, list[str]]:
    """Choose the newest whole record.

    Args:
        contents: of run.json and its copy, or of one of them.
    Returns: the record, and what is wrong with each that is damaged.
    Raises: DamagedError: none is whole.
    """
    whole: list[RunRecord] = []
    problems: list[DamagedError] = []
    for path, content in contents.items():
        try:
            whole.append(_record_of(content, where=path))
        except DamagedError as exc:
            problems.append(exc)
    if not whole:
        raise problems[0]
    return max(whole, key=lambda record: record.n_saved), [problem.message for problem in problems]


def _record_of(content: bytes, *, where: Path) -> RunRecord:
    try:
        record = msgspec.json.decode(content, type=RunRecord)
        digest = digest_of_content(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise DamagedError(f"{where} is damaged: {exc}.", path=str(where)) from exc
    if record.sha256 != digest:
        raise DamagedError(f"{where} is damaged: it does not have its digest.", path=str(where))
    return record


def committed_round(folder: Path) -> int:
    """Say which round the newest checkpoint stands for, from the names alone; 0 before the first."""
    places = (place_of(path.name) for path in (folder / CHECKPOINTS).glob("[0-9]*"))
    return max((place for place in places if place is not None), default=(0, 0))[1]


def place_of(name: str) -> tuple[int, int] | None:
    """Read the name of a checkpoint's folder: which commit it is, and of which closed round; None for another name."""
    found = _GENERATION.fullmatch(name)
    return (int(found[1]), int(found[2])) if found else None


def read_metrics(folder: Path) -> Iterator[Mapping[str, str]]:
    """Read the whole rows of metrics.csv, a device and round each; what an interrupted write left is passed over."""
    path = folder / METRICS_FILE
    if not path.exists():
        return
    with path.open(newline="") as file:
        yield from whole_rows(file)


def whole_rows(lines: Iterable[str]) -> Iterator[Mapping[str, str]]:
    """Read the whole rows of metrics.csv from its lines, by the columns that its own header names."""
    for row in DictReader(lines):
        # A short row has None for what is missing; a long one a key None for what is too much.
        if None not in row and None not in row.values() and row.get("round", "").isdecimal():
            yield row


def further_exits(cell: str) -> dict[str, str]:
    """Read the column ``further_exits``: accuracy by stage, as it stands there."""
    pairs = (pair.partition("=") for pair in cell.split())
    return {stage: accuracy for stage, _, accuracy in pairs}
