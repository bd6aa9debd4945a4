"""One ONNX file of a bundle, ready to run: stages in a row and the exit behind them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from toolkit.bundle.manifest import Port, Segment
from toolkit.bundle.onnx_check import check_onnx
from toolkit.errors import BundleError, MachineError, ShapeError

# ONNX Runtime's exceptions have no common base but Exception.
_ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    error for error in vars(ort_errors).values() if isinstance(error, type) and issubclass(error, Exception)
)
_ONLY_FATAL = 4
_NO_MEMORY = ("bad_alloc", "allocate memory")
"""Words of ONNX Runtime's where the machine is to blame, and not the file."""


def return_freed_memory() -> None:
    """Give the system back what loading has freed: glibc alone keeps it, more than the weights' own size."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)


class OnnxSegment:
    """A segment with its session.

    Args:
        content: of the ONNX file.
        record: what the manifest says of it.
        where: what messages call it.
        threads: that compute one operator together.
        before_growth: called before a file is loaded that could make large tensors of small ones.
    Raises: BundleError: the file is no segment's, ONNX Runtime can't load it, or its inputs and outputs are not those of
        the manifest. MachineError: there is not enough memory to load it.
    """

    def __init__(
        self,
        content: bytes,
        record: Segment,
        *,
        where: str,
        threads: int = 1,
        before_growth: Callable[[], None] | None = None,
    ) -> None:
        if check_onnx(content, where=where) and before_growth is not None:
            before_growth()
        self.record = record
        self._takes = record.input.name
        self._where = where
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ONLY_FATAL  # failures are raised: no second copy on stderr
        try:
            self._session = ort.InferenceSession(
                content, sess_options=options, providers=["CPUExecutionProvider"]
            )
        except _ORT_ERRORS as exc:
            if any(word in str(exc) for word in _NO_MEMORY):
                raise MachineError(
                    f"There is not enough memory to load {where}.",
                    hint="End other programs, or export a smaller bundle (--int8).",
                ) from exc
            raise BundleError(
                f"ONNX Runtime {ort.__version__} can't load {where}: {exc}.",
                hint="If it was exported with a newer opset, upgrade onnxruntime; otherwise export it again.",
                file=record.file,
            ) from exc
        # ONNX Runtime keeps the bytes it was given, for a fallback to other providers: there are none here.
        vars(self._session)["_model_bytes"] = None
        outputs = [record.exit.logits] if record.exit is not None else []
        outputs += [record.activations] if record.activations is not None else []
        self._check(self._session.get_inputs(), [record.input], "input")
        self._check(self._session.get_outputs(), outputs, "output")

    def run(self, x: NDArray[np.float32], *outputs: Port) -> list[NDArray[np.float32]]:
        """Compute a batch.

        Args:
            x: (B, *shape of the segment's input), contiguous.
            outputs: those wanted, of this segment.
        Returns: an array (B, *shape) an output, in the order asked for.

        Raises:
            ShapeError: x has another shape or type.
            MachineError: ONNX Runtime failed, for want of memory as a rule.
        """
        if x.shape[1:] != self.record.input.shape or x.dtype != np.float32:
            raise ShapeError(
                f"{self._where} takes float32 of shape (B, {', '.join(map(str, self.record.input.shape))}); "
                f"it was given {x.dtype} of shape {x.shape}.",
                expected=self.record.input.shape,
                got=x.shape[1:],
            )
        return self.compute(x, [port.name for port in outputs])

    def compute(self, x: NDArray[np.float32], names: list[str]) -> list[NDArray[np.float32]]:
        """Compute a batch that is known to fit.

        Args:
            x: (B, *shape of the segment's input), float32, contiguous.
            names: of the outputs wanted.
        Raises: MachineError: ONNX Runtime failed, for want of memory as a rule.
        """
        try:
            values: list[NDArray[np.float32]] = self._session.run(names, {self._takes: x})
        except _ORT_ERRORS as exc:
            raise MachineError(
                f"{self._where} failed on a batch of {len(x)}: {exc}.", hint="Try a smaller batch."
            ) from exc
        return values

    def _check(self, found: list[Any], promised: list[Port], what: str) -> None:
        ports = {port.name: port for port in found}
        for port in promised:
            got = ports.pop(port.name, None)
            if got is None:
                raise self._unlike(f"it has no {what} {port.name!r}, only {', '.join(p.name for p in found)}")
            if got.type != "tensor(float)":
                raise self._unlike(f"{what} {port.name!r} is {got.type}, not tensor(float)")
            batch, *shape = got.shape or [None]
            if isinstance(batch, int) or tuple(shape) != port.shape:
                raise self._unlike(
                    f"{what} {port.name!r} has shape {got.shape}, not a free batch axis and then {list(port.shape)}"
                )
        if what == "input" and ports:
            raise self._unlike(f"it wants further inputs: {', '.join(ports)}")

    def _unlike(self, how: str) -> BundleError:
        return BundleError(
            f"{self._where} is not what its manifest says: {how}.",
            hint="Files of two bundles were mixed: export or copy the bundle again.",
            file=self.record.file,
        )
