"""A run as a folder that a person can read without the tool.

config.toml       the settings it ran with         plan.toml        every device's cut and why
metrics.csv       one row a round and device       run.json         status, term, times (and run-copy.json)
ledger.jsonl      what shaped the weights          checkpoints/     committed generations
profiles/         as the devices sent them         env.json         versions and machine
devices/<id>/     what agents on this machine hold
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec

from coordinator.store.checkpoints import KEPT_GENERATIONS, Checkpoints, Generation
from coordinator.store.ledger import Ledger
from coordinator.store.round_report import RoundReport
from coordinator.store.run_record import (
    CHECKPOINTS,
    COPY_FILE,
    METRICS,
    METRICS_FILE,
    RECORD_FILE,
    RunRecord,
    Status,
    encode_record,
    newest_record,
    whole_rows,
)
from toolkit.disk import SYSTEM_DISK, Disk, make_folder_durably, write_atomically
from toolkit.errors import CheckpointError, MachineError, RunError, writing
from toolkit.failpoints import failpoint
from toolkit.wire.seats import MAX_SUPERSEDED

NONCE_BYTES = 16
LEDGER_FILE = "ledger.jsonl"
CONFIG_FILE = "config.toml"


class RunFolder:
    """The files of one run, locked for this process.

    Args:
        path: of the folder; made if missing.
        run: the run's id.
        disk: that holds it.
        draw: bytes at random.

    Raises: RunError: another coordinator holds it. CheckpointError: what it holds is damaged.
        MachineError: the disk refuses it; so do the methods that write.

    Attributes:
        boot_nonce: which process this is among all that take up the run from this folder or a copy, in hexadecimal.
        damage: what was found damaged and could be done without, a sentence each.
    """

    def __init__(
        self,
        path: Path,
        run: str,
        *,
        disk: Disk = SYSTEM_DISK,
        draw: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.path = path
        self.disk = disk
        self.boot_nonce = draw(NONCE_BYTES).hex()
        self.damage: list[str] = []
        taken = RunError(
            f"Another coordinator is at work in {path}.",
            hint="Stop it first, or start a run of another name.",
        )
        make_folder_durably(path, disk=disk)
        self._lock = disk.hold(path / "lock", taken=taken)
        try:
            self.record = self._read_record(run)
            self.checkpoints = Checkpoints(path / CHECKPOINTS, disk=disk)
            self._finish_rewind()
        except BaseException:
            self._lock.close()
            raise

    def take_up(self) -> int:
        """Raise the term durably, before anything is said to anybody.

        Returns: the new term.
        """
        self.record.term += 1
        self.record.started = self.record.started or _now()
        self.save_record()
        failpoint("coordinator.term_raised")
        return self.record.term

    def issue_incarnation(self, device: str, boot_nonce: bytes) -> int:
        """Issue the next incarnation of a device to its newest process, durably; the one before is superseded."""
        record = self.record
        number = record.incarnations[device] = record.incarnations.get(device, 0) + 1
        before = record.nonces.get(device)
        if before is not None:
            record.superseded[device] = [*record.superseded.get(device, []), before][-MAX_SUPERSEDED:]
        record.nonces[device] = boot_nonce.hex()
        self.save_record()
        failpoint("coordinator.incarnation_issued")
        return number

    def set_status(self, status: Status, detail: str = "") -> None:
        """Say where the run stands."""
        self.record.status = status
        self.record.detail = detail
        self.record.ended = _now() if status in ("finished", "failed", "stopped") else ""
        self.save_record()

    def save_record(self) -> None:
        """Write run.json and its copy: one of them is whole at any moment."""
        self.record.n_saved += 1
        content = encode_record(self.record)
        for name in (COPY_FILE, RECORD_FILE):
            self._write(name, content)

    def open_checkpoint(self) -> tuple[Generation | None, Ledger]:
        """Find the newest generation that is whole, its part of the ledger too, and cut the ledger back to it.

        Newer ones that are damaged are passed over: what they held is trained again.

        Returns: no generation where nothing was committed yet.
        Raises: CheckpointError: there are generations, and none is whole.
        """
        path = self.path / LEDGER_FILE
        problems: list[CheckpointError] = []
        damaged: list[Generation] = []
        for generation in reversed(self.checkpoints.kept()):
            try:
                generation.check()
                state = generation.state()
                ledger = Ledger(path, length=state.ledger_length, head=state.ledger_head, disk=self.disk)
            except CheckpointError as exc:
                problems.append(exc)
                damaged.append(generation)
                continue
            for each in damaged:
                self.checkpoints.pass_over(each)
            self.damage.extend(f"{problem.message} The checkpoint before it is used." for problem in problems)
            return generation, ledger
        if problems:
            raise problems[0]
        return None, Ledger(path, disk=self.disk)

    def two_newest(self) -> tuple[Generation, Generation]:
        """The checkpoint that a rewind goes back to, and the newest.

        Raises: RunError: there are not two. CheckpointError: the older one is damaged.
        """
        kept = self.checkpoints.kept()
        if len(kept) < KEPT_GENERATIONS:
            raise RunError(
                f"{self.path} holds {len(kept)} checkpoints; to rewind takes two.",
                hint="A run keeps its newest two. Start another run to begin from the start.",
            )
        before, newest = kept
        before.check()
        return before, newest

    def rewind(self) -> None:
        """Take the run back to the checkpoint before the newest, which is set aside; the next start writes that down.

        That run.json, or its copy, says so is the one point from which on it counts: whoever opens the folder next
        sets the newest aside, if this process can't.

        Raises: RunError, CheckpointError: as :meth:`two_newest`; nothing was changed.
            MachineError: the disk refuses it. Where neither run.json nor its copy says so, nothing was changed.
        """
        before, newest = self.two_newest()
        was = msgspec.structs.replace(self.record)
        self.record.rewound_to, self.record.rewound_from = before.round, newest.number
        self.record.rounds_closed = before.round
        self.record.status, self.record.detail = "stopped", f"Rewound to the end of round {before.round}."
        try:
            self.save_record()
        except MachineError as exc:
            if self._read_record(was.run).rewound_from != newest.number:
                self.record = was
                raise
            if exc.facts.get("errno") == errno.EIO:  # what is read back may not be on the disk
                raise
        with suppress(MachineError):  # it counts; what is left to do is done when the folder is opened next
            self._finish_rewind()

    @property
    def unrecorded_rewind(self) -> int | None:
        """The round that the run was taken back to, where no commit holds the ledger's entry of it."""
        kept, number = self.checkpoints.kept(), self.record.rewound_from
        is_committed = bool(kept) and number is not None and kept[-1].number > number
        return None if is_committed else self.record.rewound_to

    def _finish_rewind(self) -> None:
        for generation in self.checkpoints.kept():
            if generation.number == self.record.rewound_from:
                self.checkpoints.pass_over(generation)

    def write_text(self, name: str, text: str) -> Path:
        """Write a file that people read; ``name`` may hold one folder."""
        return self._write(name, text.encode())

    def write_config(self, text: str) -> None:
        """Write config.toml. Whether it was another one than this run wrote last is told as damage: it counts as it stands."""
        path = self.path / CONFIG_FILE
        known = self.record.config_sha256
        if known and self.disk.exists(path) and _sha256(self.disk.read(path)) != known:
            self.damage.append(f"{path} is not what this run wrote. Its settings are used as they stand.")
        self.record.config_sha256 = _sha256(text.encode())
        self.write_text(CONFIG_FILE, text)

    def write_environment(self) -> None:
        """Write env.json: versions and machine, for whoever repeats the run."""
        environment = {
            "python": sys.version.split()[0],
            "machine": platform.machine(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "packages": {
                name: metadata.version(name)
                for name in ("hsee", "torch", "numpy", "paho-mqtt", "msgspec", "safetensors")
            },
        }
        self.write_text("env.json", msgspec.json.format(msgspec.json.encode(environment), indent=1).decode())

    def write_metrics(self, report: RoundReport, cuts: Mapping[str, str]) -> None:
        """Add a round's rows to metrics.csv."""
        path = self.path / METRICS_FILE
        rows = metric_rows(report, cuts)
        with writing(path):
            if not self.disk.exists(path):
                rows = [METRICS, *rows]
            self.disk.append(path, _csv_of(rows))

    def metrics(self) -> list[Mapping[str, str]]:
        """Read the whole rows of metrics.csv; none where it is not there yet."""
        path = self.path / METRICS_FILE
        if not self.disk.exists(path):
            return []
        return list(whole_rows(io.StringIO(self.disk.read(path).decode(errors="replace"))))

    def trim_metrics(self, rounds_closed: int) -> None:
        """Drop rows of rounds that a resumed run will close again, and what an interrupted write left."""
        if not self.disk.exists(self.path / METRICS_FILE):
            return
        kept = [row for row in self.metrics() if int(row["round"]) <= rounds_closed]
        # A run that an earlier version began gets the columns that it lacks, empty.
        whole = (tuple(row.get(name, "") for name in METRICS) for row in kept)
        self._write(METRICS_FILE, _csv_of([METRICS, *whole]))

    def close(self) -> None:
        """Let the folder go."""
        self._lock.close()

    def _write(self, name: str, content: bytes) -> Path:
        path = self.path / name
        make_folder_durably(path.parent, disk=self.disk)
        write_atomically(path, content, disk=self.disk)
        return path

    def _read_record(self, run: str) -> RunRecord:
        paths = [self.path / name for name in (RECORD_FILE, COPY_FILE)]
        contents = {path: self.disk.read(path) for path in paths if self.disk.exists(path)}
        if not contents:
            return RunRecord(run=run)
        record, problems = newest_record(contents)
        self.damage.extend(f"{problem} The other copy is used." for problem in problems)
        if record.run != run:
            raise RunError(f"{self.path} holds the run {record.run!r}, not {run!r}.")
        return record


def metric_rows(report: RoundReport, cuts: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Write a closed round as rows of metrics.csv, a device each, in the order of ``METRICS``."""
    return [
        (
            str(report.round),
            device.device,
            cuts[device.device],
            *map(_rounded, (device.exit_accuracy, device.server_accuracy)),
            *map(_rounded, (device.exit_loss, device.server_loss)),
            *map(str, (device.n_steps, device.n_void, device.n_eval)),
            *map(str, (device.n_bytes, device.weights_bytes, device.lowered_bytes)),
            f"{report.seconds:.3f}",
            " ".join(f"{stage}={_rounded(accuracy)}" for stage, accuracy in device.further_exits.items()),
        )
        for device in report.devices
    ]


def _csv_of(rows: Iterable[tuple[str, ...]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _rounded(number: float | None) -> str:
    return "" if number is None else f"{number:.4f}"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
