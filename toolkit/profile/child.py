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
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import toolkit
from toolkit.errors import HseeError, MachineError
from toolkit.nn.cut import activation_shape, cut_layers, take_segment, take_suffix
from toolkit.nn.exit_head import build_exit_head
from toolkit.nn.steps import build_device_model, device_step, make_optimizer, server_step
from toolkit.nn.zoo import build_network
from toolkit.profile.exchange import Answer, Limited, Measured, Ready, Refused, Request
from toolkit.profile.limits import enter_limits, reset_peak, resident_bytes, slowdown
from toolkit.profile.schema import BYTES_PER_MB, CutRow
from toolkit.wire.job import OptimizerSpec

SEED = 0
FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to measure: warm up, then until both minima are reached, but no longer than ``max_s``."""

    n_warm: int
    n_min: int
    min_s: float
    max_s: float


QUICK = Pace(n_warm=2, n_min=5, min_s=0.25, max_s=2.0)
THOROUGH = Pace(n_warm=5, n_min=20, min_s=2.0, max_s=20.0)


def step_times_ms(step: Callable[[int], object], pace: Pace) -> list[float]:
    """Time a step again and again.

    Args:
        step: takes the number of the call.
        pace: how often and how long; a step slower than ``max_s`` is timed once.
    Returns: wall time of each step after the warm-up, ms.
    """
    began = time.perf_counter()
    for index in range(pace.n_warm):
        step(index)
        if time.perf_counter() - began > pace.max_s / 2:
            break
    times: list[float] = []
    began = last = time.perf_counter()
    while last - began < pace.max_s:
        step(pace.n_warm + len(times))
        now = time.perf_counter()
        times.append((now - last) * 1e3)
        last = now
        if len(times) >= pace.n_min and last - began >= pace.min_s:
            break
    return times


def forward_flop(module: nn.Module, shape: Sequence[int]) -> int:
    """FLOP (2 x MAC) of a forward pass of one sample.

    Args:
        module: put in eval mode, since batch norm can't train on one sample.
        shape: of the sample, without the batch axis.
    """
    module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, *shape))
    return int(counter.get_total_flops())


@dataclass(frozen=True, slots=True)
class Facts:
    """What holds of a cut on every machine; ``shape`` is that of one sample's activations."""

    cut: str
    shape: tuple[int, ...]
    flop: int
    suffix_flop: int
    n_parameters: int


def describe(request: Request, cuts: Sequence[str]) -> list[Facts]:
    """Count what each cut costs in FLOP, parameters and activations.

    Raises: ModelError, CutError: the request names a model, cut or head that does not exist.
    """
    model = request.model
    sides: list[tuple[nn.Module, Sequence[int]]] = []
    shapes, n_parameters = [], []
    for cut in cuts:
        network = build_network(model, seed=SEED)
        segment = take_segment(network, cut)
        shape = activation_shape(segment, model.input_shape)
        head = build_exit_head(
            request.exit_head, activation_shape=shape, n_classes=model.n_classes, cut=cut, seed=SEED
        )
        device = nn.Sequential(segment, head)
        sides += [(device, model.input_shape), (take_suffix(network, cut), shape)]
        shapes.append(shape)
        n_parameters.append(sum(p.numel() for p in device.parameters()))
    flop = forward_flop_apart(sides)
    return [
        Facts(cut, shape, flop=device_flop, suffix_flop=suffix_flop, n_parameters=n)
        for cut, shape, n, device_flop, suffix_flop in zip(
            cuts, shapes, n_parameters, flop[::2], flop[1::2], strict=True
        )
    ]


def forward_flop_apart(modules: Sequence[tuple[nn.Module, Sequence[int]]]) -> list[int]:
    """Count each module's forward FLOP on one sample, in a fork of this process.

    Counting loads torch's compiler, 80 MB that training never takes and its measured memory must not hold.

    Raises: MachineError: the fork died.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.write(writing, msgspec.json.encode([forward_flop(module, shape) for module, shape in modules]))
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


def make_step(request: Request, facts: Facts) -> Callable[[int], object]:
    """Build the training step of one side of a cut, on random data."""
    model = request.model
    generator = torch.Generator().manual_seed(SEED)
    y = torch.randint(model.n_classes, (request.batch_size,), generator=generator)
    optimizer = OptimizerSpec()
    if request.side == "device":
        x = torch.randn(request.batch_size, *model.input_shape, generator=generator)
        device = build_device_model(
            model, cut=facts.cut, exit_head=request.exit_head, optimizer=optimizer, seed=SEED
        )
        return lambda index: device_step(device, x, y, seed=index)
    h = torch.randn(request.batch_size, *facts.shape, generator=generator)
    suffix = take_suffix(build_network(model, seed=SEED), facts.cut)
    sgd = make_optimizer(suffix, optimizer)
    return lambda index: server_step(suffix, sgd, h, y, seed=index)


def measure_cut(request: Request, facts: Facts, *, factor: float) -> CutRow:
    """Measure one row; times are multiplied by ``factor``."""
    reset_peak()
    times = step_times_ms(make_step(request, facts), QUICK if request.quick else THOROUGH)
    scaled = np.asarray(times) * factor
    p50, p95 = np.percentile(scaled, [50, 95])
    return CutRow(
        cut=facts.cut,
        step_ms_mean=round(float(scaled.mean()), 4),
        step_ms_p50=round(float(p50), 4),
        step_ms_p95=round(float(p95), 4),
        n_steps=len(times),
        peak_memory_mb=round(resident_bytes(peak=True) / BYTES_PER_MB, 1),
        flop=facts.flop,
        suffix_flop=facts.suffix_flop,
        n_parameters=facts.n_parameters,
        activation_bytes=math.prod(facts.shape) * FLOAT32_BYTES,
    )


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
    say(Ready(cuts=cuts, software=software))
    # Before the limits hold, because it is slow where the CPU is scarce.
    described = describe(request, cuts[request.first :][: request.n_cuts or None])
    factor = 1.0
    if request.limits is not None:
        mechanism = enter_limits(request.limits)
        say(Limited(mechanism=mechanism))
        if mechanism == "factor":
            factor = slowdown(request.limits, threads=request.threads)
    for facts in described:
        say(Measured(row=measure_cut(request, facts, factor=factor)))


def main() -> int:
    """Read the request, answer it. Returns: exit status."""
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
