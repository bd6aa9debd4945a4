"""What a device keeps of a run on its own disk.

training.safetensors   segment, exit head, momentum and cursor: what training goes on from
training.before.*      the same as it was saved before: read if the newer one is damaged
segment.* held_out.npz the held segment, best so far: what export reads (toolkit/nn/segment_record.py)
fenced                 a newer process speaks for this device; says when
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.disk import SYSTEM_DISK, Disk, make_folder_durably, write_atomically
from toolkit.errors import CheckpointError, RunError, writing
from toolkit.failpoints import failpoint
from toolkit.nn.segment_record import (
    HELD_OUT_FILE,
    RECORD_FILE,
    WEIGHTS_FILE,
    SegmentRecord,
    encode_record,
    read_record,
)
from toolkit.nn.weights import save_tensors
from toolkit.wire.job import Job

MAX_HELD_OUT = 10_000
"""Held-out samples kept for export: parity is checked on no more (``promises.md`` O6)."""
TRAINING_FILE, BEFORE_FILE = "training.safetensors", "training.before.safetensors"

T = TypeVar("T")


class DeviceFolder:
    """The files of one device in one run, locked for this process.

    Args:
        path: of the folder; made if missing.
        disk: that holds it.

    Raises: RunError: another process of this device holds it. MachineError: the disk refuses it; so do the
        methods that write.
    """

    def __init__(self, path: Path, *, disk: Disk = SYSTEM_DISK) -> None:
        self.path = path
        self._disk = disk
        taken = RunError(
            f"Another agent process of this device is at work in {path}.",
            hint="One device id is one process: stop the other, or give this one another --id.",
        )
        make_folder_durably(path, disk=disk)
        self._lock = disk.hold(path / "lock", taken=taken)

    def check_job(self, job: Job) -> None:
        """Check that what is held here was trained for this job, and not for an earlier run of the same name.

        Raises: CheckpointError: it was not.
        """
        if (self.path / RECORD_FILE).exists() and read_record(self.path).job != job:
            raise CheckpointError(
                f"{self.path} holds what was trained for another run named {job.run!r}.",
                hint="Start the run under a name of its own, or move that folder away.",
                path=str(self.path),
            )

    def load_training(self, load: Callable[[bytes, Path], T]) -> T | None:
        """Go on from what was saved last; from what was saved before, if that is damaged.

        Args:
            load: puts content back, or raises CheckpointError and changes nothing.
        Returns: what ``load`` gave, or None where there is nothing yet.
        Raises: CheckpointError: both are damaged.
        """
        problem: CheckpointError | None = None
        for name in (TRAINING_FILE, BEFORE_FILE):
            path = self.path / name
            if not self._disk.exists(path):
                continue
            try:
                return load(self._disk.read(path), path)
            except CheckpointError as exc:
                problem = problem or exc
        if problem is not None:
            raise problem
        return None

    def save_training(self, content: bytes) -> None:
        """Write what training goes on from, atomically; what was saved before it is kept too.

        Raises: MachineError: the disk refuses it; what was saved last is whole.
        """
        path, disk = self.path / TRAINING_FILE, self._disk
        beside = path.with_name(path.name + ".new")
        with writing(path):
            disk.write(beside, content)
            failpoint("device.temp_written")
            disk.sync(beside)
            failpoint("device.synced")
            if disk.exists(path):
                disk.rename(path, self.path / BEFORE_FILE)
            disk.rename(beside, path)
            failpoint("device.renamed")
            disk.sync_folder(self.path)

    def best_accuracy(self) -> float:
        """Held-out accuracy of the held segment; -1 where there is none yet."""
        return read_record(self.path).exit_accuracy if (self.path / RECORD_FILE).exists() else -1.0

    def save_best(self, tensors: Mapping[str, torch.Tensor], record: SegmentRecord) -> None:
        """Replace the held segment; its record comes last, so that it never speaks of weights that are not there."""
        save_tensors(self.path / WEIGHTS_FILE, tensors)
        write_atomically(self.path / RECORD_FILE, encode_record(record))

    def save_held_out(self, x: NDArray[np.float32], y: NDArray[np.int64]) -> None:
        """Keep held-out samples for export, raw, in the run's class order."""
        buffer = io.BytesIO()
        np.savez(buffer, x=x[:MAX_HELD_OUT], y=y[:MAX_HELD_OUT])
        write_atomically(self.path / HELD_OUT_FILE, buffer.getvalue())

    def write_fenced(self, detail: str) -> None:
        """Remember that another process took over."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_atomically(self.path / "fenced", f"{now} {detail}\n".encode())

    def close(self) -> None:
        """Let the folder go."""
        self._lock.close()
