"""Time exported files, each in a child process: a file that crashes or runs out of memory costs its own row."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from toolkit.errors import UsageError
from toolkit.profile.death import death_reason, last_line
from toolkit.profile.exchange import OnnxAnswer, OnnxRequest
from toolkit.profile.limits import sweep
from toolkit.profile.schema import InferenceRow, Limits

CHILD = (sys.executable, "-m", "toolkit.profile.onnx_child")
MOST_S = 60.0
"""Longer than any file may take to load and be timed."""


def find_onnx(places: Sequence[Path]) -> list[Path]:
    """List the files to time: those given, and all of a folder such as a bundle.

    Raises: UsageError: a place does not exist or holds no such file.
    """
    found: list[Path] = []
    for place in places:
        files = sorted(place.glob("*.onnx")) if place.is_dir() else [place]
        if not files or not files[0].is_file():
            raise UsageError(
                f"There is no ONNX file at {place}.",
                hint="Give a file, or the folder of a bundle: hsee export",
            )
        found += files
    return found


def time_file(
    path: Path, *, threads: int = 1, quick: bool = False, limits: Limits | None = None
) -> OnnxAnswer:
    """Time one file in a child of its own.

    Args:
        path: of the ONNX file.
        threads: that compute one operator together.
        quick: a short measurement.
        limits: emulate a board.
    Returns: its row, a failed one says why; and what enforced the limits.
    """
    request = OnnxRequest(path=str(path), threads=threads, quick=quick, limits=limits)
    with tempfile.TemporaryFile() as stderr:
        # A session of its own: Ctrl-C comes to us, and we end the child.
        child = subprocess.Popen(
            CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
        )
        try:
            answer, _ = child.communicate(msgspec.json.encode(request), timeout=MOST_S)
        except subprocess.TimeoutExpired:
            return _failed(path, f"it took longer than {MOST_S:.0f} s")
        finally:
            child.kill()
            child.communicate()
            sweep()
        if child.returncode:
            reason = death_reason(child.returncode, last_line(stderr), limits=limits, part="onnxruntime")
            return _failed(path, reason)
    return msgspec.json.decode(answer, type=OnnxAnswer)


def _failed(path: Path, why: str) -> OnnxAnswer:
    return OnnxAnswer(row=InferenceRow(file=path.name, failed=why))
