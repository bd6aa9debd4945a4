"""Where to compute, and in what form."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import msgspec
import torch
from torch import nn

from toolkit.errors import MachineError


def choose_compute(wanted: str) -> torch.device:
    """Turn a setting into a device: "auto" takes a GPU where there is one.

    Raises: MachineError: "cuda" was asked for and torch finds none.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise MachineError(
            "A GPU was asked for, but this installation of torch finds none.",
            hint="Use --compute cpu, or install the CUDA build of torch and its driver.",
        )
    return torch.device("cuda" if wanted != "cpu" and available else "cpu")


class Numerics(msgspec.Struct, frozen=True, kw_only=True):
    """In what form passes are computed. What is exact is the default; the other values are for speed.

    Attributes:
        precision: of matrix products and convolutions; weights, losses, sums and what travels stay float32.
        memory_format: of weights of convolutions over pictures, and so of what they give.
    """

    precision: Literal["float32", "bfloat16"] = "float32"
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"

    def lay_out(self, module: nn.Module) -> None:
        """Put a module's weights into the memory format, in place."""
        if self.memory_format == "channels_last":
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def computing(self, compute: torch.device) -> AbstractContextManager[object]:
        """Within the block, this thread's passes have the precision."""
        # Without autocast's cache: it holds rounded weights to the end of the block, and steps move the weights within.
        return torch.autocast(
            compute.type, torch.bfloat16, enabled=self.precision == "bfloat16", cache_enabled=False
        )
