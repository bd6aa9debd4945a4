"""Tensors on disk: safetensors, written so that a power cut leaves the old file or the new one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from torch import nn

from toolkit.disk import write_atomically
from toolkit.errors import CheckpointError, DamagedError
from toolkit.nn.sgd import Sgd

MOMENTUM, UNSAVED = "momentum/", "unsaved/"
"""What the names of momentum, and of buffers outside a ``state_dict``, begin with in a training state."""
MAX_HEADER_BYTES = 8 * 1024 * 1024
"""A header longer than any network of ours needs; checked before the library reads it."""
_DIGEST = "sha256"
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What the format calls the types of tensors."""


class _Header(msgspec.Struct):
    """The part of a header that the library keeps to itself."""

    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors to one safetensors file, atomically.

    Raises: MachineError: the disk refuses it; the old content is whole.
    """
    write_atomically(path, content_of(tensors))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises: CheckpointError: missing, damaged, or its header is too long.
    """
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise CheckpointError(f"{path} can't be read: {exc.strerror}.", path=str(path)) from exc
    return tensors_of(content, where=path)


def content_of(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Lay tensors out as a safetensors file that names the digest of what they hold.

    Written here, in the bytes that the library would write: over many small tensors it takes four times as long.

    Raises: CheckpointError: a tensor of a type that the format does not have.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    raw = {name: bytes_of(tensor) for name, tensor in plain.items()}
    header: dict[str, object] = {"__metadata__": {_DIGEST: _digest(plain, raw)}}
    order = sorted(plain, key=lambda name: (-plain[name].element_size(), name))  # so that all stand aligned
    at = 0
    for name in order:
        if plain[name].dtype not in _TYPES:
            raise CheckpointError(f"{name} is {plain[name].dtype}, which no checkpoint can hold.")
        header[name] = {
            "dtype": _TYPES[plain[name].dtype],
            "shape": list(plain[name].shape),
            "data_offsets": [at, at + len(raw[name])],
        }
        at += len(raw[name])
    head = msgspec.json.encode(header)
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *(raw[name] for name in order)])


def tensors_of(content: bytes, *, where: Path) -> dict[str, torch.Tensor]:
    """Read what a safetensors file holds.

    Args:
        content: of the file.
        where: it stands, for messages.
    Raises: CheckpointError: damaged, not what its digest names, or its header is too long.
    """
    n_header = int.from_bytes(content[:8], "little")
    if len(content) < 8 or n_header > min(MAX_HEADER_BYTES, len(content)):  # noqa: PLR2004
        raise DamagedError(f"{where} is not a whole safetensors file.", path=str(where))
    try:
        tensors: dict[str, torch.Tensor] = load_bytes(content)
    except SafetensorError as exc:
        raise DamagedError(f"{where} is damaged: {exc}.", path=str(where)) from exc
    named = msgspec.json.decode(content[8 : 8 + n_header], type=_Header).metadata
    raw = {name: bytes_of(tensor) for name, tensor in tensors.items()}
    if _DIGEST in named and named[_DIGEST] != _digest(tensors, raw):
        raise DamagedError(f"{where} is damaged: it is not what its digest names.", path=str(where))
    return tensors


def _digest(tensors: Mapping[str, torch.Tensor], raw: Mapping[str, memoryview]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(raw[name])
    return digest.hexdigest()


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, shared."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def training_state(module: nn.Module, optimizer: Sgd) -> dict[str, torch.Tensor]:
    """All that training goes on from, by name.

    Returns: parameters and buffers; momentum under ``momentum/<parameter>``; under ``unsaved/<buffer>`` what a module
        keeps out of its ``state_dict``, complex numbers as pairs.
    """
    state = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    for name, buffer in _unsaved_buffers(module):
        state[UNSAVED + name] = torch.view_as_real(buffer) if buffer.is_complex() else buffer
    for name, parameter in module.named_parameters():
        momentum = optimizer.momentum_buffers.get(parameter)
        if momentum is not None:
            state[MOMENTUM + name] = momentum
    return state


def load_training_state(
    module: nn.Module, optimizer: Sgd, state: Mapping[str, torch.Tensor], *, of_more: bool = False
) -> None:
    """Put back what :func:`training_state` took, one tensor at a time.

    Parameters without saved momentum start it anew; unsaved buffers that the state does not name stay as they are.

    Args:
        module: changed in place.
        optimizer: over its parameters.
        state: that of the module.
        of_more: whether it may name layers too that the module does not hold.
    Raises: CheckpointError: the state is of another network.
    """
    own = module.state_dict()
    saved = {name for name in state if not name.startswith((MOMENTUM, UNSAVED))}
    if odd := sorted(own.keys() - saved if of_more else own.keys() ^ saved):
        raise CheckpointError(
            f"The saved weights are of another network: {len(odd)} tensors are in only one of the two, "
            f"{odd[0]} among them."
        )
    for name, held in own.items():
        value = state[name]
        if value.shape != held.shape:
            raise CheckpointError(
                f"The saved weights are of another network: {name} has shape {list(value.shape)} there, "
                f"{list(held.shape)} here."
            )
        held.copy_(value)
    for name, buffer in list(_unsaved_buffers(module)):
        kept = state.get(UNSAVED + name)
        if kept is not None:
            owner, _, leaf = name.rpartition(".")
            value = torch.view_as_complex(kept.contiguous()) if buffer.is_complex() else kept
            # Set, not copied into: a buffer that is made anew at a pass may have another shape by now.
            setattr(module.get_submodule(owner), leaf, value.detach().clone().to(buffer.device))
    for name, parameter in module.named_parameters():
        velocity, kept = optimizer.momentum_buffers.get(parameter), state.get(MOMENTUM + name)
        if kept is None:
            optimizer.momentum_buffers.pop(parameter, None)
        elif velocity is None:
            optimizer.momentum_buffers[parameter] = kept.detach().clone().to(parameter.device)
        else:
            velocity.copy_(kept)


def _unsaved_buffers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers of a user's module that are no part of its ``state_dict``; a step may change them all the same."""
    saved = module.state_dict().keys()
    return ((name, buffer) for name, buffer in module.named_buffers() if name not in saved)
