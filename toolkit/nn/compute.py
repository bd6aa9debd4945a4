"""Where to compute."""

from __future__ import annotations

import torch

from toolkit.errors import MachineError


def choose_compute(wanted: str) -> torch.device:
    """Turn a setting into a device: "auto" takes a GPU where there is one.

    Raises: MachineError: "cuda" was asked for and torch finds none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise MachineError(
            "A GPU was asked for, but this installation of torch finds none.",
            hint="Use --device cpu, or install the CUDA build of torch and its driver.",
        )
    return torch.device("cuda" if wanted != "cpu" and available else "cpu")
