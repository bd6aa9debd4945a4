"""Measure what training takes on this board at every candidate cut, in child processes.

A child that crashes or runs out of memory costs one row: the next cut is measured by a new child.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import IO

import msgspec

import toolkit
from toolkit.errors import HseeError, MachineError, UsageError, require
from toolkit.profile.board import machine_name, read_board
from toolkit.profile.conditions import ConditionReader
from toolkit.profile.death import death_reason, last_line
from toolkit.profile.exchange import Answer, BrokerWay, Copied, Limited, Measured, Ready, Refused, Request
from toolkit.profile.inference import time_file
from toolkit.profile.limits import sweep
from toolkit.profile.link import Link
from toolkit.profile.schema import (
    INFERENCE_ONLY_BYTES,
    CutRow,
    Emulation,
    InferenceRow,
    Limits,
    Mechanism,
    Profile,
    Provenance,
    Training,
)
from toolkit.wire.job import ModelSpec, Name

BUDGET_S = 120.0
"""For all cuts together; the link takes up to half a minute more, and three minutes are the promise."""
CHILD = (sys.executable, "-m", "toolkit.profile.child")
OnRow = Callable[[CutRow | InferenceRow, int], None]
"""Called with each row when it is done, and the number of rows of its kind there will be."""


class MeasureInterruptedError(KeyboardInterrupt):
    """Measuring was stopped; ``profile`` holds the rows that were done, marked partial."""

    def __init__(self, profile: Profile) -> None:
        super().__init__("measuring was stopped")
        self.profile = profile


class _Measurement:
    """Runs children until every cut has a row; keeps what they said."""

    def __init__(self, request: Request, on_row: OnRow | None) -> None:
        self.request = request
        self.on_row = on_row
        self.rows: list[CutRow] = []
        self.cuts: tuple[str, ...] = ()
        self.chosen: tuple[str, ...] = ()
        self.software: dict[str, str] = {}
        self.mechanism: Mechanism = "none"
        self.copy_bytes_per_s: float | None = None

    def run(self) -> None:
        """Measure all cuts.

        Raises: HseeError: the child refused the request. MachineError: it could not even begin.
        """
        while not self.cuts or len(self.rows) < len(self.cuts):
            request = msgspec.structs.replace(self.request, first=len(self.rows), n_cuts=self._n_next())
            wanted = len(self.rows) + 1
            # Closed at once whatever is raised here, so that no child outlives its measurement.
            with contextlib.closing(_child(request)) as answers:
                for answer in answers:
                    if isinstance(answer, _Death):
                        self._died(answer)
                    else:
                        self._take(answer)
            if len(self.rows) < wanted:
                self._died(_Death(returncode=0, last_words="it ended without measuring"))

    def _n_next(self) -> int:
        """How many rows the next child makes: one that is measured, after those before it that are only counted."""
        if self.request.quick:
            return 0
        left = self.cuts[len(self.rows) :]
        return next((n for n, cut in enumerate(left, start=1) if cut in self.chosen), len(left)) or 1

    def emulation(self, limits: Limits) -> Emulation:
        """Name the limits together with what enforced them."""
        return Emulation(cpu_percent=limits.cpu_percent, memory_mb=limits.memory_mb, mechanism=self.mechanism)

    def _take(self, answer: Answer) -> None:
        match answer:
            case Ready(cuts=cuts, chosen=chosen, software=software):
                self.cuts, self.chosen, self.software = cuts, chosen, software
            case Limited(mechanism=mechanism):
                self.mechanism = mechanism
            case Copied(bytes_per_s=bytes_per_s):
                self.copy_bytes_per_s = bytes_per_s
            case Refused(code=code, message=message, hint=hint):
                raise _error_class(code)(message, hint=hint)
            case Measured(row=row):
                self._add(row)

    def _add(self, row: CutRow) -> None:
        self.rows.append(row)
        if self.on_row is not None:
            self.on_row(row, len(self.cuts))

    def _died(self, death: _Death) -> None:
        reason = death_reason(death.returncode, death.last_words, limits=self.request.limits, part="torch")
        if not self.cuts:
            raise MachineError(
                f"The process that measures died before it began: {reason}.",
                hint="Training needs about 512 MB and a torch build made for this CPU; try: python -c 'import torch'",
            )
        self._add(CutRow(cut=self.cuts[len(self.rows)], failed=reason))


class _Death(msgspec.Struct, frozen=True):
    """How a child ended that did not finish."""

    returncode: int
    last_words: str


def measure(
    model: ModelSpec,
    *,
    batch_size: int,
    exit_head: str = "auto",
    limits: Limits | None = None,
    quick: bool = False,
    threads: int = 1,
    name: str = "",
    link: Link | None = None,
    onnx: Sequence[Path] = (),
    broker: BrokerWay | None = None,
    cuts: Sequence[str] = (),
    on_row: OnRow | None = None,
) -> Profile:
    """Measure this board, or the one that ``limits`` make of it.

    A board too small to train gets no cuts: nothing is tried that would kill it.

    Args:
        model: what is trained.
        batch_size: samples a step.
        exit_head: of the device's segment.
        limits: emulate a board: CPU time and memory that the measuring processes may use.
        quick: one child for all cuts and short times; otherwise one child a cut.
        threads: torch's threads.
        name: of the profile; made from board and model when empty.
        link: goes into the profile as it is.
        onnx: exported files to time, one sample at a time.
        broker: through which an agent's whole work is timed too.
        cuts: the only ones to measure; the others are counted. By default a spread of all.
        on_row: called with each row.
    Returns: a row for every candidate cut, failed ones included.
    Raises: MissingPartError: torch is not installed. ModelError: no such model, option or head.
        MachineError: the measuring process can't run here. MeasureInterruptedError: Ctrl-C; it carries the rows so far.
    """
    board, reader = read_board(limits), ConditionReader(limits)
    trains = board.memory_bytes >= INFERENCE_ONLY_BYTES
    if trains:
        require("torch", part="agent", purpose="Measuring training")
    name = _checked_name(name or default_name(model, limits))
    request = Request(
        side="device",
        model=model,
        batch_size=batch_size,
        exit_head=exit_head,
        threads=threads,
        quick=quick,
        first=0,
        n_cuts=0,
        cuts=tuple(cuts),
        until_s=0.0 if quick else time.monotonic() + BUDGET_S,
        limits=limits,
        broker=broker,
    )
    work = _Measurement(request, on_row)
    inference: list[InferenceRow] = []

    def profile(*, partial: bool) -> Profile:
        return Profile(
            schema=1,
            name=name,
            provenance=Provenance(
                kind="measured" if limits is None else "emulated",
                date=dt.datetime.now(tz=dt.UTC).date(),
                machine=machine_name(),
                command=command_line(request, name=name, link=link, onnx=onnx),
                software=work.software or {"hsee": toolkit.__version__},
                limits=None if limits is None else work.emulation(limits),
            ),
            board=board,
            partial=partial,
            conditions=reader.conditions(copy_bytes_per_s=work.copy_bytes_per_s),
            link=link,
            model=model,
            training=Training(batch_size=batch_size, exit_head=exit_head, threads=threads),
            cuts=tuple(work.rows),
            inference=tuple(inference),
        )

    try:
        if trains:
            work.run()
        for path in onnx:
            timed = time_file(path, threads=threads, quick=quick, limits=limits)
            inference.append(timed.row)
            if timed.mechanism != "none":
                work.mechanism = timed.mechanism
            if on_row is not None:
                on_row(inference[-1], len(onnx))
    except KeyboardInterrupt as exc:
        if work.rows or inference:
            raise MeasureInterruptedError(profile(partial=True)) from exc
        raise
    else:
        return profile(partial=False)
    finally:
        reader.close()


def measure_server(
    model: ModelSpec, *, batch_size: int, exit_head: str = "auto", threads: int = 1, quick: bool = True
) -> dict[str, float]:
    """Measure the coordinator's training step for each cut: the layers after it, on this machine's CPU.

    Args:
        model: what is trained.
        batch_size: samples a step.
        exit_head: of the devices; no part of the step.
        threads: torch's threads.
        quick: one child for all cuts and short times.
    Returns: cut to mean step time, ms; a cut whose measurement failed is missing.
    Raises: MissingPartError: torch is not installed. ModelError: no such model or option. MachineError: the
        measuring process can't run here.
    """
    require("torch", part="coordinator", purpose="Measuring the server's step")
    request = Request(
        side="server",
        model=model,
        batch_size=batch_size,
        exit_head=exit_head,
        threads=threads,
        quick=quick,
        first=0,
        n_cuts=0,
    )
    work = _Measurement(request, None)
    work.run()
    return {row.cut: row.step_ms_mean for row in work.rows if not row.failed}


def default_name(model: ModelSpec, limits: Limits | None) -> str:
    """Name a profile by what it is of: ``board-resnet_small`` or ``cpu20-512mb-resnet_small``."""
    board = f"cpu{limits.cpu_percent:g}-{limits.memory_mb}mb" if limits else "board"
    short = model.name.rpartition(":")[
        2
    ]  # of a user's own model its function: python:package.module:make_model
    return f"{board}-{short}"[:64]


def command_line(request: Request, *, name: str, link: Link | None, onnx: Sequence[Path] = ()) -> str:
    """Write the ``hsee profile`` command that asks for this measurement."""
    model, limits = request.model, request.limits
    words = ["hsee", "profile", "--model", model.name, "--input", "x".join(map(str, model.input_shape))]
    words += ["--classes", str(model.n_classes), "--batch", str(request.batch_size)]
    words += ["--exit-head", request.exit_head, "--threads", str(request.threads)]
    words += [f"--option={key}={value}" for key, value in model.options.items()]
    words += ["--emulate", f"{limits.cpu_percent:g}%,{limits.memory_mb}"] if limits else []
    words += ["--quick"] if request.quick else []
    words += ["--cuts", ",".join(request.cuts)] if request.cuts else []
    words += ["--link", link.name] if link is not None and link.provenance == "assumed" else []
    words += [f"--onnx={path.name}" for path in onnx]
    words += ["--name", name] if name else []
    return shlex.join(words)


def _child(request: Request) -> Generator[Answer | _Death, None, None]:
    """Run one child and hand on its answers; it is dead when this ends, however it ends."""
    threads = str(request.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    decoder = msgspec.json.Decoder(Answer)
    with tempfile.TemporaryFile() as stderr:
        # A session of its own: Ctrl-C comes to us, and we end the child.
        child = subprocess.Popen(
            CHILD,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            start_new_session=True,
        )
        try:
            with contextlib.suppress(BrokenPipeError):
                _pipe(child.stdin).write(msgspec.json.encode(request))
                _pipe(child.stdin).close()
            refused = False
            for line in _pipe(child.stdout):
                message = decoder.decode(line)
                refused |= isinstance(message, Refused)
                yield message
            if child.wait() and not refused:
                yield _Death(returncode=child.returncode, last_words=last_line(stderr))
        finally:
            child.kill()
            child.wait()
            _pipe(child.stdout).close()
            sweep()


def _checked_name(name: str) -> str:
    try:
        return msgspec.convert(name, Name)
    except msgspec.ValidationError as exc:
        raise UsageError(
            f"{name!r} can't be a profile's name.", hint="Letters, digits, '.', '_' and '-', at most 64."
        ) from exc


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        msg = "the child was started with pipes"
        raise TypeError(msg)
    return pipe


def _error_class(code: str) -> type[HseeError]:
    """Find the class of an error that a child reported by its code."""
    classes = [HseeError]
    for found in classes:
        classes += found.__subclasses__()
    return next((c for c in classes if c.code == code), HseeError)
