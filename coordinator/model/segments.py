"""Devices' segments and exits, made one between rounds: each stage the mean over the devices that hold it.

Sums run as in the cross-layer mean: float64, ascending device id, one cast. Source: DepthFL (ICLR 2023) averages
prefixes; that it is what pays most here was found out by measuring.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from coordinator.model.aggregate import BnRule, CrossLayerMean
from coordinator.model.copies import TensorShelf
from toolkit.nn.layout import SegmentLayout, layout_of
from toolkit.nn.steps import build_device_model
from toolkit.nn.weights import MOMENTUM
from toolkit.wire.job import Job
from toolkit.wire.weights import FlatWeights

IN_CHECKPOINT = "segments/"
"""What the names begin with, in a checkpoint, of what was made one."""
_ROUND = "round"


class Segments:
    """Gathers the segments of a round and makes them one.

    Args:
        jobs: device id to its job.
        bn: running statistics: averaged like parameters, or those of the pooled samples.
        scratch: folder where gathered segments wait; nothing in it outlives the process.
    """

    def __init__(self, jobs: Mapping[str, Job], *, bn: BnRule, scratch: Path) -> None:
        self._jobs = dict(jobs)
        self._bn: BnRule = bn
        by_cut = {job.cut: job for job in jobs.values()}
        self._layouts = {cut: _layout(job) for cut, job in by_cut.items()}
        self._gathered = TensorShelf(scratch, "segment")
        self._made: dict[str, torch.Tensor] = {}
        self.round = 0

    def layout_of(self, device: str) -> SegmentLayout:
        """How a device's segment and exits lie in rows."""
        return self._layouts[self._jobs[device].cut]

    def gather(self, device: str, segment: Mapping[str, torch.Tensor]) -> None:
        """Keep a device's segment, by its own names, until its round closes."""
        self._gathered.put(device, segment)

    def make_one(self, devices: Iterable[str], *, round_: int) -> None:
        """Average the gathered segments of ``devices``, each with the same weight; what none of them holds stays."""
        mean = CrossLayerMean(bn=self._bn)
        for device in sorted(devices):
            shared = self._shared_names(device)
            mean.add({shared[name]: tensor for name, tensor in self._gathered.get(device).items()}, 1)
        self._made |= mean.result()
        self._gathered.clear()
        self.round = round_

    def of(self, device: str) -> FlatWeights | None:
        """What a device takes; None while a stage that it holds was never made one: it goes on with its own."""
        shared = self._shared_names(device)
        if not all(name in self._made for name in shared.values()):
            return None
        return self.layout_of(device).flatten({name: self._made[of_all] for name, of_all in shared.items()})

    def state(self) -> dict[str, torch.Tensor]:
        """What was made one, by name, and of which round it is; empty before the first time."""
        if not self.round:
            return {}
        return {IN_CHECKPOINT + name: t for name, t in self._made.items()} | {
            IN_CHECKPOINT + _ROUND: torch.tensor(self.round)
        }

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back what :meth:`state` gave; other names are left alone."""
        made = {n.removeprefix(IN_CHECKPOINT): t for n, t in state.items() if n.startswith(IN_CHECKPOINT)}
        if made:
            self.round = int(made.pop(_ROUND))
            self._made = made

    def _shared_names(self, device: str) -> dict[str, str]:
        """Name of each of a device's tensors to what it is called among all who share it."""
        job = self._jobs[device]
        group = f"{job.cut}/" if job.sync.mode == "same_cut" else ""
        return {name: group + _shared(name, job.cut) for name in self.layout_of(device).names}


def _shared(name: str, cut: str) -> str:
    """An exit is called by its stage: it is at the cut of one device and before that of another."""
    bare = name.removeprefix(MOMENTUM)
    momentum = name.removesuffix(bare)
    if bare.startswith("exit_head."):
        bare = f"exits.{cut}.{bare.removeprefix('exit_head.')}"
    elif bare.startswith("shallow_heads."):
        bare = f"exits.{bare.removeprefix('shallow_heads.')}"
    return momentum + bare


def _layout(job: Job) -> SegmentLayout:
    model = build_device_model(
        job.model,
        cut=job.cut,
        exit_head=job.exit_head,
        optimizer=job.optimizer,
        seed=job.seed,
        all_exits=job.all_exits,
    )
    return layout_of(model.modules, with_momentum=job.sync.momentum == "average")
