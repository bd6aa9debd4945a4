"""What a device keeps of a run on its own disk.

training.safetensors   segment, exit head, momentum and cursor: what training goes on from
segment.* held_out.npz the held segment, best so far: what export reads (toolkit/nn/segment_record.py)
fenced                 a newer process speaks for this device; says when
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.disk import FileLock, write_atomically
from toolkit.errors import CheckpointError, RunError
from toolkit.nn.segment_record import HELD_OUT_FILE, RECORD_FILE, WEIGHTS_FILE, SegmentRecord, read_record
from toolkit.nn.weights import load_tensors, save_tensors
from toolkit.wire.job import Job

MAX_HELD_OUT = 10_000
"""Held-out samples kept for export: parity is checked on no more (``promises.md`` O6)."""
_CURSOR = "cursor"


class DeviceFolder:
    """The files of one device in one run, locked for this process.

    Args:
        path: of the folder; made if missing.

    Raises: RunError: another process of this device holds it. MachineError: the disk refuses it; so do the
        methods that write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        taken = RunError(
            f"Another agent process of this device is at work in {path}.",
            hint="One device id is one process: stop the other, or give this one another --id.",
        )
        self._lock = FileLock(path / "lock", taken=taken)

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

    def load_training(self) -> tuple[dict[str, torch.Tensor], tuple[int, int, int]] | None:
        """Read what training goes on from.

        Returns: tensors and (round, seq, steps), or None where there is nothing yet.
        Raises: CheckpointError: damaged.
        """
        path = self.path / "training.safetensors"
        if not path.exists():
            return None
        tensors = load_tensors(path)
        round_, seq, n_steps = tensors.pop(_CURSOR).tolist()
        return tensors, (round_, seq, n_steps)

    def save_training(self, tensors: Mapping[str, torch.Tensor], cursor: tuple[int, int, int]) -> None:
        """Write what training goes on from, atomically."""
        save_tensors(self.path / "training.safetensors", {**tensors, _CURSOR: torch.tensor(cursor)})

    def best_accuracy(self) -> float:
        """Held-out accuracy of the held segment; -1 where there is none yet."""
        return read_record(self.path).exit_accuracy if (self.path / RECORD_FILE).exists() else -1.0

    def save_best(self, tensors: Mapping[str, torch.Tensor], record: SegmentRecord) -> None:
        """Replace the held segment; its record comes last, so that it never speaks of weights that are not there."""
        save_tensors(self.path / WEIGHTS_FILE, tensors)
        write_atomically(self.path / RECORD_FILE, msgspec.json.format(msgspec.json.encode(record), indent=1))

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
