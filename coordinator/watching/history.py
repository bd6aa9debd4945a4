"""The history of runs: one SQLite file a fleet's home, with one narrow table of metrics and one of events.

It is a copy. What a run folder holds decides; whatever is lost or damaged here is taken from there again, but for
the times of events, which stand nowhere else. Only coordinators write to it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import msgspec

from coordinator.store.ledger import Closed, Planned, TermRaised, Void, read_ledger
from coordinator.store.run_record import committed_round, further_exits, read_metrics, read_record
from coordinator.watching.status import DeviceStatus
from toolkit.errors import MachineError

HISTORY_FILE = "history.sqlite"
LEDGER_FILE = "ledger.jsonl"
SCHEMA = 1
BUSY_S = 1.0
"""How long another coordinator's write is waited for; one takes milliseconds."""
NOT_METRICS = frozenset({"round", "device", "cut", "further_exits"})
"""Columns of metrics.csv that say what a row is of, and the one that holds several numbers."""
_TABLES = f"""
CREATE TABLE IF NOT EXISTS run (name TEXT PRIMARY KEY, started TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS metric (
  run TEXT NOT NULL, round INTEGER NOT NULL, device TEXT NOT NULL, name TEXT NOT NULL, value REAL NOT NULL,
  PRIMARY KEY (run, round, device, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS event (
  id INTEGER PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL, at REAL, kind TEXT NOT NULL,
  device TEXT NOT NULL, text TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS device (
  name TEXT PRIMARY KEY, seen_at REAL NOT NULL, run TEXT NOT NULL, status TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS event_of_run ON event (run, round);
PRAGMA user_version = {SCHEMA};
"""

Kind = Literal["term", "plan", "lost", "round", "notice", "ended"]


class Metric(msgspec.Struct, frozen=True):
    """One number of one device in one round; its name carries the unit, as the column of metrics.csv does."""

    round: int
    device: str
    name: str
    value: float


class Event(msgspec.Struct, frozen=True):
    """Something that happened in a run.

    Attributes:
        kind: "term" a coordinator took the run up, "plan" a device got its cut, "lost" a round went on without a
            device or with less of it, "round" one closed, "notice" a sentence, "ended" the run's end.
        round: the last closed one at the time, or the one it is about.
        device: empty where it is of the whole run.
        at: Unix time, seconds; None where only the run folder knew of it.
    """

    round: int
    kind: Kind
    device: str = ""
    text: str = ""
    at: float | None = None


class Seen(NamedTuple):
    """When a device was last seen (Unix time, seconds), in which run, and how it stood then."""

    at: float
    run: str
    status: DeviceStatus


