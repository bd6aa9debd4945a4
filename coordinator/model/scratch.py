"""Tensors that wait on disk so that they take no memory: written from where they stand, read back one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from toolkit.errors import CheckpointError, writing
from toolkit.nn.weights import bytes_of


@dataclass(frozen=True, slots=True)
class _Place:
    dtype: torch.dtype
    shape: torch.Size
    offset: int


class ScratchFile(Mapping[str, torch.Tensor]):
    """Named tensors, end to end in one file; what lies where is known to this process alone.

    A tensor is read when it is asked for: who goes through all of them holds one at a time. Not synced: what is cut off
    is begun again from the last checkpoint.

    Args:
        path: of the file; its folder is made if missing.
        tensors: that it holds.

    Raises: MachineError: the disk refuses it. CheckpointError: when a tensor is asked for, the file is gone or cut short.
    """

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        self._path = path
        self._places: dict[str, _Place] = {}
        offset = 0
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for name, tensor in tensors.items():
                    self._places[name] = _Place(tensor.dtype, tensor.shape, offset)
                    offset += file.write(bytes_of(tensor.detach().cpu().contiguous()))

    def __getitem__(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        place = self._places[name]
        tensor = torch.empty(place.shape, dtype=place.dtype)
        try:
            with self._path.open("rb", buffering=0) as file:
                file.seek(place.offset)
                n_read = file.readinto(bytes_of(tensor))
        except OSError as exc:
            raise CheckpointError(
                f"{self._path} can't be read: {exc.strerror}.", path=str(self._path)
            ) from exc
        if n_read != tensor.nbytes:
            raise CheckpointError(f"{self._path} is cut short.", path=str(self._path))
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Names, in the order of the file."""
        return iter(self._places)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._places)
