"""A segment and its exit as one ONNX graph, readable in a viewer and silent while it is made."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from toolkit.errors import BundleError, require

INPUT = "image"
ACTIVATIONS = "activations"
LOGITS = "logits"


class ExitedSegment(nn.Module):
    """Segment and exit head in one pass: inputs (B, ...) to activations (B, ...) and logits (B, K)."""

    def __init__(self, segment: nn.Module, exit_head: nn.Module) -> None:
        super().__init__()
        self.segment = segment
        self.exit_head = exit_head

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute activations and logits."""
        h = self.segment(image)
        return h, self.exit_head(h)


def to_onnx(model: ExitedSegment, input_shape: Sequence[int]) -> Any:
    """Export to an ONNX model held in memory: weights inside, batch size free, no paths of this machine in it.

    Args:
        model: on the CPU; is put in eval mode.
        input_shape: of one sample.
    Returns: ``onnx.ModelProto`` with input ``image`` and outputs ``activations`` and ``logits``.

    Raises:
        BundleError: torch can't export this model.
        MissingPartError: onnx or onnxscript is not installed.
    """
    for module in ("onnx", "onnxscript"):
        require(module, part="export", purpose="Export to ONNX")
    # With a batch of one torch would take the batch size for a constant.
    example = torch.zeros(2, *input_shape)
    try:
        with _quiet():
            program = torch.onnx.export(
                model.eval(),
                (example,),
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=[INPUT],
                output_names=[ACTIVATIONS, LOGITS],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )
    except torch.onnx.OnnxExporterError as exc:
        raise BundleError(
            f"torch {torch.__version__} can't export this model to ONNX: {_first_line(exc)}",
            hint="HSEE_DEBUG=1 shows the whole report of the exporter.",
        ) from exc
    if program is None:
        raise BundleError(f"torch {torch.__version__} exported nothing.")
    proto = program.model_proto
    _strip_origins(proto)
    return proto


def set_metadata(proto: Any, properties: Mapping[str, str]) -> bytes:
    """Put key-value metadata into an ONNX model and serialise it."""
    del proto.metadata_props[:]
    for key, value in properties.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    content: bytes = proto.SerializeToString()
    return content


def opset_of(proto: Any) -> int:
    """Version of the default operator set."""
    return next(int(opset.version) for opset in proto.opset_import if opset.domain in ("", "ai.onnx"))


def _strip_origins(proto: Any) -> None:
    # The exporter notes a stack trace with file names at each node: a third of a small file, and nobody's business.
    graph = proto.graph
    parts: Iterable[Any] = (
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    )
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
    for function in proto.functions:
        for node in function.node:
            del node.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    # torch logs each torchvision operator that is not installed, and deprecates a pattern of its own.
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning
            )
            yield
    finally:
        logger.setLevel(level)


def _first_line(exc: Exception) -> str:
    return next((line for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
