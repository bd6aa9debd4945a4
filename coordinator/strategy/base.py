"""The small interface of a strategy: data in, decisions out.

A strategy never sees a network, a tensor or a clock; the loop in ``rounds.py`` carries out what it decides. It keeps
nothing from one call to the next either: what it decides follows from what it is shown, so a resumed run is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import StrategyError

Mode = Literal["shared", "copies", "pooled"]
"""Batches train one network as they come; or a copy of it a device, made one at the round's end; or they are
gathered until the round is complete, and then train one network in mixed steps."""
MomentumRule = Literal["average", "reset", "keep"]
"""What becomes of the copies' momentum at an aggregation: averaged like parameters, dropped, or each device's own."""
BnRule = Literal["mean", "pooled"]
"""Running statistics of batch norm: averaged like parameters, or those of the pooled samples."""


@dataclass(frozen=True, slots=True)
class CopyRules:
    """How copies are kept and made one.

    Attributes:
        resident: copies in memory at a time, the others wait on disk; 0 means what a byte budget holds. It never
            changes what is computed.
    """

    momentum: MomentumRule = "average"
    bn: BnRule = "mean"
    resident: int = 0


@dataclass(frozen=True, slots=True)
class DeviceProgress:
    """One expected device within the open round.

    Attributes:
        n_owed: training batches that will still count, those applied included.
        n_applied: of these, already trained on.
        n_ready: delivered in order and waiting, from ``n_applied`` on.
        n_samples: training samples applied so far.
        has_copy: its copy is in memory.
        postponed: it missed its turn in this round, and stands at the end of the order.
        window: batches of it that may wait here now; it sends no more until one is applied.
    """

    device: str
    n_owed: int
    n_applied: int
    n_ready: int
    n_samples: int
    has_copy: bool = False
    postponed: bool = False
    window: int = 1


@dataclass(frozen=True, slots=True)
class RoundView:
    """What a strategy may look at.

    Attributes:
        round: from 1.
        seed: of the run.
        devices: the expected ones, ascending by device id.
        n_free_copies: copies that can be opened before another has to leave the memory.
    """

    round: int
    seed: int
    devices: tuple[DeviceProgress, ...]
    n_free_copies: int = 0


@dataclass(frozen=True, slots=True)
class PooledBatch:
    """One batch of a complete round: whose, which, cut where, how many samples."""

    device: str
    seq: int
    cut: str
    n_samples: int


@dataclass(frozen=True, slots=True)
class PoolView:
    """All batches of a complete round, ascending by device id and seq."""

    round: int
    seed: int
    batch_size: int
    batches: tuple[PooledBatch, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SubBatch:
    """Samples that enter the server's network at one cut: sample ``rows[i]`` of the pool's batch ``batches[i]``."""

    cut: str
    batches: NDArray[np.int64]
    rows: NDArray[np.int64]


class Strategy:
    """Decides whose batch is trained on next, and how copies become one. Override what differs.

    Attributes:
        name: as the user writes it.
        mode: what a delivered batch trains.
        copy_rules: for mode "copies".
    """

    name: ClassVar[str]
    mode: ClassVar[Mode] = "shared"
    copy_rules: CopyRules = CopyRules()

    def next_device(self, view: RoundView) -> str | None:
        """Name the device whose next batch is trained on now, or None to wait for a delivery.

        Not asked in mode "pooled". By default the device that is furthest behind of those with a batch here.
        """
        return furthest_behind([d for d in view.devices if d.n_ready])

    def turn(self, view: RoundView) -> str | None:
        """Name the device that all others wait for, where the strategy has an order; None where nobody is waited for.

        A device whose turn lasts too long is shown as postponed from then on.
        """
        del view
        return None

    def weights(self, view: RoundView) -> Mapping[str, int]:
        """Weigh the copies for the mean at the round's end: device id to a positive integer; others take no part.

        Asked in mode "copies". By default 1 for each that trained.
        """
        return {d.device: 1 for d in view.devices if d.n_applied}

    def mixed_steps(self, pool: PoolView) -> Sequence[Sequence[SubBatch]]:
        """Compose a complete round's optimizer steps, in order: each holds at most one sub-batch a cut.

        Asked in mode "pooled".
        """
        raise StrategyError(f"Strategy {self.name!r} is pooled, but does not compose steps for {pool.round}.")


def furthest_behind(devices: Sequence[DeviceProgress]) -> str | None:
    """The device with the smallest share of its list applied; ties go to the lower id."""
    if not devices:
        return None
    return min(devices, key=lambda d: (d.n_applied / max(1, d.n_owed), d.device)).device
