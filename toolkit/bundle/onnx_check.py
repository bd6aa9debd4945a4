"""What an ONNX file may hold: checked in its bytes, before any library reads them.

A file of 103 bytes can take gigabytes when it is loaded, because a runtime computes what follows from constants alone.
Here every operator is one of a list, nothing that grows is computed from constants alone, no tensor claims more than the
file brings, and nothing lies outside the file. What is left to go wrong needs a sample to run on, which an update's
self-test does in a process of its own with capped memory.

Source: onnx.proto3 of ONNX 1.18 for the field numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.bundle.protobuf import Value, fields, integers, text, view
from toolkit.errors import BundleError

MAX_NODES = 20_000
MAX_PADDING = 4096
MAX_GROWN = 2**24
"""Elements that a constant may ask an operator for."""
_SIZED_BY_ATTRIBUTES = ("pads", "output_padding", "output_shape", "kernel_shape", "strides", "dilations")

# As large as its inputs, or smaller: may be computed from constants alone.
_KEEPS_SIZE = frozenset(
    """
Abs Acos Asin Atan Cast CastLike Ceil Celu Clip Constant Cos Cosh DequantizeLinear Div DynamicQuantizeLinear Elu Erf
Exp Flatten Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log LogSoftmax Mish Neg Not QuantizeLinear Reciprocal
ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round Selu Shape Sigmoid
Sign Sin Size Slice Softmax Softplus Softsign Split Sqrt Squeeze Tan Tanh ThresholdedRelu Transpose Unsqueeze
""".split()  # noqa: SIM905 - a list to be read
)
_COMPUTES = frozenset(
    """
Add And ArgMax ArgMin Attention AveragePool BatchNormalization Concat Conv ConvInteger ConvTranspose CumSum DepthToSpace Dropout
Einsum Equal GRU Gather GatherElements Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
GroupNormalization InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization Less LessOrEqual LpNormalization LpPool
MatMul MatMulInteger Max MaxPool Mean MeanVarianceNormalization Min Mod Mul Or PRelu Pow QLinearConv QLinearMatMul
RMSNormalization RNN SpaceToDepth Sub Sum TopK Trilu Where Xor
""".split()  # noqa: SIM905 - a list to be read
)
_GROWS = frozenset({"ConstantOfShape", "Expand", "Pad", "Range", "Resize", "Tile"})
ALLOWED = _KEEPS_SIZE | _COMPUTES | _GROWS


@dataclass(slots=True)
class _Node:
    op: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def check_onnx(content: bytes, *, where: str) -> bool:
    """Refuse a file that could take more than it brings.

    Args:
        content: of the ONNX file.
        where: what messages call it.
    Returns: whether an operator of it makes tensors as large as a sample says: our own models have none.
    Raises: BundleError: it is no ONNX file, or holds what a bundle's never do.
    """
    try:
        return _check_model(memoryview(content))
    except _RefusedError as exc:
        raise BundleError(
            f"{where} is refused unread: {exc}.",
            hint="A segment is made of plain operators on its own weights. If it is yours, build the model of others.",
            file=Path(where).name,
        ) from exc
    except ValueError as exc:
        raise BundleError(
            f"{where} is no ONNX file: {exc}.", hint="Export or copy the bundle again.", file=Path(where).name
        ) from exc


class _RefusedError(Exception):
    """A file that is ONNX, and not of a bundle."""


def _check_model(model: memoryview) -> bool:
    graph = None
    for number, value in fields(model):
        match number:
            case 7 if graph is None:
                graph = view(value)
            case 7:
                raise _RefusedError("it holds two graphs")
            case 20:
                raise _RefusedError("it holds training steps")
            case 25:
                raise _RefusedError("it defines functions")
            case _:
                pass
    if graph is None:
        msg = "it holds no graph"
        raise ValueError(msg)
    return _check_graph(graph)


def _check_graph(graph: memoryview) -> bool:
    nodes: list[_Node] = []
    constants: dict[str, list[int] | None] = {}
    inputs: list[str] = []
    for number, value in fields(graph):
        match number:
            case 1:
                nodes.append(_read_node(view(value), constants))
            case 5:
                name, whole_numbers = _read_tensor(view(value))
                constants[name] = whole_numbers
            case 11:
                inputs.append(_read_input(view(value)))
            case 15:
                raise _RefusedError("it holds sparse weights")
            case _:
                pass
    if len(nodes) > MAX_NODES:
        raise _RefusedError(f"it has {len(nodes)} operators")
    varying = set(inputs) - constants.keys()
    for node in nodes:
        _check_node(node, varying, constants)
    return any(node.op in _GROWS for node in nodes)


def _read_input(message: memoryview) -> str:
    """Check an input's declared shape, as far as it is fixed; returns its name."""
    name, n_values = "", 1
    for number, value in fields(message):
        if number == 1:
            name = text(value)
        elif number == 2:  # noqa: PLR2004 - type, then tensor_type, shape, dim, dim_value
            for path in _within(view(value), 1, 2, 1):
                n_values *= max([1, *(_number(part) for n, part in fields(path) if n == 1)])
    if n_values > MAX_GROWN:
        raise _RefusedError(f"its input {name!r} takes {n_values} values a sample or more")
    return name


