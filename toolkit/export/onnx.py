"""From a held segment to a bundle: one ONNX file with the segment and its exit, held to the trained model."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from toolkit import __version__
from toolkit.bundle.folder import write_bundle
from toolkit.bundle.manifest import (
    Exit,
    ExitAccuracy,
    Manifest,
    PolicyRecord,
    Port,
    Preprocessing,
    Provenance,
    Segment,
)
from toolkit.errors import CheckpointError
from toolkit.export.graph import ACTIVATIONS, INPUT, LOGITS, ExitedSegment, opset_of, set_metadata, to_onnx
from toolkit.export.parity import Parity, check_parity
from toolkit.export.threshold import DEFAULT_THRESHOLD, choose_threshold
from toolkit.nn.cut import activation_shape
from toolkit.nn.segment_record import HELD_OUT_FILE, WEIGHTS_FILE, SegmentRecord, read_record
from toolkit.nn.steps import build_device_model
from toolkit.nn.weights import load_tensors
from toolkit.runtime.exit_policy import normalised_entropy, probabilities
from toolkit.runtime.preprocess import normalise
from toolkit.runtime.samples import Samples, read_samples
from toolkit.runtime.segment import OnnxSegment

MAX_SAMPLES = 10_000
FILE = "segment1.onnx"
_BATCH = 256
_TIMED_RUNS = 50


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export did.

    Attributes:
        folder: the bundle.
        run, device, cut, exit, round: where the weights come from.
        n_bytes: of the ONNX file, with ``sha256``, ``opset`` and ``n_parameters``.
        parity: of ONNX Runtime with torch, rule O6.
        n_samples: held-out samples used, at most 10,000.
        accuracy: of the exported file on them, answering all; None if they have no labels.
        torch_accuracy: of the trained model on the same.
        ms: one sample, batch 1, one thread, on this machine, median; ``torch_ms`` in torch.
        threshold: of the normalised entropy, and in ``threshold_origin`` where it comes from.
        n_sure: samples below it, and ``sure_accuracy`` of these; None if there are none or no labels.
    """

    folder: Path
    run: str
    device: str
    cut: str
    exit: str
    round: int
    file: str
    n_bytes: int
    sha256: str
    opset: int
    n_parameters: int
    parity: Parity
    n_samples: int
    accuracy: float | None
    torch_accuracy: float | None
    ms: float
    torch_ms: float
    threshold: float
    threshold_origin: str
    n_sure: int
    sure_accuracy: float | None


