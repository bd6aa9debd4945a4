"""A run with a plan, as a committed state has it: its loop, and the model that the loop trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from coordinator.model.segments import Segments
from coordinator.model.server_logits import ServerLogits
from coordinator.model.server_model import ServerModel
from coordinator.model.trainer import Trainer
from coordinator.rounds.loop import RoundLoop
from coordinator.rounds.stopping import StopRule
from coordinator.rounds.windows import FLOOR, Windows
from coordinator.store.checkpoints import CommittedState, Generation
from coordinator.store.ledger import Entry
from coordinator.strategy.catalogue import make_strategy
from toolkit.errors import ConfigError
from toolkit.nn.zoo import build_network
from toolkit.wire.weights import FlatWeights

FLOAT32_BYTES = 4
LABEL_BYTES = 8


class Model(Trainer, Protocol):
    """What a run needs of the server's model: training, what a commit keeps of it, what devices are handed down."""

    @property
    def segments(self) -> Segments | None:
        """The devices' segments, where they are made one between rounds."""
        ...

    @property
    def lowered_round(self) -> int:
        """The round whose results are handed down to devices; 0 for none."""
        ...

    def lowered(self, device: str, *, taken: int) -> tuple[FlatWeights | None, NDArray[np.float32] | None]:
        """What a device is handed down that has taken what round ``taken`` came to: its segment, the server's logits."""
        ...

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of each file that the model is made again from, an open period's copies among them."""
        ...

    def load(self, generation: Generation) -> None:
        """Put back what :meth:`files` gave.

        Raises: CheckpointError: it is of another model.
        """


@dataclass(frozen=True, slots=True)
class Makes:
    """What a run is computed with.

    Attributes:
        model: makes the server's model.
        segments: makes what gathers the devices' segments, where they are made one.
    """

    model: Callable[..., Model] = ServerModel
    segments: Callable[..., Segments] = Segments


@dataclass(slots=True)
class Underway:
    """What is committed, the loop over it, the model that it trains, and what may end it early."""

    state: CommittedState
    loop: RoundLoop
    model: Model
    stop: StopRule = field(default_factory=StopRule)

    @property
    def is_done(self) -> bool:
        """Whether the run has come to its end, between two rounds."""
        return not self.loop.is_open and (self._is_complete or bool(self.stop.reason))

    @property
    def end(self) -> str:
        """How a run that is done came to its end, in a sentence."""
        if self._is_complete:
            return f"All {self.loop.round} rounds are done."
        return f"After round {self.loop.round} of {self.state.common.rounds}: {self.stop.reason}."

    @property
    def _is_complete(self) -> bool:
        return self.loop.round >= self.state.common.rounds


def take_up(
    state: CommittedState,
    *,
    record: Callable[[Entry], None],
    makes: Makes,
    scratch: Path,
    device: torch.device | str,
    turn_s: float,
    waiting_bytes: int,
) -> Underway:
    """Build model and loop as a committed state has them.

    Args:
        state: planned, with no round closed yet or some.
        record: takes each ledger entry.
        makes: what it is computed with.
        scratch: folder for what does not fit the memory.
        device: torch device of the server's steps.
        turn_s: longest turn of a device in a strategy with an order.
        waiting_bytes: of batches that may wait in memory.
    Raises: StrategyError, ModelError: the state names what this version does not have. ConfigError: some device's batch
        has no room at all.
    """
    job = state.common
    synchronises = job.sync.mode != "none"
    strategy = make_strategy(state.strategy, state.strategy_options)
    model = makes.model(
        job.model,
        cuts=state.cuts,
        optimizer=job.optimizer,
        rounds=job.rounds,
        seed=job.seed,
        strategy=strategy,
        scratch=scratch,
        device=device,
        segments=makes.segments(state.jobs, bn=strategy.copy_rules.bn, scratch=scratch)
        if synchronises
        else None,
        server=state.server,
        logits=ServerLogits() if job.from_server.weight else None,
    )
    item_bytes = {device: _item_bytes(device, state, model.segments) for device in state.jobs}
    _check_room(item_bytes, waiting_bytes)
    loop = RoundLoop(
        strategy,
        model,
        record=record,
        jobs=state.jobs,
        lists=state.lists,
        windows=Windows(item_bytes, budget_bytes=waiting_bytes),
        round_=state.round,
        turn_s=turn_s,
        n_applied=state.n_applied,
        shallow_stages=_shallow_stages(state),
    )
    return Underway(state, loop, model)


def _shallow_stages(state: CommittedState) -> dict[str, tuple[str, ...]]:
    job = state.common
    if not job.all_exits:
        return {}
    names = build_network(job.model, seed=job.seed).stage_names
    return {device: names[: names.index(cut)] for device, cut in state.cuts.items()}


def _check_room(item_bytes: Mapping[str, tuple[int, int]], waiting_bytes: int) -> None:
    device, (largest, _) = max(item_bytes.items(), key=lambda item: item[1][0])
    if largest > waiting_bytes:
        raise ConfigError(
            f"run.waiting_bytes = {waiting_bytes} has no room for a batch of {device}, which takes {largest} bytes.",
            hint=f"Raise it: --set run.waiting_bytes={FLOOR * largest} or more, a resumed run's in its config.toml."
            " Or lower run.batch_size, or let the device be cut where its activations are smaller.",
            device=device,
            n_bytes=largest,
        )


def _item_bytes(device: str, state: CommittedState, segments: Segments | None) -> tuple[int, int]:
    """What a batch of a device takes in memory while it waits, and its weights, where they are gathered."""
    n_values = prod(state.activation_shapes[device])
    of_batch = state.jobs[device].batch_size * (n_values * FLOAT32_BYTES + LABEL_BYTES)
    return of_batch, 0 if segments is None else segments.layout_of(device).lengths.payload_bytes()