def _within(message: memoryview, *path: int) -> list[memoryview]:
    """All messages at a path of field numbers."""
    found = [message]
    for wanted in path:
        found = [view(part) for outer in found for number, part in fields(outer) if number == wanted]
    return found


def _check_node(node: _Node, varying: set[str], constants: dict[str, list[int] | None]) -> None:
    if node.domain not in ("", "ai.onnx") or node.op not in ALLOWED:
        raise _RefusedError(f"it has the operator {f'{node.domain}.' if node.domain else ''}{node.op}")
    if not varying.isdisjoint(node.inputs):
        varying.update(node.outputs)
    elif node.op not in _KEEPS_SIZE:
        raise _RefusedError(f"its operator {node.op} computes from constants alone")
    if node.op in _GROWS:
        for name in node.inputs[1:] if node.op != "ConstantOfShape" else node.inputs:
            asked = math.prod(max(1, abs(n)) for n in constants.get(name) or [])
            if asked > MAX_GROWN:
                raise _RefusedError(f"its operator {node.op} asks for {asked} values")


def _read_node(message: memoryview, constants: dict[str, list[int] | None]) -> _Node:
    node = _Node()
    values: list[int] | None = None
    for number, value in fields(message):
        match number:
            case 1:
                node.inputs.append(text(value))
            case 2:
                node.outputs.append(text(value))
            case 4:
                node.op = text(value)
            case 5:
                values = _check_attribute(view(value)) or values
            case 7:
                node.domain = text(value)
            case _:
                pass
    if node.op == "Constant":
        constants.update(dict.fromkeys(node.outputs, values))
    return node


def _check_attribute(message: memoryview) -> list[int] | None:
    """Check an attribute; returns the whole numbers that it holds as a tensor or a list."""
    name, numbers = "", []
    for number, value in fields(message):
        match number:
            case 1:
                name = text(value)
            case 3 | 8:
                numbers += integers(value)
            case 5:
                numbers += _read_tensor(view(value))[1] or []
            case 6 | 11:
                raise _RefusedError("it holds a graph within its graph")
            case 10:
                _read_tensor(view(value))
            case 22 | 23:
                raise _RefusedError("it holds sparse weights")
            case _:
                pass
    if name in _SIZED_BY_ATTRIBUTES and any(abs(n) > MAX_PADDING for n in numbers):
        raise _RefusedError(f"an attribute {name!r} asks for more than {MAX_PADDING}")
    return numbers


_INT64 = 7


@dataclass(slots=True)
class _Tensor:
    name: str = ""
    dims: list[int] = field(default_factory=list)
    kind: int = 0
    raw: memoryview = field(default_factory=lambda: memoryview(b""))
    listed: list[int] = field(default_factory=list)

    def take(self, number: int, value: Value) -> None:
        match number:
            case 1:
                self.dims += integers(value)
            case 2:
                self.kind = _number(value)
            case 7:
                self.listed += integers(value)
            case 8:
                self.name = text(value)
            case 9:
                self.raw = view(value)
            case _:
                pass


def _read_tensor(message: memoryview) -> tuple[str, list[int] | None]:
    """Check a tensor; returns its name, and its values where they are a few int64."""
    tensor = _Tensor()
    for number, value in fields(message):
        if number == 13 or (number == 14 and _number(value)):  # noqa: PLR2004 - external_data, data_location
            raise _RefusedError("its weights lie outside the file")
        tensor.take(number, value)
    n_values = math.prod(tensor.dims)
    # Two values a byte is the densest that ONNX knows.
    if min(tensor.dims, default=0) < 0 or n_values > 2 * len(message):
        raise _RefusedError(f"its tensor {tensor.name!r} of {tensor.dims} claims more than the file brings")
    if tensor.kind != _INT64 or n_values > MAX_PADDING:
        return tensor.name, None
    raw = tensor.raw
    packed = [int.from_bytes(raw[i : i + 8], "little", signed=True) for i in range(0, len(raw) - 7, 8)]
    return tensor.name, packed or tensor.listed


def _number(value: Value) -> int:
    return value if isinstance(value, int) else 0
