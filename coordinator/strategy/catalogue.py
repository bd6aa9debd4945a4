"""The strategies by name, and a user's own through ``python:module:Class``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from coordinator.strategy.averaging import Averaging
from coordinator.strategy.base import Mode, Strategy
from coordinator.strategy.consolidated import Consolidated
from coordinator.strategy.sequential import Sequential
from toolkit.errors import HseeError, StrategyError, did_you_mean
from toolkit.wire.job import Scalar

STRATEGIES: dict[str, type[Strategy]] = {
    "averaging": Averaging,
    "consolidated": Consolidated,
    "sequential": Sequential,
}
OWN = "python:"
"""What the name of a user's own strategy begins with."""


def make_strategy(name: str, options: Mapping[str, Scalar] | None = None) -> Strategy:
    """Make a strategy.

    Args:
        name: one of :data:`STRATEGIES`, or ``python:package.module:Class`` for a class that derives from
            :class:`Strategy`.
        options: its keyword arguments.
    Raises: StrategyError: there is none of that name, or it takes no such option or value.
    """
    kind = _own(name) if name.startswith(OWN) else STRATEGIES.get(name)
    if kind is None:
        raise StrategyError(
            f"There is no strategy {name!r}.",
            hint=f"{did_you_mean(name, STRATEGIES)} Your own: python:package.module:Class.",
            strategy=name,
        )
    given = dict(options or {})
    _check_options(name, kind, given)
    try:
        return kind(**given)
    except HseeError:
        raise
    except Exception as exc:  # a user's own
        raise StrategyError(
            f"The strategy {name!r} can't be made: {type(exc).__name__}: {exc}.",
            hint="HSEE_DEBUG=1 shows where.",
            strategy=name,
        ) from exc


def _own(name: str) -> type[Strategy]:
    module_name, _, class_name = name.removeprefix(OWN).partition(":")
    try:
        kind = getattr(importlib.import_module(module_name), class_name)
    except Exception as exc:  # what a user's module raises when it is imported is anything
        raise StrategyError(
            f"The strategy {name!r} can't be imported: {type(exc).__name__}: {exc}.",
            hint="Write it as python:package.module:Class; the package must be installed here or be on PYTHONPATH.",
            strategy=name,
        ) from exc
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise StrategyError(
            f"{name!r} is no strategy: it does not derive from coordinator.strategy.base.Strategy.",
            strategy=name,
        )
    if not getattr(kind, "name", "") or kind.mode not in get_args(Mode):
        raise StrategyError(
            f"{name!r} needs a name, and a mode that is one of {', '.join(get_args(Mode))}.", strategy=name
        )
    return kind


def _check_options(name: str, kind: type[Strategy], options: Mapping[str, Scalar]) -> None:
    parameters = inspect.signature(kind).parameters
    hints = get_type_hints(kind.__init__) if parameters else {}
    for option, value in options.items():
        if option not in parameters:
            hint = did_you_mean(option, parameters) or "It takes none."
            raise StrategyError(f"Strategy {name!r} has no option {option!r}.", hint=hint, option=option)
        _check_value(name, option, value, hints.get(option))
    named = (p for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    missing = next((p.name for p in named if p.default is p.empty and p.name not in options), None)
    if missing is not None:
        raise StrategyError(
            f"Strategy {name!r} needs the option {missing!r}.",
            hint=f"Give it: --option {missing}=...",
            option=missing,
        )


def _check_value(name: str, option: str, value: Scalar, kind: Any) -> None:
    wrong = f"Strategy {name!r}: option {option!r} is {value!r}"
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise StrategyError(f"{wrong}.", hint=did_you_mean(str(value), get_args(kind)), option=option)
    if kind is int and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise StrategyError(f"{wrong}; expected a whole number from 0.", option=option)
    if kind is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise StrategyError(f"{wrong}; expected a number.", option=option)
