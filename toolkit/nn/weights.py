"""Tensors on disk: safetensors, written so that a power cut leaves the old file or the new one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import nn

from toolkit.disk import write_atomically
from toolkit.errors import CheckpointError
from toolkit.nn.sgd import Sgd

MAX_HEADER_BYTES = 8 * 1024 * 1024
"""A header longer than any network of ours needs; checked before the library reads it."""


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors to one safetensors file, atomically.

    Raises: MachineError: the disk refuses it; the old content is whole.
    """
    write_atomically(path, save_bytes({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises: CheckpointError: missing, damaged, or its header is too long.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise CheckpointError(f"{path} can't be read: {exc.strerror}.", path=str(path)) from exc
    if len(content) < 8 or int.from_bytes(content[:8], "little") > min(MAX_HEADER_BYTES, len(content)):  # noqa: PLR2004
        raise CheckpointError(f"{path} is not a whole safetensors file.", path=str(path))
    try:
        tensors: dict[str, torch.Tensor] = load_bytes(content)
    except SafetensorError as exc:
        raise CheckpointError(f"{path} is damaged: {exc}.", path=str(path)) from exc
    return tensors


def training_state(module: nn.Module, optimizer: Sgd) -> dict[str, torch.Tensor]:
    """Parameters, buffers and momentum of a module by name; momentum under ``momentum/<parameter>``."""
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        momentum = optimizer.momentum_buffers.get(parameter)
        if momentum is not None:
            state[f"momentum/{name}"] = momentum
    return state


def load_training_state(module: nn.Module, optimizer: Sgd, state: Mapping[str, torch.Tensor]) -> None:
    """Put back what :func:`training_state` took; parameters without saved momentum start it anew.

    Raises: CheckpointError: the state is of another network.
    """
    weights = {name: tensor for name, tensor in state.items() if not name.startswith("momentum/")}
    try:
        module.load_state_dict(weights)
    except RuntimeError as exc:
        raise CheckpointError(f"The saved weights are of another network: {exc}") from exc
    for name, parameter in module.named_parameters():
        optimizer.momentum_buffers.pop(parameter, None)
        if (momentum := state.get(f"momentum/{name}")) is not None:
            optimizer.momentum_buffers[parameter] = momentum.detach().clone().to(parameter.device)
