"""The real trainer and the real server model, each with a clock that its work moves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coordinator.model.server_model import ServerModel
from coordinator.strategy.base import SubBatch
from device_agent.saved_place import CURSOR
from device_agent.state import BEFORE_FILE, TRAINING_FILE
from device_agent.trainer import Trainer
from toolkit.nn.compute import Numerics
from toolkit.nn.weights import load_tensors
from toolkit.simulate.times import FORWARD_SHARE, ActorClock
from toolkit.wire.payloads import Batch


class DroppedOutError(Exception):
    """A device is lost here, as the scenario has it."""


class PacedTrainer(Trainer):
    """A trainer whose steps take virtual time, and that saves at each round's end only.

    Args:
        clock: of its device.
        step_s: a training step at its cut.
        drop_round: at whose beginning the device is lost; 0 for never.
        numerics: whose memory format the weights take.
        kwargs: of :class:`Trainer`.
    """

    def __init__(
        self, *, clock: ActorClock, step_s: float, drop_round: int, numerics: Numerics, **kwargs: Any
    ) -> None:
        self._virtual = clock
        self._step_s = step_s
        self._drop_round = drop_round
        # Saves within a round would push out that of the committed one, which a simulation that is cut off goes back to.
        super().__init__(**kwargs, checkpoint_every_s=math.inf)
        numerics.lay_out(self._model.modules)

    def enter_round(self, round_: int, seq: int) -> None:
        """See :class:`Trainer`.

        Raises: DroppedOutError: the device is lost here.
        """
        if self._drop_round and round_ >= self._drop_round:
            raise DroppedOutError
        super().enter_round(round_, seq)

    def train_next(self) -> Batch:
        """See :class:`Trainer`."""
        batch = super().train_next()
        self._virtual.spend(self._step_s)
        return batch

    def make_again(self, seq: int) -> Batch:
        """See :class:`Trainer`."""
        batch = super().make_again(seq)
        self._virtual.spend(self._step_s * FORWARD_SHARE)
        return batch


class PacedServerModel(ServerModel):
    """A server model whose steps take virtual time; aggregation is not charged.

    Args:
        clock: of the coordinator.
        step_s: a training step on one batch, by cut.
        batch_size: of the run.
        numerics: whose memory format the weights take.
        args: of :class:`ServerModel`.
        kwargs: likewise.
    """

    def __init__(
        self,
        *args: Any,
        clock: ActorClock,
        step_s: Mapping[str, float],
        batch_size: int,
        numerics: Numerics,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        numerics.lay_out(self._network)
        self._clock = clock
        self._step_s = step_s
        self._batch_size = batch_size

    def apply(self, device: str, batch: Batch, *, round_: int, seq: int) -> float:
        """See :class:`ServerModel`."""
        loss = super().apply(device, batch, round_=round_, seq=seq)
        self._clock.spend(self._step_s[self._cuts[device]])
        return loss

    def pool(self, device: str, batch: Batch, *, seq: int) -> None:
        """See :class:`ServerModel`; takes no time, but there may be more to do at once."""
        super().pool(device, batch, seq=seq)
        self._clock.spend(0.0)

    def apply_mixed(self, parts: Sequence[SubBatch], *, round_: int, step: int) -> list[float]:
        """See :class:`ServerModel`."""
        losses = super().apply_mixed(parts, round_=round_, step=step)
        self._clock.spend(sum(self._step_s[p.cut] * len(p.rows) / self._batch_size for p in parts))
        return losses

    def n_correct(self, device: str, batch: Batch) -> dict[str, int]:
        """See :class:`ServerModel`."""
        n_correct = super().n_correct(device, batch)
        share = len(batch.y) / self._batch_size
        self._clock.spend(self._step_s[self._cuts[device]] * share * FORWARD_SHARE)
        return n_correct


def go_back_to(folder: Path, round_: int) -> None:
    """Let a device go on from a committed round's end, as if what came after had never been.

    A real device never goes back; a simulation that was killed does, so that it comes to what it would have come to.
    """
    saves = [folder / name for name in (TRAINING_FILE, BEFORE_FILE)]
    reached = {path: _cursor(path) for path in saves if path.exists()}
    fitting = {path: cursor for path, cursor in reached.items() if cursor[0] <= round_}
    newest = max(fitting, key=lambda path: fitting[path], default=None)
    if newest is None:
        (folder / TRAINING_FILE).unlink(missing_ok=True)
        (folder / BEFORE_FILE).unlink(missing_ok=True)
    elif newest.name != TRAINING_FILE:
        newest.replace(folder / TRAINING_FILE)


def _cursor(path: Path) -> tuple[int, int]:
    round_, seq = load_tensors(path)[CURSOR].tolist()[:2]
    return round_, seq
