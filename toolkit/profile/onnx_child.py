"""The process that times one exported file: ``python -m toolkit.profile.onnx_child``, a request on stdin, a row on stdout.

It needs ONNX Runtime and numpy, and neither torch nor a link: what an inference-only board has.
"""

from __future__ import annotations

import hashlib
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
import psutil

from toolkit.profile.exchange import OnnxAnswer, OnnxRequest
from toolkit.profile.limits import enter_limits, reset_peak, resident_bytes, slowdown
from toolkit.profile.schema import BYTES_PER_MB, InferenceRow, Mechanism
from toolkit.profile.timing import QUICK, THOROUGH, time_steps

THOROUGH_S = 6.0
MEMORY_SHARE = 0.9
"""Of what is free: a file of a hundred bytes can ask for gigabytes."""


def time_onnx(request: OnnxRequest) -> OnnxAnswer:
    """Run the file on one sample again and again. Raises what ONNX Runtime raises."""
    path = Path(request.path)
    content = path.read_bytes()
    mechanism: Mechanism = "none" if request.limits is None else enter_limits(request.limits)
    factor = 1.0
    if request.limits is not None and mechanism == "factor":
        factor = slowdown(request.limits, threads=request.threads)
    reset_peak()
    options = ort.SessionOptions()
    options.intra_op_num_threads = request.threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(content, sess_options=options, providers=["CPUExecutionProvider"])
    feed = {
        port.name: np.zeros([side if isinstance(side, int) else 1 for side in port.shape], np.float32)
        for port in session.get_inputs()
    }
    pace = QUICK if request.quick else THOROUGH.at_most(THOROUGH_S)
    timing = time_steps(lambda _: session.run(None, feed), pace)
    timing = timing.within(request.limits, threads=request.threads, factor=factor)
    row = InferenceRow(
        file=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        file_bytes=len(content),
        ms_p50=round(timing.p50_ms, 4),
        ms_p95=round(timing.p95_ms, 4),
        ms_mean=round(timing.mean_ms, 4),
        n_runs=timing.n_steps,
        peak_memory_mb=round(resident_bytes(peak=True) / BYTES_PER_MB, 1),
    )
    return OnnxAnswer(row=row, mechanism=mechanism)


def main() -> int:
    """Read the request, write the row. Returns: exit status."""
    row_fd = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    most = int(psutil.virtual_memory().available * MEMORY_SHARE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=OnnxRequest)
    row = msgspec.json.encode(time_onnx(request))
    with os.fdopen(row_fd, "wb") as answers:
        answers.write(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
