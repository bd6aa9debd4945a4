"""The small interface of a strategy: data in, decisions out.

A strategy never sees a network, a tensor or a clock; the loop in ``rounds.py`` carries out what it decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class DeviceProgress:
    """One expected device within the open round.

    Attributes:
        n_owed: training batches of its list.
        n_applied: of these, already trained on.
        n_ready: delivered in order and waiting, from ``n_applied`` on.
        n_samples: training samples applied so far.
    """

    device: str
    n_owed: int
    n_applied: int
    n_ready: int
    n_samples: int


@dataclass(frozen=True, slots=True)
class RoundView:
    """What a strategy may look at.

    Attributes:
        round: from 1.
        seed: of the run.
        devices: the expected ones, ascending by device id.
    """

    round: int
    seed: int
    devices: tuple[DeviceProgress, ...]


class Strategy(Protocol):
    """Decides whose batch is trained on next, and how copies become one.

    Attributes:
        name: as the user writes it.
        per_device_copies: each device's batches train a copy of the server's layers, aggregated at the round's
            end; otherwise all train the one network.
    """

    name: str
    per_device_copies: bool

    def next_device(self, view: RoundView) -> str | None:
        """Name the device whose next batch is trained on now, or None to wait for a delivery."""

    def weights(self, view: RoundView) -> Mapping[str, int]:
        """Weigh the copies for the mean at the round's end: device id to a positive integer; others take no part."""
