"""The coordinator's checkpoints: one folder a generation, made whole beside its place and renamed into it.

The rename, then the sync of the folder, is the one commit point of a run. What is newer than the newest generation
never happened; all else in the run folder is rebuilt from it or only read by people. A generation names the digest of
each of its files (``sha256sum --check SHA256SUMS`` reads it too): one that does not hold them any more is passed over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from coordinator.store.run_record import place_of
from coordinator.store.server_spec import ServerSpec
from toolkit.disk import SYSTEM_DISK, Disk, make_folder_durably
from toolkit.errors import CheckpointError, DamagedError, writing
from toolkit.failpoints import failpoint
from toolkit.wire.job import Job, Scalar

if TYPE_CHECKING:
    import torch

KEPT_GENERATIONS = 2
MODEL_FILE = "model.safetensors"
_STATE_FILE = "checkpoint.json"
_SUMS_FILE = "SHA256SUMS"
_ASIDE = ".aside"


class OpenDevice(msgspec.Struct, frozen=True, kw_only=True):
    """Where a device stood in a round that was open at the commit, and its sums for the report.

    ``owed`` are its training and held-out batches and its weights in the round; ``excused`` says why the round waits
    for it no longer, unless it may come back.
    """

    owed: tuple[int, int, int]
    next: int
    excused: str = ""
    n_samples: int = 0
    n_bytes: int = 0
    n_refused: int = 0
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    exit_loss_sum: float = 0.0


class OpenRound(msgspec.Struct, frozen=True, kw_only=True):
    """A round that was open at the commit. ``spent_s`` of its deadline had passed."""

    round: int
    spent_s: float
    devices: dict[str, OpenDevice]


class CommittedState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but tensors. ``round`` is closed; the ledger counts up to ``ledger_length``.

    Attributes:
        lists: device id to (training batches, held-out batches) from the next round on.
        n_owed: length of each device's list in the closed round.
        n_applied: training batches of each device that were applied in the run.
    """

    schema: int = 1
    round: int
    plan_version: int
    jobs: dict[str, Job]
    lists: dict[str, tuple[int, int]]
    activation_shapes: dict[str, list[int]]
    fingerprints: dict[str, str] = {}
    n_owed: dict[str, int] = {}
    n_applied: dict[str, int] = {}
    strategy: str = "sequential"
    strategy_options: dict[str, Scalar] = {}
    server: ServerSpec = ServerSpec()
    ledger_length: int = 0
    ledger_head: str = ""
    open: OpenRound | None = None

    @property
    def common(self) -> Job:
        """Any device's job, for what all jobs of a run share."""
        return next(iter(self.jobs.values()))

    @property
    def cuts(self) -> dict[str, str]:
        """Device id to cut layer."""
        return {device: job.cut for device, job in self.jobs.items()}

    def watermark(self, device: str) -> tuple[int, int]:
        """The greatest (round, seq) up to which every seq of a device has an entry here; (0, 0) before any."""
        if self.open is not None and (held := self.open.devices[device]).next > 1:
            return self.open.round, held.next - 1
        return (self.round, self.n_owed[device]) if self.round else (0, 0)


@dataclass(frozen=True, slots=True)
class Generation:
    """A checkpoint on disk."""

    path: Path
    disk: Disk = SYSTEM_DISK

    @property
    def number(self) -> int:
        """Counts the commits of a run."""
        return _place(self.path.name)[0]

    @property
    def round(self) -> int:
        """The closed round it stands for."""
        return _place(self.path.name)[1]

    def state(self) -> CommittedState:
        """Read all but tensors.

        Raises: CheckpointError: damaged or of another version.
        """
        path = self.path / _STATE_FILE
        try:
            state = msgspec.json.decode(self.disk.read(path), type=CommittedState)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise CheckpointError(f"{path} can't be read: {exc}.", path=str(path)) from exc
        if state.schema != 1:
            raise CheckpointError(f"{path} has schema {state.schema}; this version reads schema 1.")
        return state

    def names(self) -> list[str]:
        """Files of the model."""
        own = {_STATE_FILE, _SUMS_FILE}
        return [name for name in self.disk.names(self.path) if name not in own]

    def read(self, name: str) -> bytes:
        """Read a file of the model.

        Raises: CheckpointError: it is not there.
        """
        path = self.path / name
        try:
            return self.disk.read(path)
        except OSError as exc:
            raise CheckpointError(f"{path} can't be read: {exc.strerror}.", path=str(path)) from exc

    def tensors(self) -> dict[str, torch.Tensor]:
        """Read the model's tensors.

        Raises: CheckpointError: damaged.
        """
        from toolkit.nn.weights import tensors_of

        return tensors_of(self.read(MODEL_FILE), where=self.path / MODEL_FILE)

    def check(self) -> None:
        """Hold every file to its digest.

        Raises: CheckpointError: one is missing or is not what was committed.
        """
        path = self.path / _SUMS_FILE
        try:
            lines = self.disk.read(path).decode("ascii").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            raise CheckpointError(f"{path} can't be read.", path=str(path)) from exc
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        if sorted(sums) != sorted([_STATE_FILE, *self.names()]):
            raise DamagedError(f"{self.path} does not hold the files that it names.", path=str(self.path))
        for name, expected in sums.items():
            if hashlib.sha256(self.read(name)).hexdigest() != expected:
                raise DamagedError(f"{self.path / name} is damaged.", path=str(self.path / name))
        self.state()


