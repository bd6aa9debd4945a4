"""A segment and its exit as one ONNX graph: readable in a viewer, silent while it is made."""

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
ACTIVATIONS_IN = "activations_in"
ACTIVATIONS = "activations"
LOGITS = "logits"


class Piece(nn.Module):
    """A segment of the network and the exit behind it in one pass.

    Args:
        stages: in a row, by name; may be none before the classifier.
        exit_head: takes what the stages give.
        exit_name: what answers call it.
        ends: the exit is the network's own end, so that no activations leave this piece.
    """

    def __init__(
        self, stages: nn.Sequential, exit_head: nn.Module, *, exit_name: str, ends: bool = False
    ) -> None:
        super().__init__()
        self.stages = stages
        self.exit_head = exit_head
        self.exit_name = exit_name
        self.ends = ends

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, or "classifier" where it stands alone."""
        return tuple(name for name, _ in self.stages.named_children()) or ("classifier",)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, ...) to activations (B, ...) and logits (B, K); to logits alone at the network's end."""
        h = self.stages(x)
        logits = self.exit_head(h)
        return (logits,) if self.ends else (h, logits)


def to_onnx(piece: Piece, input_shape: Sequence[int], *, input_name: str = INPUT) -> Any:
    """Export to an ONNX model held in memory: weights inside, batch size free, no paths of this machine in it.

    Args:
        piece: on the CPU; is put in eval mode.
        input_shape: of one sample.
        input_name: of the graph's input.
    Returns: ``onnx.ModelProto`` with outputs ``activations``, unless the piece ends the network, and ``logits``.

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
                piece.eval(),
                (example,),
                dynamo=True,
                external_data=False,
                verbose=False,
                input_names=[input_name],
                output_names=[LOGITS] if piece.ends else [ACTIVATIONS, LOGITS],
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


def count_macs(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one sample's forward pass: matrix products and convolutions.

    Args:
        module: on the CPU; is put in eval mode.
        input_shape: of one sample.
    """
    # Imported here: it brings torch's compiler, 80 MB that a plain forward pass has no need of.
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module.eval()(torch.zeros(1, *input_shape))
    return int(counter.get_total_flops()) // 2


def set_metadata(proto: Any, properties: Mapping[str, str]) -> bytes:
    """Put key-value metadata into an ONNX model and serialise it."""
    del proto.metadata_props[:]
    for key, value in properties.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    content: bytes = proto.SerializeToString()
    return content


def relabelled(content: bytes, properties: Mapping[str, str]) -> bytes:
    """Put key-value metadata into a serialised ONNX model."""
    import onnx

    return set_metadata(onnx.load_from_string(content), properties)


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