class History:
    """The tables of one fleet's home.

    Args:
        path: of the file, made if missing; None keeps it in memory. What is there and is no history of ours is set
            aside, with ``.damaged`` behind its name.

    Raises: MachineError: the file can't be opened or made; so do the methods, where it can't be read or written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._name = ":memory:" if path is None else str(path)
        if path is None:
            self._connection = self._open()
            return
        try:
            self._connection = self._open()
        except sqlite3.OperationalError as exc:  # no such folder, not ours to write, locked
            raise self._refused(exc) from exc
        except sqlite3.DatabaseError:  # not a database, of another schema, torn
            for suffix in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    Path(self._name + suffix).replace(f"{self._name}{suffix}.damaged")
            self._connection = self._open()

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """Read one run folder into a history in memory.

        Raises: CheckpointError: the folder is damaged. OSError: it can't be read.
        """
        made = cls()
        made.bring_up(folder)
        return made

    # Writing

    def bring_up(self, folder: Path) -> None:
        """Bring a run's rows to what its folder has committed: drop what is beyond, add what is missing.

        Raises: CheckpointError: the folder is damaged. OSError: it can't be read.
        """
        record, committed = read_record(folder), committed_round(folder)
        run = record.run
        if self._started(run) != record.started:  # another run had this name
            self._write(
                ("DELETE FROM metric WHERE run = ?", (run,)),
                ("DELETE FROM event WHERE run = ?", (run,)),
                ("INSERT OR REPLACE INTO run VALUES (?, ?)", (run, record.started)),
            )
        self._write(
            ("DELETE FROM metric WHERE run = ? AND round > ?", (run, committed)),
            ("DELETE FROM event WHERE run = ? AND round > ?", (run, committed)),
        )
        known = self.last_round(run)
        missing: dict[int, list[Mapping[str, str]]] = {}
        for row in read_metrics(folder):
            if known < int(row["round"]) <= committed:
                missing.setdefault(int(row["round"]), []).append(row)
        for rows in missing.values():
            self.add_round(run, rows)
        if known < committed:
            events = _events_in_ledger(folder)
            self.add_events(
                run, (e for e in events if known < e.round <= committed or (not known and not e.round))
            )

    def add_round(self, run: str, rows: Iterable[Mapping[str, str]], events: Iterable[Event] = ()) -> None:
        """Take in a closed round, as metrics.csv has it; empty cells are left out.

        A further exit's accuracy is called ``exit_accuracy_<stage>``.
        """
        metrics = [
            (run, int(row["round"]), row["device"], name, value)
            for row in rows
            for name, text in _numbers_of(row)
            if (value := _number(text)) is not None
        ]
        self._write(*(("INSERT OR REPLACE INTO metric VALUES (?, ?, ?, ?, ?)", metric) for metric in metrics))
        self.add_events(run, events)

    def add_events(self, run: str, events: Iterable[Event]) -> None:
        """Take in events, oldest first."""
        insert = "INSERT INTO event (run, round, at, kind, device, text) VALUES (?, ?, ?, ?, ?, ?)"
        self._write(*((insert, (run, e.round, e.at, e.kind, e.device, e.text)) for e in events))

    def remember(self, seen: Iterable[Seen]) -> None:
        """Write down when devices were last seen."""
        insert = "INSERT OR REPLACE INTO device VALUES (?, ?, ?, ?)"
        self._write(
            *((insert, (s.status.device, s.at, s.run, msgspec.json.encode(s.status).decode())) for s in seen)
        )

    def forget(self, device: str) -> None:
        """Forget when a device was last seen; what it did in runs stays."""
        self._write(("DELETE FROM device WHERE name = ?", (device,)))

    # Reading

    def last_round(self, run: str) -> int:
        """Say the last round of a run that is here; 0 where there is none."""
        ((last,),) = self._read("SELECT max(round) FROM metric WHERE run = ?", run)
        return last or 0

    def is_complete(self, folder: Path) -> bool:
        """Whether all that a run folder has committed is here.

        Raises: CheckpointError: the folder is damaged. OSError: it can't be read.
        """
        record = read_record(folder)
        return self._started(record.run) == record.started and self.last_round(record.run) == committed_round(
            folder
        )

    def metrics(self, run: str, *, device: str | None = None, round_: int | None = None) -> list[Metric]:
        """Read a run's numbers, by round, device and name; those of one device or round if asked for."""
        query = (
            "SELECT round, device, name, value FROM metric WHERE run = ? AND (? IS NULL OR device = ?)"
            " AND (? IS NULL OR round = ?) ORDER BY round, device, name"
        )
        return [Metric(*row) for row in self._read(query, run, device, device, round_, round_)]

    def events(self, run: str) -> list[Event]:
        """Read a run's events, oldest first."""
        query = "SELECT round, kind, device, text, at FROM event WHERE run = ? ORDER BY id"
        return [Event(*row) for row in self._read(query, run)]

    def seen(self) -> dict[str, Seen]:
        """Read when each device was last seen."""
        rows = self._read("SELECT name, seen_at, run, status FROM device ORDER BY name")
        return {
            name: Seen(at, run, msgspec.json.decode(status, type=DeviceStatus))
            for name, at, run, status in rows
        }

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._name, timeout=BUSY_S, isolation_level=None)
        try:
            version = _known_schema(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(
                "PRAGMA synchronous = NORMAL"
            )  # a power cut loses rows, which are taken in again
            if not version:
                connection.executescript(_TABLES)
        except BaseException:
            connection.close()
            raise
        return connection

    def _started(self, run: str) -> str | None:
        rows = self._read("SELECT started FROM run WHERE name = ?", run)
        return str(rows[0][0]) if rows else None

    def _read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._translated():
            return self._connection.execute(query, values).fetchall()

    def _write(self, *statements: tuple[str, tuple[object, ...]]) -> None:
        """Run statements, all or none."""
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for statement, values in statements:
                    self._connection.execute(statement, values)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise self._refused(exc) from exc

    def _refused(self, exc: sqlite3.Error) -> MachineError:
        return MachineError(
            f"The history {self._name} can't be used: {exc}.",
            hint="It is a copy of what the run folders hold: look at disk and rights, or remove it.",
            path=self._name,
        )


def _known_schema(connection: sqlite3.Connection) -> int:
    """The file's schema, 0 for a new one.

    Raises: sqlite3.DatabaseError: another version's, or no database.
    """
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    if version not in (0, SCHEMA):
        raise sqlite3.DatabaseError(f"It has schema {version}; this version writes {SCHEMA}.")
    return int(version)


def _events_in_ledger(folder: Path) -> Iterator[Event]:
    """What a ledger knows of a run's events; it knows no time of day."""
    closed = 0
    for entry in read_ledger(folder / LEDGER_FILE):
        match entry:
            case TermRaised(term=term):
                yield Event(closed, "term", text=f"term {term}")
            case Planned(cuts=cuts):
                yield from (Event(closed, "plan", device, f"cut after {cut}") for device, cut in cuts.items())
            case Void(device=device, round=round_, first=first, last=last, reason=reason):
                yield Event(round_, "lost", device, lost_text(last - first + 1, reason))
            case Closed(round=round_, reason=reason):
                closed = round_
                yield Event(round_, "round", text=reason)
            case _:
                pass


def _numbers_of(row: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield from ((name, text) for name, text in row.items() if name not in NOT_METRICS)
    for stage, accuracy in further_exits(row.get("further_exits", "")).items():
        yield f"exit_accuracy_{stage}", accuracy


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # an empty cell, or a column of words
        return None


def lost_text(n_void: int, reason: str) -> str:
    """Say what a round had to do without."""
    return f"{n_void} batches never came: {reason}"
