"""The coordinator's checkpoints: one folder a generation, made whole beside its place and renamed into it.

The rename, then the sync of the folder, is the one commit point of a run. What is newer than the newest generation
never happened; all else in the run folder is rebuilt from it or only read by people.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from toolkit.disk import sync_folder, write_atomically
from toolkit.errors import CheckpointError, writing
from toolkit.nn.weights import load_tensors, save_tensors
from toolkit.wire.job import Job, Scalar

KEPT_GENERATIONS = 2
_STATE_FILE = "checkpoint.json"
_MODEL_FILE = "model.safetensors"
_OF_DEVICE = "of-{}.safetensors"


class CommittedState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but tensors. ``round`` is closed; the ledger counts up to ``ledger_length``."""

    schema: int = 1
    round: int
    plan_version: int
    jobs: dict[str, Job]
    lists: dict[str, tuple[int, int]]
    activation_shapes: dict[str, list[int]]
    fingerprints: dict[str, str] = {}
    strategy: str = "sequential"
    strategy_options: dict[str, Scalar] = {}
    ledger_length: int = 0
    ledger_head: str = ""

    @property
    def common(self) -> Job:
        """Any device's job, for what all jobs of a run share."""
        return next(iter(self.jobs.values()))

    @property
    def cuts(self) -> dict[str, str]:
        """Device id to cut layer."""
        return {device: job.cut for device, job in self.jobs.items()}


@dataclass(frozen=True, slots=True)
class Generation:
    """A checkpoint on disk."""

    path: Path

    @property
    def round(self) -> int:
        """The closed round it stands for."""
        return int(self.path.name)

    def state(self) -> CommittedState:
        """Read all but tensors.

        Raises: CheckpointError: damaged or of another version.
        """
        path = self.path / _STATE_FILE
        try:
            state = msgspec.json.decode(path.read_bytes(), type=CommittedState)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise CheckpointError(f"{path} can't be read: {exc}.", path=str(path)) from exc
        if state.schema != 1:
            raise CheckpointError(f"{path} has schema {state.schema}; this version reads schema 1.")
        return state

    def tensors(self) -> dict[str, torch.Tensor]:
        """Read the tensors.

        Raises: CheckpointError: damaged.
        """
        return load_tensors(self.path / _MODEL_FILE)

    def tensors_of_devices(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Read what belongs to one device each, one at a time.

        Raises: CheckpointError: damaged.
        """
        for device in self.state().jobs:
            path = self.path / _OF_DEVICE.format(device)
            if path.exists():
                yield device, load_tensors(path)


def committed_generations(folder: Path) -> list[Generation]:
    """Look for the committed generations, oldest first, changing nothing."""
    if not folder.is_dir():
        return []
    return [Generation(path) for path in sorted(folder.iterdir()) if path.name.isdigit()]


def newest_generation(folder: Path) -> Generation | None:
    """Look for the newest committed generation, changing nothing; None where there is none."""
    kept = committed_generations(folder)
    return kept[-1] if kept else None


class Checkpoints:
    """All generations of a run.

    Args:
        folder: made if missing; what an interrupted commit left is removed.

    Raises: MachineError: the disk refuses it; so does ``commit``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for unfinished in folder.glob("*.new"):
                shutil.rmtree(unfinished)

    def kept(self) -> list[Generation]:
        """Generations on disk, oldest first."""
        return committed_generations(self._folder)

    def commit(
        self,
        state: CommittedState,
        tensors: Mapping[str, torch.Tensor],
        of_devices: Iterable[tuple[str, Mapping[str, torch.Tensor]]] = (),
    ) -> None:
        """Make a generation durable, then drop those beyond :data:`KEPT_GENERATIONS`.

        Args:
            state: all but tensors.
            tensors: of the model.
            of_devices: what belongs to one device each; taken one at a time.
        """
        place = self._folder / f"{state.round:06d}"
        beside = place.with_name(place.name + ".new")
        with writing(beside):
            beside.mkdir()
        save_tensors(beside / _MODEL_FILE, tensors)
        for device, kept in of_devices:
            save_tensors(beside / _OF_DEVICE.format(device), kept)
        write_atomically(beside / _STATE_FILE, msgspec.json.format(msgspec.json.encode(state), indent=1))
        with writing(place):
            if place.exists():  # the same round again, after an interrupted end of a run
                shutil.rmtree(place)
            beside.rename(place)
            sync_folder(self._folder)
            for old in self.kept()[:-KEPT_GENERATIONS]:
                shutil.rmtree(old.path)
