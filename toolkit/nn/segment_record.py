"""The held segment: what a device keeps of a run on its own disk, and what export reads.

segment.safetensors   "segment.<name>" and "exit_head.<name>", and where the job asks for all exits
                      "shallow_heads.<stage>.<name>": the best by held-out accuracy of the exit at the cut
segment.json          this record
held_out.npz          x (N, ...) float32 not normalised, y (N,) int64 in the run's class order
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from toolkit.errors import CheckpointError, DamagedError
from toolkit.sealed import digest_of, digest_of_content
from toolkit.wire.job import Job

RECORD_FILE = "segment.json"
WEIGHTS_FILE = "segment.safetensors"
HELD_OUT_FILE = "held_out.npz"


class SegmentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Where a held segment comes from and how good it was there; ``shallow_accuracy`` by stage, of exits before the cut.

    Attributes:
        sha256: see :func:`toolkit.sealed.digest_of`; a file always has it.
    """

    schema: int = 1
    device: str
    job: Job
    round: int
    exit_accuracy: float
    n_eval: int
    software: dict[str, str]
    shallow_accuracy: dict[str, float] = {}
    sha256: str = ""


def encode_record(record: SegmentRecord) -> bytes:
    """Write a record as its file holds it, with its digest."""
    sealed = msgspec.structs.replace(record, sha256=digest_of(record))
    return msgspec.json.format(msgspec.json.encode(sealed), indent=1)


def read_record(folder: Path) -> SegmentRecord:
    """Read the record of a held segment.

    Raises: CheckpointError: there is none, or it is damaged or of another version.
    """
    path = folder / RECORD_FILE
    try:
        content = path.read_bytes()
        record = msgspec.json.decode(content, type=SegmentRecord)
        digest = digest_of_content(content)
    except FileNotFoundError as exc:
        raise CheckpointError(
            f"{folder} holds no trained segment: {RECORD_FILE} is missing.",
            hint="Export takes a run folder in which a device finished at least one round.",
            path=str(path),
        ) from exc
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CheckpointError(f"{path} can't be read: {exc}.", path=str(path)) from exc
    if record.schema != 1:
        raise CheckpointError(
            f"{path} has schema {record.schema}; this version reads schema 1.", path=str(path)
        )
    if record.sha256 != digest:
        raise DamagedError(f"{path} is damaged: it does not have its digest.", path=str(path))
    return record
