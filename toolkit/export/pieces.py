"""A cascade of any number of segments, from torch to a bundle: one ONNX file each, every exit held to the trained model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from toolkit import __version__
from toolkit.bundle.archive import SUFFIX, write_archive
from toolkit.bundle.folder import Bundle, write_bundle
from toolkit.bundle.manifest import (
    Exit,
    ExitAccuracy,
    Manifest,
    PolicyRecord,
    Port,
    Preprocessing,
    Provenance,
    Segment,
    Variant,
)
from toolkit.export.chain import batches, every_exit
from toolkit.export.graph import (
    ACTIVATIONS,
    ACTIVATIONS_IN,
    INPUT,
    LOGITS,
    Piece,
    count_macs,
    opset_of,
    relabelled,
    set_metadata,
    to_onnx,
)
from toolkit.export.kept_samples import CALIBRATION_FILE, KeptSamples, encode_kept, sample_ids
from toolkit.export.onnx_metadata import exit_properties
from toolkit.export.parity import Parity, check_parity
from toolkit.export.quantize import Comparison, compare_int8
from toolkit.export.report import ExportReport, SegmentReport, VariantReport
from toolkit.export.threshold import DEFAULT_THRESHOLD, choose_threshold
from toolkit.export.timing import interleaved_ms
from toolkit.nn.cut import activation_shape
from toolkit.runtime.exit_policy import normalised_entropy, probabilities
from toolkit.runtime.preprocess import normalise
from toolkit.runtime.samples import Samples
from toolkit.runtime.segment import OnnxSegment
from toolkit.runtime.self_test import SELF_TEST_FILE, as_raw, encode_self_test, noise

MAX_SAMPLES = 10_000

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Trained:
    """What is to be exported.

    Attributes:
        pieces: the cascade, first to last.
        input_shape: of one sample, with ``classes``, ``mean`` and ``std`` as the run has them.
        provenance: for the manifest.
        rest: what follows the last piece on the final route, where its weights are known; it is not exported, but its
            logits on the held-out samples are kept to calibrate against.
        rest_origin: where its weights come from, in words.
    """

    pieces: tuple[Piece, ...]
    input_shape: tuple[int, ...]
    classes: list[str]
    mean: list[float]
    std: list[float]
    provenance: Provenance
    rest: Piece | None = None
    rest_origin: str = ""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How to export.

    Attributes:
        replace: take the place of a bundle that lies there already.
        int8: write an int8 variant beside each float32 file, and choose.
        target_drop: points of accuracy that int8 may lose, held against the upper 95 % bound.
        archive: write an archive of the bundle beside it.
    """

    replace: bool = False
    int8: bool = False
    target_drop: float = 1.0
    archive: bool = False


@dataclass(slots=True)
class _Made:
    """A piece on its way into the bundle.

    Attributes:
        record: of the manifest, completed step by step.
        session: of the float32 file, and ``running`` of the variant that runs by default.
        torch_logits: (N, K) of all samples, and likewise ``onnx_logits`` in float32 and ``logits`` of what runs.
    """

    piece: Piece
    proto: Any
    content: bytes
    record: Segment
    session: OnnxSegment
    running: OnnxSegment
    parity: Parity = field(default_factory=Parity)
    torch_logits: list[Logits] = field(default_factory=list)
    onnx_logits: list[Logits] = field(default_factory=list)
    logits: Logits = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    comparison: Comparison | None = None
    ms: float = 0.0
    torch_ms: float = 0.0


def export_pieces(
    trained: Trained, out: Path, *, data: Samples, options: ExportOptions | None = None
) -> ExportReport:
    """Export a cascade as a bundle.

    Args:
        trained: what.
        out: the bundle's folder to be.
        data: raw held-out samples.
        options: how.

    Raises:
        BundleError: torch can't export a piece, a file is not the trained model, or ``out`` is in use.
        MachineError: the bundle can't be written.
        MissingPartError: onnx or onnxscript is not installed.
    """
    how = options or ExportOptions()
    data = _at_most(data, MAX_SAMPLES)
    x = normalise(data.x, trained.mean, trained.std)
    chain = _make(trained)
    reference = _run_both(trained, chain, x)
    if how.int8:
        _quantize(chain, x, data.labels, how.target_drop)
    for made, logits in zip(chain, _running_logits(chain, x), strict=True):
        made.logits = logits
        _measure(made, data.labels, trained.provenance.device)
    files = {}
    for made in chain:
        properties = _metadata(trained, made.record)
        files[made.record.file] = set_metadata(made.proto, properties)
        if made.comparison is not None:
            files[made.record.file_of("int8")] = relabelled(made.comparison.content, properties)
    origin = _reference_origin(trained, reference)
    files[CALIBRATION_FILE] = encode_kept(
        KeptSamples(sample_ids(data.x), tuple(m.logits for m in chain), data.labels, reference, origin)
    )
    manifest = _manifest(trained, chain, data)
    kept = noise(manifest)
    seen = every_exit(
        [made.running for made in chain], normalise(as_raw(manifest, kept), trained.mean, trained.std)
    )
    files[SELF_TEST_FILE] = encode_self_test(kept, seen)
    bundle = write_bundle(out, manifest, files, replace=how.replace)
    archive = out.with_name(out.name + SUFFIX) if how.archive else None
    if archive is not None:
        write_archive(bundle, archive, replace=how.replace)
    made_of = trained.provenance
    return ExportReport(
        folder=out,
        archive=archive,
        run=made_of.run,
        device=made_of.device,
        cut=made_of.cut,
        round=made_of.round,
        n_samples=len(x),
        reference=origin,
        reference_accuracy=None if reference is None else _accuracy(reference, data.labels),
        segments=tuple(_segment_report(made, bundle, data.labels) for made in chain),
    )


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


