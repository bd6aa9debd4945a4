"""What the trained fleet would do when it answers: accuracy, exits, bytes and compute against the threshold.

One threshold a cut, chosen on the held-out samples of all devices that are cut there, each gauged by its own exit at
its own temperature, as ``hsee calibrate`` chooses one for a bundle; then told on the common test set, which had no say.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import nn

from toolkit.bundle.manifest import CurvePoint
from toolkit.export.drop_bound import samples_needed
from toolkit.export.graph import count_macs
from toolkit.export.temperature import fit_temperature
from toolkit.export.threshold_curve import Leg, Reference, choose_point, trace_curve
from toolkit.nn.cut import take_segment, take_suffix
from toolkit.nn.exit_head import build_exit_head
from toolkit.nn.zoo import build_network
from toolkit.runtime.exit_policy import gauge, probabilities
from toolkit.simulate.evaluate import Answers, EvaluatedRun
from toolkit.simulate.results import CutInference, InferencePoint
from toolkit.wire.job import Job
from toolkit.wire.tensors import activation_bytes

KIND = "entropy"


def trace_inference(run: EvaluatedRun, *, target_drop: float) -> list[CutInference]:
    """Trace every cut's curves, shallow cuts as the devices come.

    Args:
        run: that was evaluated.
        target_drop: points of accuracy that may be lost, in (0, 100].
    """
    by_cut: dict[str, list[str]] = {}
    for device, job in run.jobs.items():
        by_cut.setdefault(job.cut, []).append(device)
    return [_trace_cut(run, cut, devices, target_drop) for cut, devices in by_cut.items()]


def _trace_cut(run: EvaluatedRun, cut: str, devices: list[str], target_drop: float) -> CutInference:
    job, shape = run.jobs[devices[0]], run.activation_shapes[devices[0]]
    device_macs, server_macs = _macs(job, shape)
    n_bytes = activation_bytes(prod(shape), job.codec)
    temperatures = {
        device: fit_temperature(own.logits["exit"], own.labels)
        for device in devices
        for own in [run.answers[device].own]
    }

    def trace(answers: Mapping[str, Answers]) -> tuple[list[CurvePoint], list[InferencePoint]]:
        points = _curve(answers, temperatures, device_macs, server_macs)
        return points, [
            InferencePoint(
                threshold=p.threshold,
                exit_rate=p.exit_rate,
                accuracy=p.accuracy or 0.0,
                drop=p.drop,
                drop_upper=p.drop_upper,
                device_macs=device_macs,
                server_macs=(1 - p.exit_rate) * server_macs,
                up_bytes=(1 - p.exit_rate) * n_bytes,
            )
            for p in points
        ]

    own = {device: run.answers[device].own for device in devices}
    common = {device: c for device in devices if (c := run.answers[device].common) is not None}
    curve, held_out = trace(own)
    n_held_out = sum(len(answers.labels) for answers in own.values())
    chosen = choose_point(curve, target_drop)
    return CutInference(
        cut=cut,
        devices=devices,
        device_macs=device_macs,
        server_macs=server_macs,
        activation_bytes=n_bytes,
        n_held_out=n_held_out,
        held_out=held_out,
        n_test=sum(len(answers.labels) for answers in common.values()),
        test=trace(common)[1] if common else [],
        target_drop=target_drop,
        chosen=chosen,
        why_none="" if chosen is not None else _why_none(n_held_out, target_drop),
    )


def _why_none(n_samples: int, target_drop: float) -> str:
    needed = samples_needed(target_drop / 100)
    if n_samples < needed:
        return f"too few samples: {n_samples}, needs {needed}"
    return f"none keeps it, on {n_samples} samples"


def _curve(
    answers: Mapping[str, Answers], temperatures: Mapping[str, float], device_macs: int, server_macs: int
) -> list[CurvePoint]:
    """One curve over the samples of all devices."""
    gauged: list[NDArray[np.float32]] = []
    for device, of_device in answers.items():
        p = probabilities(of_device.logits["exit"], temperature=temperatures[device])
        gauged.append(gauge(KIND, p))
    labels = np.concatenate([of_device.labels for of_device in answers.values()])
    exits, server = (
        np.concatenate([of_device.logits[route].argmax(axis=1) for of_device in answers.values()])
        for route in ("exit", "server")
    )
    right = server == labels
    reference = Reference(right, labels, server, "the server's route", float(right.mean()))
    leg = Leg(device_macs, 0.0, gated=True)
    return trace_curve(
        KIND, [np.concatenate(gauged)], [exits], reference, legs=[leg], macs_beyond=server_macs
    )


def _macs(job: Job, activation_shape: Sequence[int]) -> tuple[int, int]:
    """Multiply-accumulates of one sample on the device, exit included, and behind its cut."""
    network = build_network(job.model, seed=job.seed)
    head = build_exit_head(
        job.exit_head,
        activation_shape=tuple(activation_shape),
        n_classes=job.model.n_classes,
        cut=job.cut,
        seed=job.seed,
    )
    on_device = nn.Sequential(OrderedDict(segment=take_segment(network, job.cut), exit_head=head))
    return (
        count_macs(on_device, job.model.input_shape),
        count_macs(take_suffix(network, job.cut), activation_shape),
    )
