"""From what a device holds of a run to a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from torch import nn

from toolkit import __version__
from toolkit.bundle.manifest import Provenance
from toolkit.errors import CheckpointError
from toolkit.export.final_route import (
    ServerWeights,
    build_final_route,
    build_server_pieces,
    split_at_exits,
)
from toolkit.export.graph import Piece
from toolkit.export.pieces import ExportOptions, Trained, export_pieces
from toolkit.export.report import ExportReport
from toolkit.nn.segment_record import HELD_OUT_FILE, WEIGHTS_FILE, SegmentRecord, read_record
from toolkit.nn.steps import build_device_model
from toolkit.nn.weights import load_tensors
from toolkit.runtime.samples import Samples, read_samples


def export_held(
    folder: Path,
    out: Path,
    *,
    data: Samples | None = None,
    server: ServerWeights | None = None,
    full: bool = False,
    options: ExportOptions | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ExportReport:
    """Export what a device holds of a run as a bundle.

    Args:
        folder: of the device: weights, record and held-out samples (``toolkit.nn.segment_record``).
        out: the bundle's folder to be.
        data: raw held-out samples, instead of those in ``folder``.
        server: the coordinator's layers, where they are at hand: their answers are kept to calibrate against.
        full: put the coordinator's layers behind the device's own, so that the whole network answers on the board.
        options: how to export.
        now: the time.

    Raises:
        CheckpointError: the folder holds no trained segment, or a damaged one; or ``full`` without ``server``.
        DataNotFoundError, DataError, ShapeError: no held-out samples, or they do not fit.
        BundleError: torch can't export the model, the file is not the trained model, or ``out`` is in use.
        MachineError: the bundle can't be written.
        MissingPartError: onnx or onnxscript is not installed.
    """
    record = read_record(folder)
    job = record.job
    pieces = _load_pieces(folder, record)
    if data is None:
        data = read_samples(
            folder / HELD_OUT_FILE, input_shape=job.model.input_shape, class_names=job.classes
        )
    rest = None
    if full:
        if server is None:
            raise CheckpointError(
                f"A full bundle needs the coordinator's layers, and none lie beside {folder}.",
                hint="Use --full where the coordinator kept the run folder, with the device's folder copied into it.",
                path=str(folder),
            )
        pieces += build_server_pieces(job, server)
    elif server is not None:
        rest = build_final_route(job, server)
    return export_pieces(
        Trained(
            pieces=tuple(pieces),
            input_shape=tuple(job.model.input_shape),
            classes=job.classes,
            mean=job.mean,
            std=job.std,
            provenance=_provenance(folder, record, now()),
            rest=rest,
            rest_origin="" if server is None else server.origin,
        ),
        out,
        data=data,
        options=options,
    )


def _load_pieces(folder: Path, record: SegmentRecord) -> list[Piece]:
    """The device's own cascade: one piece, or one for each stage where it trained exits at all of them."""
    job = record.job
    built = build_device_model(
        job.model,
        cut=job.cut,
        exit_head=job.exit_head,
        optimizer=job.optimizer,
        seed=job.seed,
        all_exits=job.all_exits,
    )
    try:
        built.modules.load_state_dict(load_tensors(folder / WEIGHTS_FILE))
    except RuntimeError as exc:
        raise CheckpointError(
            f"The weights in {folder} are not of the model that its record names ({job.model.name}, cut "
            f"{job.cut}): {exc}",
            path=str(folder / WEIGHTS_FILE),
        ) from exc
    if not isinstance(built.segment, nn.Sequential):
        raise CheckpointError(f"The segment in {folder} is not a row of stages.", path=str(folder))
    heads = {**built.shallow_heads, job.cut: built.exit_head}
    return split_at_exits(list(built.segment.named_children()), heads)


def _provenance(folder: Path, record: SegmentRecord, now: datetime) -> Provenance:
    exporters = {f"export.{name}": version(name) for name in ("onnx", "onnxruntime", "torch")}
    return Provenance(
        run=record.job.run,
        device=record.device,
        model=record.job.model.name,
        cut=record.job.cut,
        round=record.round,
        created=now.isoformat(timespec="seconds"),
        software={**record.software, **exporters, "export.hsee": __version__},
        weights=hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest(),
        codec=record.job.codec,
    )
