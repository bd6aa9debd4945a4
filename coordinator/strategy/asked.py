"""Asking a strategy: whatever it raises names it, and what it answers is held to what it was shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from coordinator.strategy.base import PoolView, RoundView, Strategy, SubBatch
from toolkit.errors import HseeError, StrategyError

_V = TypeVar("_V", RoundView, PoolView)


class Asked:
    """A strategy, a user's own perhaps, that may be relied on.

    Args:
        strategy: that decides.

    Raises: StrategyError: by each method, if the strategy fails or answers what makes no sense.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self.name = strategy.name
        self.mode = strategy.mode

    def next_device(self, view: RoundView) -> str | None:
        """See :class:`Strategy`: a device with a batch here, or None."""
        device = self._ask("next_device", view)
        if device is not None and not any(d.device == device and d.n_ready for d in view.devices):
            raise StrategyError(f"Strategy {self.name!r} chose {device!r}, which has no batch here.")
        return None if device is None else str(device)

    def turn(self, view: RoundView) -> str | None:
        """See :class:`Strategy`: a device of the round, or None."""
        device = self._ask("turn", view)
        if device is not None and not any(d.device == device for d in view.devices):
            raise StrategyError(
                f"Strategy {self.name!r} waits for {device!r}, which is no device of the round."
            )
        return None if device is None else str(device)

    def weights(self, view: RoundView) -> dict[str, int]:
        """See :class:`Strategy`: whole numbers from 1, of devices that trained."""
        weights = self._ask("weights", view)
        if not isinstance(weights, Mapping):
            raise StrategyError(
                f"Strategy {self.name!r} weighs with a {type(weights).__name__}, not a mapping."
            )
        trained = {d.device for d in view.devices if d.n_applied}
        for device, weight in weights.items():
            if device not in trained or not isinstance(weight, int) or weight < 1:
                raise StrategyError(
                    f"Strategy {self.name!r} weighs {device!r} with {weight!r} in round {view.round}.",
                    hint="Weights are whole numbers from 1, of devices that trained in the round.",
                )
        return dict(weights)

    def mixed_steps(self, pool: PoolView) -> list[Sequence[SubBatch]]:
        """See :class:`Strategy`: samples that the pool has, at most one sub-batch a cut in a step."""
        steps = self._ask("mixed_steps", pool)
        try:
            made = [list(step) for step in steps]
            for number, step in enumerate(made, start=1):
                self._check_step(step, pool, number)
        except (
            TypeError,
            AttributeError,
            ValueError,
            IndexError,
        ) as exc:  # of other shapes or types altogether
            raise StrategyError(
                f"Strategy {self.name!r} composed no steps of sub-batches in round {pool.round}: {exc}.",
                hint="mixed_steps returns a sequence of steps, each a sequence of SubBatch.",
            ) from exc
        return [step for step in made if step]

    def _check_step(self, step: Sequence[SubBatch], pool: PoolView, number: int) -> None:
        where = f"Strategy {self.name!r}, step {number} of round {pool.round}"
        if len({part.cut for part in step}) < len(step):
            raise StrategyError(
                f"{where}: a cut has two sub-batches.", hint="Join them: one a cut in a step."
            )
        cuts = np.array([batch.cut for batch in pool.batches])
        n_samples = np.array([batch.n_samples for batch in pool.batches])
        for part in step:
            batches, rows = np.asarray(part.batches), np.asarray(part.rows)
            if batches.shape != rows.shape or batches.ndim != 1 or not batches.size:
                raise StrategyError(
                    f"{where}: a sub-batch names {batches.size} batches and {rows.size} rows."
                )
            fit = (batches >= 0) & (batches < len(cuts)) & (rows >= 0)
            if not fit.all() or (cuts[batches] != part.cut).any() or (rows >= n_samples[batches]).any():
                raise StrategyError(
                    f"{where}: a sub-batch at cut {part.cut!r} names samples that the pool does not have there."
                )

    def _ask(self, decision: str, view: _V) -> Any:
        try:
            return getattr(self._strategy, decision)(view)
        except HseeError:
            raise
        except Exception as exc:  # a user's own
            raise StrategyError(
                f"Strategy {self.name!r} failed in {decision}, round {view.round}: {type(exc).__name__}: {exc}.",
                hint="HSEE_DEBUG=1 shows where.",
            ) from exc
