"""The ledger: an append-only, hash-chained list of all that shaped the weights.

One JSON object a line: {"hash": ..., "entry": {...}}; a line's hash is SHA-256 over the hash before it and the
entry's bytes. Weights are a function of initial weights, ledger and payloads.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from toolkit.errors import CheckpointError, writing

GENESIS = hashlib.sha256(b"hsee ledger 1").digest()


class Opened(msgspec.Struct, frozen=True, tag_field="kind", tag="opened"):
    """A round began; ``owed`` holds the length of each device's list, training and held-out batches.

    Where it ``gathers``, each list ends with one item more, the device's weights.
    """

    round: int
    owed: dict[str, tuple[int, int]]
    gathers: bool = False


class Applied(msgspec.Struct, frozen=True, tag_field="kind", tag="applied"):
    """A batch was trained on, or, where ``evaluated``, kept for the round's evaluation."""

    device: str
    round: int
    seq: int
    digest: str
    segment_step: int
    evaluated: bool = False


class Void(msgspec.Struct, frozen=True, tag_field="kind", tag="void"):
    """What a closing round still owed: seqs first..last of a device."""

    device: str
    round: int
    first: int
    last: int
    reason: str


class Aggregated(msgspec.Struct, frozen=True, tag_field="kind", tag="aggregated"):
    """Copies became one with these weights."""

    round: int
    weights: dict[str, int]


class Gathered(msgspec.Struct, frozen=True, tag_field="kind", tag="gathered"):
    """A device's segment and exits were taken up, to be made one with others'."""

    device: str
    round: int
    seq: int
    digest: str
    segment_step: int


class Synchronised(msgspec.Struct, frozen=True, tag_field="kind", tag="synchronised"):
    """The segments that the round gathered became one with these weights."""

    round: int
    weights: dict[str, int]


class Closed(msgspec.Struct, frozen=True, tag_field="kind", tag="closed"):
    """A round ended; nothing of it is applied after this entry."""

    round: int
    reason: str


class Planned(msgspec.Struct, frozen=True, tag_field="kind", tag="planned"):
    """A plan version took effect."""

    plan_version: int
    cuts: dict[str, str]


class Issued(msgspec.Struct, frozen=True, tag_field="kind", tag="issued"):
    """A process of a device got an incarnation."""

    device: str
    incarnation: int


class TermRaised(msgspec.Struct, frozen=True, tag_field="kind", tag="term"):
    """A coordinator process took up the run."""

    term: int


Entry = (
    Opened | Applied | Void | Aggregated | Gathered | Synchronised | Closed | Planned | Issued | TermRaised
)


class Row(msgspec.Struct, frozen=True):
    """One line of the file."""

    hash: str
    entry: msgspec.Raw


_decoder: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


class Ledger:
    """The writing end.

    Args:
        path: of the file; made if missing.
        length: rows to keep of an existing file; what stands beyond was never committed and is cut off.

    Raises: CheckpointError: the file's chain is broken within ``length``, or it is shorter.
        MachineError: the disk refuses it; so do the methods that write.
    """

    def __init__(self, path: Path, *, length: int = 0) -> None:
        self._path = path
        self.length = 0
        self.head = GENESIS
        kept = 0
        if path.exists():
            for row_bytes, digest, _ in _rows(path, length):
                kept += len(row_bytes)
                self.length += 1
                self.head = digest
        if self.length != length:
            raise CheckpointError(
                f"{path} has {self.length} rows; its checkpoint names {length}.", path=str(path)
            )
        with writing(path):
            self._file = path.open("ab")
            self._file.truncate(kept)

    def append(self, entry: Entry) -> None:
        """Add one entry; durable after the next :meth:`sync`."""
        content = msgspec.json.encode(entry)
        self.head = _chain(self.head, content)
        with writing(self._path):
            self._file.write(msgspec.json.encode(Row(self.head.hex(), msgspec.Raw(content))) + b"\n")
        self.length += 1

    def sync(self) -> None:
        """Write out and fsync what was appended."""
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close the file, which is closed whatever the disk says."""
        try:
            self.sync()
        finally:
            with suppress(OSError):  # it tries the same bytes again; the first refusal has been told
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def read_ledger(path: Path) -> list[Entry]:
    """Read and verify a whole ledger.

    Raises: CheckpointError: a row is damaged, the chain is broken, or an entry is of a kind not known here.
    """
    return [_entry(path, number, content) for number, (_, _, content) in enumerate(_rows(path, None), 1)]


def _entry(path: Path, number: int, content: msgspec.Raw) -> Entry:
    try:
        return _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CheckpointError(
            f"{path}, row {number}: no entry that this version knows: {exc}", path=str(path)
        ) from exc


def _rows(path: Path, length: int | None) -> Iterator[tuple[bytes, bytes, msgspec.Raw]]:
    head = GENESIS
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if number == length:
                return
            try:
                row = msgspec.json.decode(line, type=Row)
                head = _chain(head, bytes(row.entry))
                whole = head.hex() == row.hash
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                whole = False
            if not whole:
                raise CheckpointError(
                    f"{path}, row {number + 1}: the ledger's chain is broken.", path=str(path)
                )
            yield line, head, row.entry


def _chain(head: bytes, content: bytes) -> bytes:
    return hashlib.sha256(head + content).digest()
