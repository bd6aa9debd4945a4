"""A run as a folder that a person can read without the tool.

config.toml       the settings it ran with         plan.toml        every device's cut and why
metrics.csv       one row a round and device       run.json         status, term, times
ledger.jsonl      what shaped the weights          checkpoints/     committed generations
profiles/         as the devices sent them         env.json         versions and machine
devices/<id>/     what agents on this machine hold
"""

from __future__ import annotations

import csv
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import msgspec

from coordinator.checkpoints import Checkpoints
from coordinator.ledger import Ledger
from coordinator.rounds import RoundReport
from coordinator.run_record import METRICS, METRICS_FILE, RECORD_FILE, RunRecord, Status, read_record
from toolkit.disk import FileLock, write_atomically
from toolkit.errors import CheckpointError, RunError, writing


class RunFolder:
    """The files of one run, locked for this process.

    Args:
        path: of the folder; made if missing.
        run: the run's id.

    Raises: RunError: another coordinator holds it. CheckpointError: what it holds is damaged.
        MachineError: the disk refuses it; so do the methods that write.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path = path
        taken = RunError(
            f"Another coordinator is at work in {path}.",
            hint="Stop it first, or start a run of another name.",
        )
        self._lock = FileLock(path / "lock", taken=taken)
        try:
            self.record = self._read_record(run)
            self.checkpoints = Checkpoints(path / "checkpoints")
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
        return self.record.term

    def issue_incarnation(self, device: str) -> int:
        """Issue the next incarnation of a device, durably."""
        number = self.record.incarnations.get(device, 0) + 1
        self.record.incarnations[device] = number
        self.save_record()
        return number

    def set_status(self, status: Status, detail: str = "") -> None:
        """Say where the run stands."""
        self.record.status = status
        self.record.detail = detail
        self.record.ended = _now() if status in ("finished", "failed", "stopped") else ""
        self.save_record()

    def save_record(self) -> None:
        """Write run.json."""
        write_atomically(
            self.path / RECORD_FILE, msgspec.json.format(msgspec.json.encode(self.record), indent=1)
        )

    def open_ledger(self) -> Ledger:
        """Open the ledger at the newest checkpoint; rows beyond it are cut off.

        Raises: CheckpointError: ledger and checkpoint don't agree.
        """
        generations = self.checkpoints.kept()
        path = self.path / "ledger.jsonl"
        if not generations:
            return Ledger(path)
        state = generations[-1].state()
        ledger = Ledger(path, length=state.ledger_length)
        if ledger.head.hex() != state.ledger_head:
            ledger.close()
            raise CheckpointError(
                f"{path} is not the ledger that the newest checkpoint names.", path=str(path)
            )
        return ledger

    def write_text(self, name: str, text: str) -> Path:
        """Write a file that people read; ``name`` may hold one folder."""
        path = self.path / name
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        write_atomically(path, text.encode())
        return path

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
        fresh = not path.exists()
        with writing(path), path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(METRICS)
            writer.writerows(metric_rows(report, cuts))

    def trim_metrics(self, rounds_closed: int) -> None:
        """Drop rows of rounds that a resumed run will close again, and what an interrupted write left."""
        path = self.path / METRICS_FILE
        if not path.exists():
            return
        with path.open(newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == len(METRICS) and row[0].isdecimal()]
        lines = [METRICS, *(row for row in rows if int(row[0]) <= rounds_closed)]
        write_atomically(path, "".join(",".join(line) + "\r\n" for line in lines).encode())

    def close(self) -> None:
        """Let the folder go."""
        self._lock.close()

    def _read_record(self, run: str) -> RunRecord:
        if not (self.path / RECORD_FILE).exists():
            return RunRecord(run=run)
        record = read_record(self.path)
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
            *map(str, (device.n_steps, device.n_void, device.n_eval, device.n_bytes)),
            f"{report.seconds:.3f}",
        )
        for device in report.devices
    ]


def _rounded(number: float | None) -> str:
    return "" if number is None else f"{number:.4f}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