def export_held(
    folder: Path,
    out: Path,
    *,
    data: Samples | None = None,
    replace: bool = False,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ExportReport:
    """Export what a device holds of a run as a bundle.

    Args:
        folder: of the device: weights, record and held-out samples (``toolkit.nn.segment_record``).
        out: the bundle's folder to be.
        data: raw held-out samples, instead of those in ``folder``.
        replace: take the place of a bundle that lies there already.
        now: the time.

    Raises:
        CheckpointError: the folder holds no trained segment, or a damaged one.
        DataNotFoundError, DataError, ShapeError: no held-out samples, or they do not fit.
        BundleError: torch can't export the model, the file is not the trained model, or ``out`` is in use.
        MachineError: the bundle can't be written.
        MissingPartError: onnx or onnxscript is not installed.
    """
    record = read_record(folder)
    job = record.job
    model = _load_model(folder, record)
    if data is None:
        data = read_samples(
            folder / HELD_OUT_FILE, input_shape=job.model.input_shape, class_names=job.classes
        )
    data = _at_most(data, MAX_SAMPLES)
    proto = to_onnx(model, job.model.input_shape)
    exit_ = _unmeasured_exit(record)
    activations = Port(name=ACTIVATIONS, shape=activation_shape(model.segment, job.model.input_shape))
    segment = Segment(
        file=FILE,
        first_stage=next(name for name, _ in model.segment.named_children()),
        last_stage=job.cut,
        input=Port(name=INPUT, shape=tuple(job.model.input_shape)),
        activations=activations,
        exit=exit_,
        n_parameters=sum(p.numel() for p in model.parameters()),
        opset=opset_of(proto),
    )
    session = OnnxSegment(proto.SerializeToString(), segment, where=f"the exported {FILE}")
    x = normalise(data.x, job.mean, job.std)
    torch_logits, logits, parity = _run_both(model, session, x, exit_.logits, activations)
    right = None if data.labels is None else logits.argmax(axis=1) == data.labels
    exit_ = _measured(exit_, logits, right, device=record.device)
    segment = msgspec.structs.replace(segment, exit=exit_)
    content = set_metadata(proto, _metadata(record, exit_))
    bundle = write_bundle(out, _manifest(record, segment, data, now()), {FILE: content}, replace=replace)
    measured = exit_.measured
    return ExportReport(
        folder=out,
        run=job.run,
        device=record.device,
        cut=job.cut,
        exit=exit_.name,
        round=record.round,
        file=FILE,
        n_bytes=len(content),
        sha256=bundle.manifest.files[FILE].sha256,
        opset=segment.opset,
        n_parameters=segment.n_parameters,
        parity=parity,
        n_samples=len(x),
        accuracy=None if measured is None else measured.accuracy,
        torch_accuracy=None
        if data.labels is None
        else float((torch_logits.argmax(axis=1) == data.labels).mean()),
        ms=_median_ms(lambda sample: session.run(sample, exit_.logits), x),
        torch_ms=_torch_ms(model, x),
        threshold=exit_.policy.threshold,
        threshold_origin=exit_.policy.origin,
        n_sure=0 if measured is None else measured.n_sure,
        sure_accuracy=None if measured is None else measured.sure_accuracy,
    )


def _load_model(folder: Path, record: SegmentRecord) -> ExitedSegment:
    job = record.job
    built = build_device_model(
        job.model, cut=job.cut, exit_head=job.exit_head, optimizer=job.optimizer, seed=job.seed
    )
    try:
        built.modules.load_state_dict(load_tensors(folder / WEIGHTS_FILE))
    except RuntimeError as exc:
        raise CheckpointError(
            f"The weights in {folder} are not of the model that its record names ({job.model.name}, cut "
            f"{job.cut}): {exc}",
            path=str(folder / WEIGHTS_FILE),
        ) from exc
    return ExitedSegment(built.segment, built.exit_head).eval()


def _at_most(data: Samples, n: int) -> Samples:
    """Spread over the source, which may be sorted by class."""
    if len(data.x) <= n:
        return data
    picked = np.linspace(0, len(data.x) - 1, n).astype(np.int64)
    return Samples(
        tuple(data.names[i] for i in picked),
        data.x[picked],
        None if data.labels is None else data.labels[picked],
    )


def _unmeasured_exit(record: SegmentRecord) -> Exit:
    return Exit(
        name=record.job.cut,
        logits=Port(name=LOGITS, shape=(len(record.job.classes),)),
        policy=PolicyRecord(
            threshold=DEFAULT_THRESHOLD, origin="default: no labelled samples to choose from"
        ),
    )


@torch.no_grad()
def _run_both(
    model: ExitedSegment, session: OnnxSegment, x: NDArray[np.float32], *logits_and_activations: Port
) -> tuple[NDArray[np.float32], NDArray[np.float32], Parity]:
    """Logits (N, K) of torch and of ONNX Runtime, and how far they are apart; activations are not kept."""
    of_torch, of_onnx, parity = [], [], Parity()
    for first in range(0, len(x), _BATCH):
        batch = x[first : first + _BATCH]
        h, logits = (t.numpy() for t in model(torch.from_numpy(batch)))
        onnx_logits, onnx_h = session.run(batch, *logits_and_activations)
        parity = parity.joined(check_parity(logits, onnx_logits, h, onnx_h, first_sample=first))
        of_torch.append(logits)
        of_onnx.append(onnx_logits)
    return np.concatenate(of_torch), np.concatenate(of_onnx), parity


def _measured(
    exit_: Exit, logits: NDArray[np.float32], right: NDArray[np.bool_] | None, *, device: str
) -> Exit:
    if right is None:
        return exit_
    entropy = normalised_entropy(probabilities(logits))
    threshold, origin = choose_threshold(entropy, right)
    sure = entropy < threshold
    return msgspec.structs.replace(
        exit_,
        policy=PolicyRecord(threshold=threshold, origin=origin),
        measured=ExitAccuracy(
            data=f"held-out samples of {device}: not trained on, but round and threshold were chosen on them",
            n_samples=len(right),
            accuracy=float(right.mean()),
            n_sure=int(np.count_nonzero(sure)),
            sure_accuracy=float(right[sure].mean()) if sure.any() else None,
        ),
    )


def _manifest(record: SegmentRecord, segment: Segment, data: Samples, now: datetime) -> Manifest:
    job = record.job
    exporters = {f"export.{name}": version(name) for name in ("onnx", "onnxruntime", "torch")}
    return Manifest(
        class_names=job.classes,
        input_shape=tuple(job.model.input_shape),
        preprocessing=Preprocessing(
            mean=job.mean, std=job.std, value_range=(float(data.x.min()), float(data.x.max()))
        ),
        segments=[segment],
        provenance=Provenance(
            run=job.run,
            device=record.device,
            model=job.model.name,
            cut=job.cut,
            round=record.round,
            created=now.isoformat(timespec="seconds"),
            software={**record.software, **exporters, "export.hsee": __version__},
        ),
    )


def _metadata(record: SegmentRecord, exit_: Exit) -> dict[str, str]:
    job = record.job
    properties: dict[str, Any] = {
        "names": job.classes,
        "imgsz": job.model.input_shape[1:],
        "mean": job.mean,
        "std": job.std,
    }
    readable = {name: json.dumps(value, ensure_ascii=False) for name, value in properties.items()}
    accuracy = {} if exit_.measured is None else {"hsee.accuracy": f"{exit_.measured.accuracy:.6f}"}
    return {
        **readable,
        "hsee.run_id": job.run,
        "hsee.exit": exit_.name,
        "hsee.cut": job.cut,
        "hsee.threshold": f"{exit_.policy.threshold:.6g}",
        **accuracy,
        "hsee.version": __version__,
    }


def _median_ms(run: Callable[[NDArray[np.float32]], object], x: NDArray[np.float32]) -> float:
    """Milliseconds of one sample in a batch of one; the first call warms up and is not counted."""
    run(x[:1])
    times = []
    for index in range(_TIMED_RUNS):
        sample = x[index % len(x)][None]
        started = time.perf_counter()
        run(sample)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


@torch.no_grad()
def _torch_ms(model: ExitedSegment, x: NDArray[np.float32]) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _median_ms(lambda sample: model(torch.from_numpy(sample)), x)
    finally:
        torch.set_num_threads(threads)
