"""The process that measures: ``python -m toolkit.profile.child``, a request on stdin, answers on stdout.

It runs the real training steps of :mod:`toolkit.nn.steps` on random data. Whatever kills it costs the row it was at.
"""

from __future__ import annotations

import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import toolkit
from toolkit.errors import BrokerError, HseeError, MachineError
from toolkit.nn.cut import cut_layers, no_such_cut, take_suffix
from toolkit.nn.sizes import FLOAT32_BYTES, device_part
from toolkit.nn.steps import Forward, build_device_model, device_step, make_optimizer, server_step
from toolkit.nn.zoo import build_network
from toolkit.profile.at_work import time_at_work
from toolkit.profile.exchange import Answer, Copied, Limited, Measured, Ready, Refused, Request
from toolkit.profile.hand_over import MadeUpData, encode_batch, handing_over
from toolkit.profile.limits import enter_limits, reset_peak, resident_bytes, slowdown
from toolkit.profile.schema import BYTES_PER_MB, CutRow
from toolkit.profile.timing import QUICK, THOROUGH, Pace, Timing, time_steps
from toolkit.wire.job import OptimizerSpec
from toolkit.wire.tensors import CODECS

SEED = 0
COPY_BYTES = 16 * BYTES_PER_MB
MOST_CUTS = 8
"""So many are measured unless cuts are named: three minutes are too short for more."""
BESIDE_S = 8.0
"""For codecs and other batch sizes of one cut, beside its steps."""
LEAST_S = 2.0
"""For the steps of one cut, however late it is."""
BESIDE = Pace(block_s=0.1, settled_within=0.1, warm_max_s=0.2, n_min=5, min_s=0.5, max_s=1.0)
AT_ONCE = Pace(block_s=0.04, settled_within=1.0, warm_max_s=0.04, n_min=2, min_s=0.12, max_s=0.3)
Pass = tuple[nn.Module, Sequence[int], bool]
"""A module, the shape of one sample, and whether its backward pass counts too."""


def pass_flop(module: nn.Module, shape: Sequence[int], *, backward: bool = False) -> int:
    """FLOP (2 x MAC) of a forward pass of one sample, and of its backward pass if wanted.

    Args:
        module: put in eval mode, since batch norm can't train on one sample.
        shape: of the sample, without the batch axis.
        backward: count the gradients of all parameters too.
    """
    module.eval()
    with torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter:
        y = module(torch.zeros(1, *shape))
        if backward:
            y.sum().backward()
    return int(counter.get_total_flops())


@dataclass(frozen=True, slots=True)
class Facts:
    """What holds of a cut on every machine; ``shape`` is that of one sample's activations."""

    cut: str
    shape: tuple[int, ...]
    flop: int
    train_flop: int
    suffix_flop: int
    n_parameters: int
    n_layers: int

    def row(self) -> CutRow:
        """The cut with what was counted, unmeasured."""
        return CutRow(
            cut=self.cut,
            unmeasured=True,
            flop=self.flop,
            train_flop=self.train_flop,
            suffix_flop=self.suffix_flop,
            n_parameters=self.n_parameters,
            n_layers=self.n_layers,
            activation_bytes=math.prod(self.shape) * FLOAT32_BYTES,
        )


def describe(request: Request, cuts: Sequence[str]) -> list[Facts]:
    """Count what each cut costs in FLOP, parameters and activations.

    Raises: ModelError, CutError: the request names a model, cut or head that does not exist.
    """
    model = request.model
    passes: list[Pass] = []
    shapes, n_parameters, n_layers = [], [], []
    for cut in cuts:
        network = build_network(model, seed=SEED)
        device, shape = device_part(network, model, cut, exit_head=request.exit_head, seed=SEED)
        passes += [(device, model.input_shape, False), (device, model.input_shape, True)]
        passes.append((take_suffix(network, cut), shape, False))
        shapes.append(shape)
        n_parameters.append(sum(p.numel() for p in device.parameters()))
        n_layers.append(sum(any(True for _ in m.parameters(recurse=False)) for m in device.modules()))
    flop = flop_apart(passes)
    return [
        Facts(cut, shape, flop=once, train_flop=train, suffix_flop=suffix, n_parameters=n, n_layers=layers)
        for cut, shape, n, layers, once, train, suffix in zip(
            cuts, shapes, n_parameters, n_layers, flop[::3], flop[1::3], flop[2::3], strict=True
        )
    ]


