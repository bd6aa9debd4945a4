"""What an export did, for people and for ``--json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle.manifest import VariantName
from toolkit.export.parity import Parity


@dataclass(frozen=True, slots=True)
class VariantReport:
    """A number format of a segment beside float32.

    Attributes:
        drop_points: of its exit's accuracy against float32, and ``drop_upper_points``, its upper 95 % bound.
        ms: one sample, batch 1, one thread, on this machine, median; ``float32_ms`` in turns with it.
    """

    name: VariantName
    file: str
    n_bytes: int
    accuracy: float | None
    drop_points: float
    drop_upper_points: float
    ms: float
    float32_ms: float


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """One segment of the bundle.

    Attributes:
        stages: of the network, in order.
        n_bytes: of the float32 file, with ``sha256``, ``opset`` and ``n_parameters``.
        n_macs: multiply-accumulates of one sample, exit included.
        parity: of ONNX Runtime with torch, rule O6, the cascade up to here.
        accuracy: of what runs by default on the held-out samples, this exit answering all; None without labels.
        torch_accuracy: of the trained model on the same.
        ms: one sample, batch 1, one thread, on this machine, float32, median; ``torch_ms`` in torch.
        threshold: of the normalised entropy, and in ``threshold_origin`` where it comes from.
        n_sure: samples below it, and ``sure_accuracy`` of these; None if there are none or no labels.
        default: the variant that runs unless told otherwise, and why.
    """

    file: str
    stages: tuple[str, ...]
    exit: str
    n_bytes: int
    sha256: str
    opset: int
    n_parameters: int
    n_macs: int
    parity: Parity
    accuracy: float | None
    torch_accuracy: float | None
    ms: float
    torch_ms: float
    threshold: float
    threshold_origin: str
    n_sure: int
    sure_accuracy: float | None
    default: VariantName
    default_reason: str
    int8: VariantReport | None


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export did.

    Attributes:
        folder: the bundle, and ``archive`` of it if one was made.
        run, device, cut, round: where the weights come from.
        n_samples: held-out samples used, at most 10,000.
        reference: where the final route's logits in the bundle come from; empty where they are not known.
        reference_accuracy: of the final route on these samples; None where it is not known.
    """

    folder: Path
    archive: Path | None
    run: str
    device: str
    cut: str
    round: int
    n_samples: int
    reference: str
    reference_accuracy: float | None
    segments: tuple[SegmentReport, ...]
