"""What a folder tells of its run or runs, in the shape that drawings take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from coordinator.store.run_record import (
    CHECKPOINTS,
    METRICS_FILE,
    RECORD_FILE,
    place_of,
    read_metrics,
    read_record,
)
from toolkit.errors import CheckpointError, DamagedError, UsageError
from toolkit.simulate.results import CutInference, SeedResult, kept_inference, kept_result
from toolkit.wire.job import Job


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """One row of metrics.csv: a device in a round; None where nothing was measured."""

    round: int
    device: str
    cut: str
    up_bytes: int
    exit_accuracy: float | None = None
    server_accuracy: float | None = None
    exit_loss_nats: float | None = None
    server_loss_nats: float | None = None
    weights_up_bytes: int = 0
    down_bytes: int = 0
    further_exits: str = ""


class Committed(msgspec.Struct, frozen=True):
    """What drawings take of a checkpoint: every device's job, and the shape of its activations."""

    jobs: dict[str, Job]
    activation_shapes: dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class RunTold:
    """One run.

    Attributes:
        name: of it.
        rounds: in order; empty for a baseline.
        jobs: by device; empty where nothing was committed.
        result: of a simulation that came to its end.
        inference: curves by cut; empty but for a simulation of a strategy.
    """

    name: str
    rounds: Sequence[Told]
    jobs: Mapping[str, Job]
    activation_shapes: Mapping[str, Sequence[int]]
    result: SeedResult | None
    inference: Sequence[CutInference]

    @property
    def cuts(self) -> dict[str, str]:
        """Device to cut."""
        return {device: job.cut for device, job in self.jobs.items()} or {
            row.device: row.cut for row in self.rounds
        }


def read_runs(folder: Path) -> list[RunTold]:
    """Read a run folder, or the runs of a simulation of several seeds.

    Raises: UsageError: it holds no run. CheckpointError: what it holds is damaged.
    """
    seeds = sorted(folder.glob("seed-*"), key=lambda path: (len(path.name), path.name))
    runs = [_read_run(path) for path in seeds or [folder] if _is_run(path)]
    if not runs:
        raise UsageError(
            f"{folder} is no run folder: it holds neither {RECORD_FILE} nor a simulation's result.",
            hint="Runs stand in the folder 'runs'.",
        )
    return runs


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in (RECORD_FILE, METRICS_FILE, "result.json"))


def _read_run(path: Path) -> RunTold:
    name = read_record(path).run if (path / RECORD_FILE).exists() else path.name
    committed = _committed(path)
    try:
        result, inference = kept_result(path), kept_inference(path)
        rows = [
            msgspec.convert({name: text for name, text in row.items() if text}, Told, strict=False)
            for row in read_metrics(path)
        ]
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise DamagedError(f"What {path} tells of its run is damaged: {exc}.", path=str(path)) from exc
    return RunTold(
        name=name,
        rounds=rows,
        jobs=committed.jobs,
        activation_shapes=committed.activation_shapes,
        result=result,
        inference=inference,
    )


def _committed(path: Path) -> Committed:
    """Read the newest checkpoint's own words, without its tensors."""
    generations = [at for at in (path / CHECKPOINTS).glob("[0-9]*") if place_of(at.name) is not None]
    if not generations:
        return Committed({}, {})
    newest = max(generations, key=lambda at: place_of(at.name) or (0, 0)) / "checkpoint.json"
    try:
        return msgspec.json.decode(newest.read_bytes(), type=Committed)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CheckpointError(f"{newest} can't be read: {exc}.", path=str(newest)) from exc