def flop_apart(passes: Sequence[Pass]) -> list[int]:
    """Count each pass's FLOP on one sample, in a fork of this process.

    Counting loads torch's compiler, 80 MB that training never takes and its measured memory must not hold.

    Raises: MachineError: the fork died.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.write(
                writing, msgspec.json.encode([pass_flop(m, shape, backward=b) for m, shape, b in passes])
            )
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise MachineError(f"Counting the model's FLOP failed with status {status}.")
    return msgspec.json.decode(content, type=list[int])


@dataclass(frozen=True, slots=True)
class DeviceTimes:
    """A device's step, the same with other batch sizes, and what is done with a batch beside it, by codec."""

    step: Timing
    at: dict[int, Timing]
    at_work: dict[str, Timing]
    beside: dict[str, Timing]
    peak_bytes: int


def measure_device(request: Request, facts: Facts, pace: Pace) -> DeviceTimes:
    """Time what a device does at a cut, on random data."""
    model, batch_size = request.model, request.batch_size
    aside = AT_ONCE if request.quick else BESIDE
    held_bytes = resident_bytes()
    device = build_device_model(
        model, cut=facts.cut, exit_head=request.exit_head, optimizer=OptimizerSpec(), seed=SEED
    )
    data = MadeUpData(model, batch_size=batch_size, seed=SEED)

    def step(index: int, of: MadeUpData = data) -> Forward:
        x, y, seed = of.batch(index)
        return device_step(device, x, y, seed=seed)

    timing = time_steps(step, pace)
    forward, (_, y, _) = step(0), data.batch(0)
    beside = {
        codec: time_steps(handing_over(forward, y, cut=facts.cut, codec=codec), aside) for codec in CODECS
    }
    at_work = whole_work(request, step, data, facts.cut, pace)
    peak_bytes = resident_bytes(peak=True)
    others = [size for size in (batch_size // 2, batch_size * 3 // 2) if size not in (0, 1, batch_size)]
    if peak_bytes - held_bytes > room(request):
        others = [size for size in others if size < batch_size]
    at = {}
    for size in others:
        other = MadeUpData(model, batch_size=size, seed=SEED)
        # More than was asked for may not fit; that must not cost what was.
        with suppress(RuntimeError, MemoryError):
            at[size] = time_steps(lambda index, other=other: step(index, other), aside)  # type: ignore[misc]
    return DeviceTimes(timing, at, at_work, beside, peak_bytes)


def whole_work(
    request: Request, step: Callable[[int], Forward], data: MadeUpData, cut: str, pace: Pace
) -> dict[str, Timing]:
    """Time step and sending together, by codec; nothing without a broker, or where it went away."""
    way = request.broker
    if way is None:
        return {}

    def make_payload(index: int) -> bytearray:
        return encode_batch(step(index), data.batch(index)[1], cut=cut, codec=way.codec)

    # A broker that is lost now will be lost when the link is measured, and is told of then.
    with suppress(BrokerError):
        return {way.codec: time_at_work(make_payload, way, pace)}
    return {}


def measure_suffix(request: Request, facts: Facts, pace: Pace) -> Timing:
    """Time the server's step for a cut on random activations."""
    generator = torch.Generator().manual_seed(SEED)
    y = torch.randint(request.model.n_classes, (request.batch_size,), generator=generator)
    h = torch.randn(request.batch_size, *facts.shape, generator=generator)
    suffix = take_suffix(build_network(request.model, seed=SEED), facts.cut)
    sgd = make_optimizer(suffix, OptimizerSpec())
    return time_steps(lambda index: server_step(suffix, sgd, h, y, seed=index), pace)


def measure_cut(request: Request, facts: Facts, *, pace: Pace, factor: float) -> CutRow:
    """Measure one row; ``factor`` is what single times are multiplied by where nothing enforces the limits."""
    reset_peak()

    def of_board(timing: Timing) -> Timing:
        return timing.within(request.limits, threads=request.threads, factor=factor)

    at: dict[str, float] = {}
    hand_over_ms: dict[str, float] = {}
    at_work_ms: dict[str, float] = {}
    if request.side == "device":
        times = measure_device(request, facts, pace)
        timing, peak_bytes = of_board(times.step), times.peak_bytes
        at = {str(size): round(of_board(t).mean_ms, 4) for size, t in times.at.items()}
        hand_over_ms = {codec: round(of_board(t).mean_ms, 4) for codec, t in times.beside.items()}
        at_work_ms = {codec: round(of_board(t).mean_ms, 4) for codec, t in times.at_work.items()}
    else:
        timing, peak_bytes = of_board(measure_suffix(request, facts, pace)), resident_bytes(peak=True)
    return msgspec.structs.replace(
        facts.row(),
        unmeasured=False,
        step_ms_mean=round(timing.mean_ms, 4),
        step_ms_p50=round(timing.p50_ms, 4),
        step_ms_p95=round(timing.p95_ms, 4),
        step_cpu_ms=round(timing.cpu_ms, 4),
        n_steps=timing.n_steps,
        step_ms_at=at,
        hand_over_ms=hand_over_ms,
        at_work_ms=at_work_ms,
        peak_memory_mb=round(peak_bytes / BYTES_PER_MB, 1),
    )


def memory_refusal(request: Request, facts: Facts, *, held_bytes: int, room_bytes: int) -> str:
    """Say why a cut can't fit, before trying it kills the board; nothing where it may fit.

    Args:
        request: batch size and input shape.
        facts: of the cut.
        held_bytes: resident memory of this process before the cut is built.
        room_bytes: what it may grow by.
    """
    model = request.model
    samples = request.batch_size * (math.prod(model.input_shape) + 2 * math.prod(facts.shape)) * FLOAT32_BYTES
    # Weights, gradients and momentum; the activations and their gradient. What lies between comes on top.
    least_bytes = 3 * facts.n_parameters * FLOAT32_BYTES + samples
    if least_bytes <= room_bytes:
        return ""
    return (
        f"refused: it needs at least {(held_bytes + least_bytes) / BYTES_PER_MB:.0f} MB,"
        f" and {(held_bytes + room_bytes) / BYTES_PER_MB:.0f} MB are there"
    )


def room(request: Request) -> int:
    """Bytes that this process may still take: its limit's rest, or what the machine has free."""
    free_bytes = int(psutil.virtual_memory().available)
    if request.limits is None:
        return free_bytes
    return min(free_bytes, request.limits.memory_mb * BYTES_PER_MB - resident_bytes())


def copy_bytes_per_s() -> float:
    """Memory read plus written by a copy too large for the caches, bytes a second."""
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.empty_like(source)
    timing = time_steps(lambda _: np.copyto(target, source), AT_ONCE)
    return 2 * COPY_BYTES / timing.mean_ms * 1e3


def choose_measured(cuts: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Choose the cuts to measure: those that are named, else at most ``MOST_CUTS`` from the first to the last.

    Raises: CutError: the model has no such cut.
    """
    for cut in wanted:
        if cut not in cuts:
            raise no_such_cut(cut, cuts)
    if wanted or len(cuts) <= MOST_CUTS:
        return tuple(cut for cut in cuts if not wanted or cut in wanted)
    depths = np.linspace(0, len(cuts) - 1, MOST_CUTS).round().astype(int)
    return tuple(cuts[depth] for depth in depths)


def pace_for(request: Request, n_cuts: int) -> Pace:
    """Choose how long to measure each of the cuts that are left."""
    if request.quick:
        return QUICK
    if not request.until_s:
        return THOROUGH
    left_s = (request.until_s - time.monotonic()) / n_cuts - BESIDE_S
    return THOROUGH.at_most(max(left_s, LEAST_S) / (2 if request.broker else 1))


def answer(request: Request, say: Callable[[Answer], None]) -> None:
    """Measure what is asked, saying each row as it is done.

    Raises: HseeError: the request names a model, option or head that does not exist.
    """
    torch.set_num_threads(request.threads)
    cuts = cut_layers(build_network(request.model, seed=SEED))
    software = {
        "hsee": toolkit.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    chosen = choose_measured(cuts, request.cuts) if request.side == "device" else cuts
    say(Ready(cuts=cuts, chosen=chosen, software=software))
    # Before the limits hold, because it is slow where the CPU is scarce.
    described = describe(request, cuts[request.first :][: request.n_cuts or None])
    factor = 1.0
    if request.limits is not None:
        mechanism = enter_limits(request.limits)
        say(Limited(mechanism=mechanism))
        if mechanism == "factor":
            factor = slowdown(request.limits, threads=request.threads)
    if request.side == "device" and not request.first:
        say(Copied(bytes_per_s=round(copy_bytes_per_s() / factor)))
    n_left = sum(cut in chosen for cut in cuts[request.first :])
    for facts in described:
        if facts.cut not in chosen:
            say(Measured(row=facts.row()))
            continue
        refusal = memory_refusal(request, facts, held_bytes=resident_bytes(), room_bytes=room(request))
        if refusal:
            say(Measured(row=CutRow(cut=facts.cut, failed=refusal)))
        else:
            pace = pace_for(request, n_left)
            say(Measured(row=measure_cut(request, facts, pace=pace, factor=factor)))
        n_left -= 1


def main() -> int:
    """Read the request, answer it. Returns: exit status."""
    # Where memory runs out after all, this process goes first, and not whatever else the board does.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # Answers keep stdout to themselves: a library that prints would spoil them.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    encoder = msgspec.json.Encoder()

    def say(message: Answer) -> None:
        answers.write(encoder.encode(message) + b"\n")

    try:
        answer(msgspec.json.decode(sys.stdin.buffer.read(), type=Request), say)
    except HseeError as exc:
        say(Refused(code=exc.code, message=exc.message, hint=exc.hint))
        return exc.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