def _make(trained: Trained) -> list[_Made]:
    """Export each piece and load what came out."""
    chain = []
    shape = trained.input_shape
    for number, piece in enumerate(trained.pieces, 1):
        port = Port(name=INPUT if number == 1 else ACTIVATIONS_IN, shape=shape)
        proto = to_onnx(piece, shape, input_name=port.name)
        n_macs = count_macs(piece, shape)
        if not piece.ends:
            shape = activation_shape(piece.stages, shape)
        record = Segment(
            file=f"segment{number}.onnx",
            first_stage=piece.stage_names[0],
            last_stage=piece.stage_names[-1],
            input=port,
            activations=None if piece.ends else Port(name=ACTIVATIONS, shape=shape),
            exit=Exit(
                name=piece.exit_name,
                logits=Port(name=LOGITS, shape=(len(trained.classes),)),
                policy=PolicyRecord(
                    threshold=DEFAULT_THRESHOLD, origin="default: no labelled samples to choose from"
                ),
            ),
            n_parameters=sum(p.numel() for p in piece.parameters()),
            opset=opset_of(proto),
            n_macs=n_macs,
        )
        content = proto.SerializeToString()
        session = OnnxSegment(content, record, where=f"the exported {record.file}")
        chain.append(_Made(piece, proto, content, record, session, session))
    return chain


@torch.no_grad()
def _run_both(trained: Trained, chain: list[_Made], x: NDArray[np.float32]) -> Logits | None:
    """Run torch and ONNX Runtime side by side and compare; activations are not kept.

    Returns: the final route's logits (N, K) in torch, None where what follows the cascade is not known.
    """
    reference = []
    for number, batch in enumerate(batches(x)):
        h, onnx_h = torch.from_numpy(batch), batch
        for made in chain:
            *of_torch, logits = made.piece(h)
            exit_, onward = made.record.exit, made.record.activations
            ports = [port for port in (exit_.logits if exit_ else None, onward) if port is not None]
            onnx_logits, *of_onnx = made.session.run(onnx_h, *ports)
            parity = check_parity(
                logits.numpy(),
                onnx_logits,
                *(h.numpy() for h in of_torch),
                *of_onnx,
                first_sample=number * len(batch),
            )
            made.parity = made.parity.joined(parity)
            made.torch_logits.append(logits.numpy())
            made.onnx_logits.append(onnx_logits)
            if of_torch:
                h, onnx_h = of_torch[0], of_onnx[0]
        if trained.rest is not None:
            reference.append(trained.rest.eval()(h)[-1].numpy())
    for made in chain:
        made.ms, made.torch_ms = _times(made)
    return np.concatenate(reference) if reference else None


def _times(made: _Made) -> tuple[float, float]:
    """Milliseconds of one sample in ONNX Runtime and in torch, one thread each, in turns."""
    sample = np.random.default_rng(0).standard_normal((1, *made.record.input.shape)).astype(np.float32)
    ports = [made.record.exit.logits] if made.record.exit else []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ms, torch_ms = interleaved_ms(
            [lambda: made.session.run(sample, *ports), lambda: made.piece(torch.from_numpy(sample))]
        )
    finally:
        torch.set_num_threads(threads)
    return ms, torch_ms


