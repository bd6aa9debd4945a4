"""The installed parts: which there are, whether their compiled code runs here, whether torch fits the hardware.

Compiled wheels die of SIGILL on processors that lack an instruction; so each is tried in a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.findings import Finding

TRY_S = 15.0
PARTS: Mapping[str, Sequence[str]] = {
    "agent": ("paho", "safetensors", "torch", "zstandard"),
    "coordinator": ("paho", "safetensors", "torch", "zstandard"),
    "export": ("onnx", "onnxscript", "safetensors", "torch"),
    "broker": ("amqtt",),
    "pictures": ("PIL",),
    "camera": ("cv2",),
    "access": ("cryptography", "paho"),
    "datasets": ("torchvision",),
}
"""Extras of hsee, and the packages that make them."""
TRIALS: Mapping[str, str] = {
    "numpy": "import numpy; a = numpy.ones((64, 64), numpy.float32); assert (a @ a)[0, 0] == 64; version = numpy.__version__",
    "onnxruntime": "import onnxruntime; assert onnxruntime.get_available_providers(); version = onnxruntime.__version__",
    "torch": (
        "import torch; torch.set_num_threads(1); x = torch.ones(1, 3, 8, 8, requires_grad=True);"
        " torch.nn.functional.conv2d(x, torch.ones(4, 3, 3, 3)).sum().backward();"
        " version = torch.__version__; told = {'cuda': torch.version.cuda, 'gpu': torch.cuda.is_available()}"
    ),
}
"""What each compiled package must be able to do here."""
_TELL = "; import json; print('TOLD', json.dumps({'version': str(version), **locals().get('told', {})}))"
_GPU_FILES = ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu")
CPU_WHEEL = (
    "pip uninstall -y torch && pip install 'torch>=2.9,<2.14'"
    " --extra-index-url https://download.pytorch.org/whl/cpu"
)


def check_parts() -> list[Finding]:
    """Judge the installed parts."""
    findings = [judge_parts({name: [m for m in mods if not _is_there(m)] for name, mods in PARTS.items()})]
    present = [name for name in TRIALS if _is_there(name)]
    results = dict(try_in_children({name: TRIALS[name] for name in present}))
    for name in TRIALS:
        if name in results:
            findings.append(judge_trial(name, *results[name]))
        elif name != "torch":  # the base needs the others
            findings.append(
                Finding(
                    name,
                    "failed",
                    "not installed",
                    "pip install --force-reinstall hsee, in hsee's environment",
                )
            )
    if "torch" in results and results["torch"][0] == 0:
        findings.append(judge_torch_build(_told(results["torch"][1]), has_gpu=_has_gpu()))
    return findings


def judge_parts(missing: Mapping[str, Sequence[str]]) -> Finding:
    """Say which of hsee's parts are there, by what each lacks."""
    there = [part for part, lacks in missing.items() if not lacks]
    absent = [part for part, lacks in missing.items() if lacks]
    detail = f"installed: {', '.join(there) or 'none but the base, which answers with bundles'}"
    if absent:
        detail += f"; not installed: {', '.join(absent)} (pip install 'hsee[PART]')"
    return Finding("parts", "ok", detail)


def try_in_children(trials: Mapping[str, str]) -> Iterator[tuple[str, tuple[int | None, str]]]:
    """Run each trial in a process of its own, all at once.

    Yields: the trial's name; its status, negative for a signal, None if it took too long; and what it printed.
    """
    started = {
        name: subprocess.Popen(
            [sys.executable, "-c", code + _TELL],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, code in trials.items()
    }
    deadline_s = time.monotonic() + TRY_S
    for name, child in started.items():
        try:
            said, _ = child.communicate(timeout=max(0.1, deadline_s - time.monotonic()))
            status: int | None = child.returncode
        except subprocess.TimeoutExpired:
            child.kill()
            said, _ = child.communicate()
            status = None
        yield name, (status, said)


def judge_trial(name: str, status: int | None, said: str) -> Finding:
    """Judge how a trial ended; see ``try_in_children``."""
    if status == 0:
        return Finding(name, "ok", f"{_told(said).get('version', '')} runs here")
    if status is None:
        return Finding(
            name,
            "warning",
            f"its trial did not end within {TRY_S:g} s",
            "Try again when the machine is idle; an SD card that is worn out can be the cause.",
        )
    if status == -signal.SIGILL:
        return Finding(
            name,
            "failed",
            "killed by SIGILL: this build uses instructions that this processor lacks",
            f"Install an older release, one step at a time: pip install '{name}<VERSION'. With 32-bit programs on a"
            " 64-bit kernel, install the 64-bit system.",
        )
    if status == -signal.SIGKILL:
        return Finding(
            name,
            "failed",
            "killed by the system, most likely for memory",
            "Stop other programs, or add swap.",
        )
    if status < 0:
        return Finding(
            name,
            "failed",
            f"died of signal {-status}",
            f"Install it again: pip install --force-reinstall --no-cache-dir {name}",
        )
    last = (said.strip().splitlines() or ["it said nothing"])[-1]
    return Finding(
        name, "failed", last[:300], f"Install it again: pip install --force-reinstall --no-cache-dir {name}"
    )


def judge_torch_build(told: Mapping[str, Any], *, has_gpu: bool) -> Finding:
    """Judge torch's build against the hardware.

    Args:
        told: ``cuda``, the version it was built for or None; ``gpu``, whether it can use one.
        has_gpu: whether the system shows an NVIDIA GPU.
    """
    cuda = told.get("cuda")
    if cuda and told.get("gpu"):
        return Finding("torch build", "ok", f"for CUDA {cuda}, and a GPU is here")
    if cuda and has_gpu:
        return Finding(
            "torch build",
            "warning",
            f"for CUDA {cuda}, a GPU is here, and torch can't use it",
            "Update the NVIDIA driver (nvidia-smi tells its CUDA version); on a Jetson install NVIDIA's own wheel.",
        )
    if cuda:
        return Finding(
            "torch build",
            "warning",
            f"for CUDA {cuda}, and there is no GPU: gigabytes for nothing, and a slower start",
            CPU_WHEEL,
        )
    if has_gpu:
        return Finding(
            "torch build",
            "warning",
            "for the CPU, and a GPU is here",
            "Install torch's CUDA build; on a Jetson NVIDIA's own wheel. Or leave it: the CPU works too.",
        )
    return Finding("torch build", "ok", "for the CPU, and there is no GPU")


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _has_gpu() -> bool:
    return any(Path(name).exists() for name in _GPU_FILES)


def _told(said: str) -> dict[str, Any]:
    for line in reversed(said.splitlines()):
        if line.startswith("TOLD "):
            found: dict[str, Any] = json.loads(line.removeprefix("TOLD "))
            return found
    return {}
