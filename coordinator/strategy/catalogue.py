"""The strategies by name."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.strategy.averaging import Averaging
from coordinator.strategy.base import Strategy
from coordinator.strategy.sequential import Sequential
from toolkit.errors import StrategyError, did_you_mean

STRATEGIES: dict[str, Callable[[], Strategy]] = {"averaging": Averaging, "sequential": Sequential}


def make_strategy(name: str) -> Strategy:
    """Make a strategy.

    Raises: StrategyError: there is none of that name.
    """
    make = STRATEGIES.get(name)
    if make is None:
        raise StrategyError(
            f"There is no strategy {name!r}.", hint=did_you_mean(name, STRATEGIES), strategy=name
        )
    return make()
