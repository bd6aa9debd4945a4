"""The copies of one period: some in memory, the others on disk; which is where never changes what they hold.

A place in memory is built once and takes one copy after the other: building a network anew for each left holes in the
heap that grew with the number of devices.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from coordinator.model.scratch import ScratchFile
from toolkit.nn.sgd import Sgd
from toolkit.nn.weights import load_training_state, training_state


@dataclass(frozen=True, slots=True)
class Copy:
    """A device's own suffix and its optimizer, for one period."""

    suffix: nn.Module
    optimizer: Sgd

    def state(self) -> dict[str, torch.Tensor]:
        """Its training state by name; shared with the copy, not cloned."""
        return training_state(self.suffix, self.optimizer)


@dataclass(frozen=True, slots=True)
class Place:
    """Room for one copy of any device: the suffix behind each cut, sharing modules, and an optimizer over all of them."""

    suffixes: Mapping[str, nn.Module]
    optimizer: Sgd


class CopyShelf:
    """Holds the copies of the devices that trained in the open period.

    Args:
        build: makes a place for a copy; what it holds does not matter.
        cuts: device id to cut layer.
        begin: a device's copy as the period's start has it: parameters, buffers and momentum by name, at least those of
            its suffix.
        n_resident: copies in memory at a time; the one that rested longest leaves first. From 1.
        folder: where copies go that leave the memory; made when it is needed. Not synced: a period that is cut off is
            begun again from the last checkpoint.
    """

    def __init__(
        self,
        build: Callable[[], Place],
        *,
        cuts: Mapping[str, str],
        begin: Callable[[str], Mapping[str, torch.Tensor]],
        n_resident: int,
        folder: Path,
    ) -> None:
        self._build = build
        self._cuts = cuts
        self._begin = begin
        self._n_resident = n_resident
        self._folder = folder
        self._free: list[Place] = []
        self._here: OrderedDict[str, tuple[Copy, Place]] = OrderedDict()
        self._parked: dict[str, ScratchFile] = {}

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
            place = self._free_place()
            copy = Copy(place.suffixes[self._cuts[device]], place.optimizer)
            state = self._parked.pop(device, None) or self._begin(device)
            load_training_state(copy.suffix, copy.optimizer, state, of_more=True)
            held = copy, place
        self._here[device] = held
        return held[0]

    def states(self) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
        """Every copy's state, ascending by device id; those on disk are read one at a time."""
        for device in sorted(self._parked.keys() | self._here.keys()):
            held = self._here.get(device)
            yield device, self._parked[device] if held is None else held[0].state()

    def put(self, device: str, state: Mapping[str, torch.Tensor]) -> None:
        """Go on with a copy as a commit within the period kept it."""
        self._parked[device] = ScratchFile(self._file(device), state)

    def clear(self) -> None:
        """End the period: no copy is left, but the places are."""
        self._free.extend(place for _, place in self._here.values())
        self._here.clear()
        self._parked.clear()

    def _free_place(self) -> Place:
        if self._free:
            return self._free.pop()
        if self.n_free:
            return self._build()
        device, (copy, place) = self._here.popitem(last=False)
        self.put(device, copy.state())
        return place

    def _file(self, device: str) -> Path:
        return self._folder / f"copy-{device}"


class TensorShelf:
    """Tensors of each device, on disk.

    Args:
        folder: made when it is needed. Not synced: nothing in it outlives the process.
        kind: of tensors; one folder holds several.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder
        self._kind = kind
        self._held: dict[str, ScratchFile] = {}

    def put(self, device: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep a device's tensors, for those before."""
        self._held[device] = ScratchFile(self._folder / f"{self._kind}-{device}", tensors)

    def get(self, device: str) -> Mapping[str, torch.Tensor]:
        """A device's tensors; empty where it has none here."""
        return self._held.get(device, {})

    @property
    def devices(self) -> frozenset[str]:
        """Those that have some here."""
        return frozenset(self._held)

    def clear(self) -> None:
        """Forget all."""
        self._held.clear()