def committed_generations(folder: Path, *, disk: Disk = SYSTEM_DISK) -> list[Generation]:
    """Look for the generations that count, oldest first, changing nothing.

    A power cut may have brought back some that were dropped before.
    """
    names = [name for name in disk.names(folder) if place_of(name) is not None]
    return [Generation(folder / name, disk) for name in names[-KEPT_GENERATIONS:]]


def newest_generation(folder: Path) -> Generation | None:
    """Look for the newest committed generation, changing nothing; None where there is none."""
    kept = committed_generations(folder)
    return kept[-1] if kept else None


class Checkpoints:
    """All generations of a run.

    Args:
        folder: made if missing; what an interrupted commit left is removed.
        disk: that holds it.

    Raises: MachineError: the disk refuses it; so do the methods that write.
    """

    def __init__(self, folder: Path, *, disk: Disk = SYSTEM_DISK) -> None:
        self._folder = folder
        self._disk = disk
        make_folder_durably(folder, disk=disk)
        with writing(folder):
            for name in disk.names(folder):
                if name.endswith(".new"):
                    disk.remove(folder / name)
            # A power cut brings back what was dropped. It must not count again once a newer one is passed over:
            # the watermark would fall.
            self._drop_old()
            # What is seen here will be told as durable; the process before may have died before it made it so.
            disk.sync_folder(folder)

    def kept(self) -> list[Generation]:
        """The generations that count, oldest first."""
        return committed_generations(self._folder, disk=self._disk)

    def pass_over(self, generation: Generation) -> None:
        """Take a generation out of the way, damaged or not wanted; it stays to be looked at."""
        aside = generation.path.with_name(generation.path.name + _ASIDE)
        with writing(aside):
            if self._disk.exists(aside):
                self._disk.remove(aside)
            self._disk.rename(generation.path, aside)
            self._disk.sync_folder(self._folder)

    def commit(self, state: CommittedState, files: Iterable[tuple[str, bytes]]) -> None:
        """Make a generation durable, then drop those beyond :data:`KEPT_GENERATIONS`.

        Args:
            state: all but tensors.
            files: name and content of each file of the model; taken one at a time.
        """
        disk = self._disk
        place = self._folder / f"{self._next_number():06d}-round-{state.round}"
        beside = place.with_name(place.name + ".new")
        with writing(place):
            disk.make_folder(beside)
            sums = ""
            content_of_state = msgspec.json.format(msgspec.json.encode(state), indent=1)
            for name, content in _chained(files, (_STATE_FILE, content_of_state)):
                disk.write(beside / name, content)
                sums += f"{hashlib.sha256(content).hexdigest()}  {name}\n"
            disk.write(beside / _SUMS_FILE, sums.encode())
            failpoint("coordinator.temp_written")
            for name in disk.names(beside):
                disk.sync(beside / name)
            disk.sync_folder(beside)
            failpoint("coordinator.synced")
            disk.rename(beside, place)
            failpoint("coordinator.renamed")
            disk.sync_folder(self._folder)
            self._drop_old()

    def _drop_old(self) -> None:
        kept = {generation.path.name for generation in self.kept()}
        for name in self._disk.names(self._folder):
            if place_of(name) is not None and name not in kept:
                self._disk.remove(self._folder / name)

    def _next_number(self) -> int:
        """No number comes twice, whatever became of the generation that had it."""
        places = [place_of(name.removesuffix(_ASIDE)) for name in self._disk.names(self._folder)]
        return max((place[0] for place in places if place is not None), default=-1) + 1


def _chained(files: Iterable[tuple[str, bytes]], last: tuple[str, bytes]) -> Iterable[tuple[str, bytes]]:
    yield from files
    yield last


def _place(name: str) -> tuple[int, int]:
    place = place_of(name)
    if place is None:
        raise CheckpointError(f"{name!r} is not the name of a checkpoint.")
    return place