def _quantize(
    chain: list[_Made], x: NDArray[np.float32], labels: NDArray[np.int64] | None, target_drop: float
) -> None:
    """Compare int8 with float32 segment by segment, each behind what runs before it."""
    for i, made in enumerate(chain):
        compared = compare_int8(
            made.content,
            made.record,
            [before.running for before in chain[:i]],
            x,
            labels,
            float_logits=np.concatenate(made.onnx_logits),
            target_drop=target_drop,
        )
        float32 = Variant(
            name="float32",
            file=made.record.file,
            accuracy=_accuracy(np.concatenate(made.onnx_logits), labels),
            ms=compared.float_ms,
        )
        int8 = Variant(
            name="int8",
            file=made.record.file.replace(".onnx", ".int8.onnx"),
            accuracy=compared.accuracy,
            ms=compared.ms,
        )
        made.comparison = compared
        made.record = msgspec.structs.replace(
            made.record,
            variants=[float32, int8],
            default=compared.default,
            default_reason=compared.reason,
        )
        if compared.default == "int8":
            made.running = compared.segment


def _running_logits(chain: list[_Made], x: NDArray[np.float32]) -> list[Logits]:
    if all(made.running is made.session for made in chain):
        return [np.concatenate(made.onnx_logits) for made in chain]
    return every_exit([made.running for made in chain], x)


def _accuracy(logits: Logits, labels: NDArray[np.int64] | None) -> float | None:
    return None if labels is None else float((logits.argmax(axis=1) == labels).mean())


def _measure(made: _Made, labels: NDArray[np.int64] | None, device: str) -> None:
    """Enter into the record how good the exit is, and a first threshold."""
    exit_ = made.record.exit
    if labels is None or exit_ is None:
        return
    right = made.logits.argmax(axis=1) == labels
    entropy = normalised_entropy(probabilities(made.logits))
    threshold, origin = choose_threshold(entropy, right)
    sure = entropy < threshold
    exit_ = msgspec.structs.replace(
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
    made.record = msgspec.structs.replace(made.record, exit=exit_)


def _reference_origin(trained: Trained, reference: Logits | None) -> str:
    if reference is None:
        return ""
    return f"the final route: this cascade's activations through {trained.rest_origin}"


def _manifest(trained: Trained, chain: list[_Made], data: Samples) -> Manifest:
    rest, onward = trained.rest, chain[-1].record.activations
    return Manifest(
        class_names=trained.classes,
        input_shape=trained.input_shape,
        preprocessing=Preprocessing(
            mean=trained.mean, std=trained.std, value_range=(float(data.x.min()), float(data.x.max()))
        ),
        segments=[made.record for made in chain],
        provenance=trained.provenance,
        n_macs_beyond=0 if rest is None or onward is None else count_macs(rest, onward.shape),
    )


def _metadata(trained: Trained, record: Segment) -> dict[str, str]:
    properties: dict[str, Any] = {
        "names": trained.classes,
        "imgsz": trained.input_shape[1:],
        "mean": trained.mean,
        "std": trained.std,
    }
    readable = {name: json.dumps(value, ensure_ascii=False) for name, value in properties.items()}
    return {
        **readable,
        **({} if record.exit is None else exit_properties(record.exit)),
        "hsee.run_id": trained.provenance.run,
        "hsee.cut": trained.provenance.cut,
        "hsee.version": __version__,
    }


def _segment_report(made: _Made, bundle: Bundle, labels: NDArray[np.int64] | None) -> SegmentReport:
    record, exit_ = made.record, made.record.exit
    measured = None if exit_ is None else exit_.measured
    return SegmentReport(
        file=record.file,
        stages=made.piece.stage_names,
        exit=made.piece.exit_name,
        n_bytes=bundle.manifest.files[record.file].n_bytes,
        sha256=bundle.manifest.files[record.file].sha256,
        opset=record.opset,
        n_parameters=record.n_parameters,
        n_macs=record.n_macs,
        parity=made.parity,
        accuracy=_accuracy(made.logits, labels),
        torch_accuracy=_accuracy(np.concatenate(made.torch_logits), labels),
        ms=made.ms,
        torch_ms=made.torch_ms,
        threshold=DEFAULT_THRESHOLD if exit_ is None else exit_.policy.threshold,
        threshold_origin="" if exit_ is None else exit_.policy.origin,
        n_sure=0 if measured is None else measured.n_sure,
        sure_accuracy=None if measured is None else measured.sure_accuracy,
        default=record.default,
        default_reason=record.default_reason,
        int8=_int8_report(made, bundle),
    )


def _int8_report(made: _Made, bundle: Bundle) -> VariantReport | None:
    compared = made.comparison
    if compared is None:
        return None
    file = made.record.file_of("int8")
    return VariantReport(
        name="int8",
        file=file,
        n_bytes=bundle.manifest.files[file].n_bytes,
        accuracy=compared.accuracy,
        drop_points=100 * compared.drop,
        drop_upper_points=100 * compared.drop_upper,
        ms=compared.ms,
        float32_ms=compared.float_ms,
    )
