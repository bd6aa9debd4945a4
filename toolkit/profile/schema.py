"""A profile: what a board takes to train each possible segment, and how that is known. A TOML file, no torch.

Units stand in the names of keys. A megabyte (``_mb``) is 2**20 bytes. FLOP means 2 x MAC.
"""

from __future__ import annotations

import datetime as dt
import math
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from toolkit.errors import ProfileError
from toolkit.profile.link import Link, Milliseconds, Text
from toolkit.profile.toml_struct import parse_struct, read_struct, struct_text, write_text
from toolkit.wire.job import Count, ModelSpec, Name, Positive

BYTES_PER_MB = 2**20
INFERENCE_ONLY_BYTES = 384 * BYTES_PER_MB
"""Torch alone takes more than half of this: a board with less is for inference."""

Kind = Literal["measured", "emulated", "datasheet"]
Mechanism = Literal["cgroup-v1", "cgroup-v2", "factor", "none"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What an emulated board may use: percent of one core (150 is one and a half), and MB of memory."""

    cpu_percent: Annotated[float, Meta(gt=0, le=100_000)]
    memory_mb: Annotated[int, Meta(ge=1, le=2**30)]


class Emulation(Limits, frozen=True, kw_only=True):
    """Limits, and what enforced them: a cgroup, or a factor that measured times were multiplied by; none: nothing ran."""

    mechanism: Mechanism


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """How the numbers came about.

    Attributes:
        kind: ``measured`` on the board itself, ``emulated`` within limits on another machine, or ``datasheet``.
        machine: hardware and system they were taken on, never its address.
        command: what makes them again.
        software: package to version.
        sources: for a datasheet, where its numbers stand.
        limits: for an emulated board.
    """

    kind: Kind
    date: dt.date
    machine: Text
    command: str = ""
    software: dict[str, str] = {}
    sources: tuple[Text, ...] = ()
    limits: Emulation | None = None

    def __post_init__(self) -> None:
        if self.kind == "datasheet" and not self.sources:
            msg = "a datasheet names its sources"
            raise ValueError(msg)
        if (self.kind == "emulated") != (self.limits is not None):
            msg = "limits belong to an emulated profile, and an emulated profile has limits"
            raise ValueError(msg)


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """The hardware; for an emulated board its limits, not its host's memory."""

    cpu: Text
    architecture: Text
    n_cores: Positive
    memory_bytes: Annotated[int, Meta(ge=BYTES_PER_MB, le=2**60)]
    hardware: str = ""


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What the board was like while it was measured; what it does not tell is left out, never guessed.

    Attributes:
        cpu_features: those that decide how fast a network runs.
        copy_bytes_per_s: memory read plus written by a large copy.
        throttle: why the processor was held back before or after, in the system's words.
        energy_j: of the processor, over all measurements (RAPL); ``energy_s`` is how long they took.
        board_energy_j: of the whole board over the same time, where a sensor in its supply tells (INA219, INA3221).
    """

    free_memory_mb: float | None = None
    swap_mb: float | None = None
    cpu_features: tuple[Text, ...] = ()
    copy_bytes_per_s: float | None = None
    clock_mhz_before: float | None = None
    clock_mhz_after: float | None = None
    temperature_c_before: float | None = None
    temperature_c_after: float | None = None
    throttle: tuple[Text, ...] = ()
    power: Literal["mains", "battery", ""] = ""
    energy_j: float | None = None
    energy_s: float | None = None
    board_energy_j: float | None = None


class InferenceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One exported file answering one sample at a time. A failed row has no numbers.

    Attributes:
        file: its name, without folders.
        sha256: of the file, hexadecimal.
        peak_memory_mb: greatest resident memory of a process that runs it.
    """

    file: Text
    sha256: str = ""
    file_bytes: Count = 0
    ms_mean: Milliseconds = 0.0
    ms_p50: Milliseconds = 0.0
    ms_p95: Milliseconds = 0.0
    n_runs: Count = 0
    peak_memory_mb: float = 0.0
    failed: Annotated[str, Meta(max_length=1024)] = ""


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """What a step was: changing any of it makes the times another board's."""

    batch_size: Annotated[int, Meta(ge=2, le=65_536)]
    exit_head: Annotated[str, Meta(min_length=1, max_length=64)]
    threads: Positive


class CutRow(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate cut: what a training step of its segment and exit took. A failed row has no numbers.

    A row that nobody measured has what can be counted: FLOP, layers, parameters, bytes. A plan reads its times off a line
    between its measured neighbours.

    Attributes:
        cut: the stage after which the network is cut.
        step_ms_mean: of one batch: forward, backward and optimizer step; the median over blocks of steps of each
            block's mean, because single steps jump where a quota stops the process. Emulated: processor time over
            the share of it that the limits give.
        step_cpu_ms: processor time of a step; 0 in profiles of old.
        step_ms_at: another batch size to the mean time of a step with it: half as large, and half as large again.
        n_steps: how many were timed, after warming up.
        at_work_ms: codec to all that an agent does for a batch, its link's sending through a broker included; measured
            as a whole, it is more than its parts.
        hand_over_ms: codec to what an agent does with a batch beside the step: its recipe, encoding, digest, chunks.
        peak_memory_mb: greatest resident memory of the whole process.
        flop: forward pass of segment and exit for one sample.
        train_flop: forward and backward pass of one sample.
        suffix_flop: forward pass of what stays at the coordinator, for one sample.
        n_parameters: of segment and exit.
        n_layers: with parameters, of segment and exit: each costs a time that no batch size changes.
        unmeasured: it was not asked for; times and memory are missing.
        activation_bytes: one sample's activations at the cut, float32.
        failed: why nothing was measured; empty when it was.
    """

    cut: Annotated[str, Meta(min_length=1, max_length=256)]
    step_ms_mean: Milliseconds = 0.0
    step_ms_p50: Milliseconds = 0.0
    step_ms_p95: Milliseconds = 0.0
    n_steps: Count = 0
    peak_memory_mb: Annotated[float, Meta(ge=0, le=2**30)] = 0.0
    flop: Count = 0
    suffix_flop: Count = 0
    n_parameters: Count = 0
    activation_bytes: Count = 0
    n_layers: Count = 0
    unmeasured: bool = False
    step_cpu_ms: Milliseconds = 0.0
    step_ms_at: dict[str, Annotated[float, Meta(gt=0, lt=1e9)]] = {}
    train_flop: Count = 0
    hand_over_ms: dict[str, Milliseconds] = {}
    at_work_ms: dict[str, Milliseconds] = {}
    failed: Annotated[str, Meta(max_length=1024)] = ""

    def __post_init__(self) -> None:
        if self.failed:
            return
        for name in COUNTED if self.unmeasured else (*MEASURED, *COUNTED):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                msg = f"row {self.cut!r} needs {name} above 0, got {value}"
                raise ValueError(msg)
        if not all(size.isdecimal() and int(size) > 0 for size in self.step_ms_at):
            msg = f"row {self.cut!r} has step_ms_at of something that is no batch size"
            raise ValueError(msg)
        if self.step_ms_p50 > self.step_ms_p95:
            msg = f"row {self.cut!r} has step_ms_p50 above step_ms_p95"
            raise ValueError(msg)

    def achieved_flop_per_s(self, batch_size: int) -> float:
        """FLOP/s of a training step, forward and backward; 0 where they were not counted."""
        return self.train_flop * batch_size / self.step_ms_mean * 1e3 if self.step_ms_mean else 0.0


MEASURED = ("step_ms_mean", "step_ms_p50", "step_ms_p95", "n_steps", "peak_memory_mb")
COUNTED = ("flop", "suffix_flop", "n_parameters", "activation_bytes")


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A board, its link, and one row a candidate cut of one model, shallow first.

    Attributes:
        partial: measuring was stopped before the last row.
    """

    schema: Literal[1]
    name: Name
    provenance: Provenance
    board: Board
    partial: bool = False
    conditions: Conditions | None = None
    link: Link | None = None
    model: ModelSpec | None = None
    training: Training | None = None
    cuts: tuple[CutRow, ...] = ()
    inference: tuple[InferenceRow, ...] = ()

    @property
    def inference_only(self) -> bool:
        """Whether the board is too small to train at all."""
        return self.board.memory_bytes < INFERENCE_ONLY_BYTES

    def __post_init__(self) -> None:
        if (self.model is None) != (self.training is None) or (self.cuts and self.model is None):
            msg = "cuts, model and training belong together"
            raise ValueError(msg)
        if self.cuts and self.provenance.kind == "datasheet":
            msg = "a datasheet has no measured cuts"
            raise ValueError(msg)
        names = [row.cut for row in self.cuts]
        for name in names:
            if names.count(name) > 1:
                msg = f"the cut {name!r} stands there twice"
                raise ValueError(msg)
        counted = [row for row in self.cuts if not row.failed]
        for shallow, deep in pairwise(counted):
            if deep.suffix_flop > shallow.suffix_flop:
                msg = f"cuts stand shallow first, and behind {deep.cut!r} more is left than behind {shallow.cut!r}"
                raise ValueError(msg)


COMMENTS = {
    "partial": "measuring was stopped before the last row, or the broker went away",
    "provenance.kind": "measured | emulated | datasheet",
    "provenance.command": "makes this file again",
    "provenance.limits.cpu_percent": "of one core",
    "provenance.limits.memory_mb": "of 2**20 bytes",
    "provenance.limits.mechanism": "what enforced it; factor: times were multiplied, memory was not limited",
    "link.provenance": "measured | assumed",
    "conditions.copy_bytes_per_s": "read plus written",
    "conditions.energy_j": "of the processor, over energy_s seconds",
    "conditions.board_energy_j": "of the whole board, over energy_s seconds",
    "link.up_bytes_per_s": "device to coordinator",
    "link.rtt_ms": "of a small message, to the broker and back",
    "link.transfers.payload_bytes": "one batch at a cut",
    "link.transfers.send_ms": "processor time of the device for one payload",
    "link.transfers.round_trip_ms_p50": "to the broker and back, checked",
    "model.input_shape": "one sample, without the batch axis",
    "cuts.step_ms_mean": "one batch: forward, backward, optimizer step",
    "cuts.step_cpu_ms": "processor time of a step",
    "cuts.train_flop": "2 x MAC; forward and backward, one sample",
    "inference.ms_mean": "one sample; median of block means",
    "inference.peak_memory_mb": "resident, whole process; of 2**20 bytes",
    "cuts.n_steps": "timed, after warming up",
    "cuts.peak_memory_mb": "resident, whole process; of 2**20 bytes",
    "cuts.flop": "2 x MAC; forward of segment and exit, one sample",
    "cuts.suffix_flop": "2 x MAC; forward of the rest, at the coordinator, one sample",
    "cuts.activation_bytes": "float32, one sample",
    "cuts.unmeasured": "a plan estimates it from the cuts beside it",
}


MEND = "Undo the edit, or measure again: hsee profile. Units stand in the names of keys, as _ms and _mb do."


def parse_profile(text: str, *, where: str = "profile") -> Profile:
    """Read a profile from TOML text.

    Raises: ProfileError: it names ``where``, the key, and what was expected.
    """
    return parse_struct(text, Profile, where=where, error=ProfileError, hint=MEND)


def read_profile(path: Path) -> Profile:
    """Read a profile file.

    Raises: ProfileError: it names file, key, and what was expected.
    """
    return read_struct(path, Profile, noun="profile", error=ProfileError, hint=MEND)


def profile_text(profile: Profile) -> str:
    """Write a profile as commented TOML, short enough to travel in a device's hello."""
    return struct_text(profile, title="A board's profile, made by hsee profile.", comments=COMMENTS)


def write_profile(path: Path, profile: Profile) -> None:
    """Write a profile file, whole or not at all.

    Raises: MachineError: the disk is full or the folder not writable.
    """
    write_text(path, profile_text(profile))


def misfit(profile: Profile, model: ModelSpec, *, batch_size: int, exit_head: str) -> str:
    """Say why a profile can't speak for a training job.

    Args:
        profile: of any board.
        model: that will be trained.
        batch_size: of the job.
        exit_head: of the job.
    Returns: a sentence, or nothing when it fits.
    """
    kind = profile.provenance.kind
    if profile.inference_only and not profile.cuts:
        memory_mb = profile.board.memory_bytes / BYTES_PER_MB
        return f"Profile {profile.name!r} is of a board with {memory_mb:.0f} MB, which is for inference only."
    if profile.model is None or profile.training is None:
        return f"Profile {profile.name!r} ({kind}) has no measured step times."
    ours, theirs = profile.model, model
    wrong = [
        f"{name} is {got!r}, needed is {wanted!r}"
        for name, got, wanted in (
            ("model", ours.name, theirs.name),
            ("input_shape", ours.input_shape, theirs.input_shape),
            ("n_classes", ours.n_classes, theirs.n_classes),
            ("options", ours.options, theirs.options),
            ("batch_size", profile.training.batch_size, batch_size),
            ("exit_head", profile.training.exit_head, exit_head),
        )
        if got != wanted
    ]
    return f"Profile {profile.name!r} was measured for something else: {'; '.join(wrong)}." if wrong else ""


def for_classes(profile: Profile, n_classes: int) -> Profile:
    """The same profile for another class count: it changes only the exit's last row, which costs nothing to speak of."""
    if profile.model is None:
        return profile
    return msgspec.structs.replace(profile, model=msgspec.structs.replace(profile.model, n_classes=n_classes))


def fits(profile: Profile, model: ModelSpec, *, batch_size: int, exit_head: str) -> bool:
    """Tell whether a profile's step times are those of this job."""
    return not misfit(profile, model, batch_size=batch_size, exit_head=exit_head)
