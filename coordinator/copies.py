"""The copies of one period: some in memory, the others on disk; which is where never changes what they hold."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from toolkit.errors import writing
from toolkit.nn.sgd import Sgd
from toolkit.nn.weights import load_tensors, load_training_state, training_state

MOMENTUM = "momentum/"
"""What the names of momentum begin with."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A device's own suffix and its optimizer, for one period."""

    suffix: nn.Module
    optimizer: Sgd

    def state(self) -> dict[str, torch.Tensor]:
        """Parameters, buffers and momentum by name; shared with the copy, not cloned."""
        return training_state(self.suffix, self.optimizer)


class CopyShelf:
    """Holds the copies of the devices that trained in the open period.

    Args:
        make: makes a device's copy as the period's start has it.
        n_resident: copies in memory at a time; the one that rested longest leaves first. From 1.
        folder: where copies go that leave the memory; made when it is needed. Not synced: a period that is cut off is
            begun again from the last checkpoint.
    """

    def __init__(self, make: Callable[[str], Copy], *, n_resident: int, folder: Path) -> None:
        self._make = make
        self._n_resident = n_resident
        self._folder = folder
        self._here: OrderedDict[str, Copy] = OrderedDict()
        self._parked: set[str] = set()

    @property
    def resident(self) -> frozenset[str]:
        """Devices whose copy is in memory."""
        return frozenset(self._here)

    @property
    def n_free(self) -> int:
        """Copies that can be opened before another has to leave."""
        return self._n_resident - len(self._here)

    def take(self, device: str) -> Copy:
        """Give a device's copy: as it was left, or new."""
        held = self._here.pop(device, None)
        if held is None:
            while self.n_free < 1:
                self._park(*self._here.popitem(last=False))
            held = self._make(device)
            if device in self._parked:
                load_training_state(held.suffix, held.optimizer, load_tensors(self._file(device)))
                self._parked.remove(device)
        self._here[device] = held
        return held

    def states(self) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
        """Every copy's state, ascending by device id; those on disk are read one at a time."""
        for device in sorted(self._parked | self._here.keys()):
            held = self._here.get(device)
            yield device, load_tensors(self._file(device)) if held is None else held.state()

    def put(self, device: str, state: Mapping[str, torch.Tensor]) -> None:
        """Go on with a copy as a commit within the period kept it."""
        _write(self._file(device), state)
        self._parked.add(device)

    def clear(self) -> None:
        """End the period: no copy is left."""
        self._here.clear()
        self._parked.clear()

    def _park(self, device: str, held: Copy) -> None:
        _write(self._file(device), held.state())
        self._parked.add(device)

    def _file(self, device: str) -> Path:
        return self._folder / f"copy-{device}.safetensors"


class TensorShelf:
    """Tensors of each device, on disk.

    Args:
        folder: made when it is needed. Not synced: nothing in it outlives the process.
        kind: of tensors; one folder holds several.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder
        self._kind = kind
        self._devices: set[str] = set()

    def put(self, device: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep a device's tensors, for those before."""
        _write(self._file(device), tensors)
        self._devices.add(device)

    def get(self, device: str) -> Mapping[str, torch.Tensor]:
        """A device's tensors; empty where it has none here."""
        return load_tensors(self._file(device)) if device in self._devices else {}

    @property
    def devices(self) -> frozenset[str]:
        """Those that have some here."""
        return frozenset(self._devices)

    def clear(self) -> None:
        """Forget all."""
        self._devices.clear()

    def _file(self, device: str) -> Path:
        return self._folder / f"{self._kind}-{device}.safetensors"


def _write(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a scratch file.

    Raises: MachineError: the disk refuses it.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, path)
