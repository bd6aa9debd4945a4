"""The ledger: an append-only, hash-chained list of all that shaped the weights.

One JSON object a line: {"hash": ..., "entry": {...}}; a line's hash is SHA-256 over the hash before it and the
entry's bytes. Weights are a function of initial weights, ledger and payloads.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from toolkit.disk import SYSTEM_DISK, Disk
from toolkit.errors import DamagedError, MachineError, writing

HELD_BYTES = 1 << 20
"""Rows are handed to the disk when so much has gathered, or at a sync."""
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


class Refused(msgspec.Struct, frozen=True, tag_field="kind", tag="refused"):
    """A batch came whole and was not fit to train on; it counts as delivered and shaped nothing."""

    device: str
    round: int
    seq: int
    digest: str
    reason: str


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


class StateLost(msgspec.Struct, frozen=True, tag_field="kind", tag="state_lost"):
    """A device came back without what it had learned; it goes on with a fresh segment."""

    device: str
    incarnation: int


class Rewound(msgspec.Struct, frozen=True, tag_field="kind", tag="rewound"):
    """An operator took the run back to a checkpoint before the newest; entries behind it were cut off."""

    round: int
    term: int


Entry = (
    Opened
    | Applied
    | Refused
    | Void
    | Aggregated
    | Gathered
    | Synchronised
    | Closed
    | Planned
    | Issued
    | TermRaised
    | StateLost
    | Rewound
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
        head: hash of the last row to keep, in hexadecimal; empty to take any.
        disk: that holds it.

    Raises: DamagedError: the file's chain is broken within ``length``, it is shorter, or of another history; it
        is left as it is.
        MachineError: the disk refuses it; so do the methods that write.
    """

    def __init__(self, path: Path, *, length: int = 0, head: str = "", disk: Disk = SYSTEM_DISK) -> None:
        self._path = path
        self._disk = disk
        self.length = 0
        self.head = GENESIS
        self._held: list[bytes] = []
        self._n_held_bytes = 0
        self._failed: MachineError | None = None
        kept = 0
        for line, digest, _ in _rows(path, length, disk):
            kept += len(line)
            self.length += 1
            self.head = digest
        if self.length != length:
            raise DamagedError(
                f"{path} has {self.length} rows; its checkpoint names {length}.", path=str(path)
            )
        if head and self.head.hex() != head:
            raise DamagedError(f"{path} is not the ledger that its checkpoint names.", path=str(path))
        with writing(path):
            if disk.exists(path):
                disk.cut(path, kept)
            else:
                disk.write(path, b"")
                disk.sync_folder(path.parent)

    def append(self, entry: Entry) -> None:
        """Add one entry; durable after the next :meth:`sync`."""
        content = msgspec.json.encode(entry)
        self.head = _chain(self.head, content)
        line = msgspec.json.encode(Row(self.head.hex(), msgspec.Raw(content))) + b"\n"
        self._held.append(line)
        self._n_held_bytes += len(line)
        self.length += 1
        if self._n_held_bytes >= HELD_BYTES:
            self._write_out()

    def sync(self) -> None:
        """Write out and fsync what was appended. What a disk refused once is never tried again."""
        self._write_out()
        with self._once(), writing(self._path):
            self._disk.sync(self._path)

    def close(self) -> None:
        """Sync what was appended.

        Raises: MachineError: the disk refuses it, now or before.
        """
        self.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _write_out(self) -> None:
        if self._failed is not None:
            raise self._failed
        content = b"".join(self._held)
        self._held, self._n_held_bytes = [], 0
        with self._once(), writing(self._path):
            self._disk.append(self._path, content)

    @contextmanager
    def _once(self) -> Iterator[None]:
        """After an error of the disk nobody knows what it holds: a second try that succeeds would prove nothing."""
        try:
            yield
        except MachineError as exc:
            self._failed = exc
            raise


def read_ledger(path: Path, *, disk: Disk = SYSTEM_DISK) -> list[Entry]:
    """Read and verify a whole ledger.

    Raises: DamagedError: a row is damaged, the chain is broken, or an entry is of a kind not known here.
    """
    return [
        _entry(path, number, content) for number, (_, _, content) in enumerate(_rows(path, None, disk), 1)
    ]


def _entry(path: Path, number: int, content: msgspec.Raw) -> Entry:
    try:
        return _decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise DamagedError(
            f"{path}, row {number}: no entry that this version knows: {exc}", path=str(path)
        ) from exc


def _rows(path: Path, length: int | None, disk: Disk) -> Iterator[tuple[bytes, bytes, msgspec.Raw]]:
    head = GENESIS
    if length == 0 or not disk.exists(path):
        return
    for number, line in enumerate(io.BytesIO(disk.read(path))):
        if number == length:
            return
        try:
            row = msgspec.json.decode(line, type=Row)
            head = _chain(head, bytes(row.entry))
            whole = head.hex() == row.hash and line.endswith(b"\n")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            whole = False
        if not whole:
            raise DamagedError(f"{path}, row {number + 1}: the ledger's chain is broken.", path=str(path))
        yield line, head, row.entry


def _chain(head: bytes, content: bytes) -> bytes:
    return hashlib.sha256(head + content).digest()
