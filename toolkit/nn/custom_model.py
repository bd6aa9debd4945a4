"""Models that a user brings: ``python:package.module:make_model``, installed on every machine that builds them.

What ``make_model`` returns is one of
    a StagedNetwork;
    a sequence of (name, module), of which the last is the classifier;
    any nn.Module, whose option ``stages="stem,body,head"`` names children of it in the order of its forward pass.
It is called with its options by keyword, and with ``input_shape`` and ``n_classes`` where it has such parameters.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from toolkit.errors import HseeError, ModelError, did_you_mean
from toolkit.nn.network import StagedNetwork, pass_through
from toolkit.nn.trace import split_at
from toolkit.wire.job import OWN_MODEL, ModelSpec, Scalar

STAGES_OPTION = "stages"
_PROVIDED = ("input_shape", "n_classes")


def is_custom(name: str) -> bool:
    """Whether a model's name says that the user brings it."""
    return name.startswith(OWN_MODEL)


def find_maker(name: str) -> Callable[..., object]:
    """Import what makes a model.

    Raises: ModelError: it is not installed here, or no function.
    """
    module_name, _, function_name = name.removeprefix(OWN_MODEL).partition(":")
    if not module_name or not function_name:
        raise ModelError(f"{name!r} names no model.", hint="Write it as python:package.module:make_model.")
    try:
        make: object = getattr(importlib.import_module(module_name), function_name)
    except HseeError:
        raise
    except Exception as exc:  # what a user's module raises when it is imported is anything
        raise ModelError(
            f"The model {name!r} can't be imported on this machine: {type(exc).__name__}: {exc}.",
            hint="A model's code is never sent: install its package on the coordinator and on every board, or put it "
            "on PYTHONPATH there.",
            model=name,
        ) from exc
    if not callable(make):
        raise ModelError(f"{name!r} is no function that makes a model.", model=name)
    return make


def check_options(name: str, make: Callable[..., object], options: Mapping[str, Scalar]) -> None:
    """Hold options to the parameters of what makes a model.

    Raises: ModelError: an option that it does not take, or a parameter that nobody gives.
    """
    known, open_ended, needed = _parameters(make)
    for option in options:
        if option not in {*known, STAGES_OPTION} and not open_ended:
            raise ModelError(
                f"Model {name!r} has no option {option!r}.",
                hint=did_you_mean(option, set(known) - set(_PROVIDED)) or "It takes none.",
                model=name,
            )
    missing = [parameter for parameter in needed if parameter not in {*options, *_PROVIDED}]
    if missing:
        raise ModelError(
            f"Model {name!r} needs the option {missing[0]!r}.",
            hint=f"Give it: --option {missing[0]}=..., or in a run --set run.model_options='{{{missing[0]} = ...}}'.",
            model=name,
        )


def make_custom(spec: ModelSpec, make: Callable[..., object]) -> StagedNetwork:
    """Build a user's model.

    Raises: ModelError: it can't be made, its stages do not chain, a skip connection crosses a boundary, it does not
        give ``n_classes`` logits, or it keeps state that can't be saved.
    """
    known, open_ended, _ = _parameters(make)
    given: dict[str, Any] = dict(spec.options)
    stages = None if STAGES_OPTION in known else given.pop(STAGES_OPTION, None)
    provided = {"input_shape": tuple(spec.input_shape), "n_classes": spec.n_classes}
    given = {name: value for name, value in provided.items() if name in known or open_ended} | given
    try:
        made = make(**given)
    except HseeError:
        raise
    except Exception as exc:  # a user's function
        raise ModelError(
            f"The model {spec.name!r} can't be made: {type(exc).__name__}: {exc}.",
            hint="HSEE_DEBUG=1 shows where.",
            model=spec.name,
        ) from exc
    network = _staged(spec, made, stages)
    _check_outputs(spec, network)
    return network


def _staged(spec: ModelSpec, made: object, stages: object) -> StagedNetwork:
    if isinstance(made, nn.Module) and not isinstance(made, StagedNetwork | nn.ModuleList):
        if stages is None:
            children = ",".join(name for name, _ in made.named_children())
            raise ModelError(
                f"The model {spec.name!r} is a {type(made).__name__}, and nothing says where it can be cut.",
                hint=f"Name its stages in order, the classifier last: hsee model show --option stages={children or '...'}; "
                f"in a run --set 'run.model_options.stages=\"{children or '...'}\"'.",
                model=spec.name,
            )
        names = [name.strip() for name in str(stages).split(",") if name.strip()]
        made = split_at(made, names, spec.input_shape)
    elif stages is not None:
        raise ModelError(
            f"The model {spec.name!r} names its stages itself; it takes no option 'stages'.", model=spec.name
        )
    if isinstance(made, StagedNetwork):
        return made
    if not isinstance(made, Sequence) or not all(map(_is_named_module, made)):
        raise ModelError(
            f"The model {spec.name!r} returned {type(made).__name__}.",
            hint="Return a sequence of (name, module) with the classifier last, a StagedNetwork, or an nn.Module.",
            model=spec.name,
        )
    names = [name for name, _ in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or len(names) < 2:  # noqa: PLR2004 - a stage and the classifier
        raise ModelError(
            f"The model {spec.name!r} has stages {', '.join(names) or 'none'}"
            + (f": {twice!r} stands there twice." if twice else ", too few."),
            hint="It needs at least one stage and the classifier, each with a name of its own.",
            model=spec.name,
        )
    return StagedNetwork(dict(made[:-1]), made[-1][1])


def _check_outputs(spec: ModelSpec, network: StagedNetwork) -> None:
    """Run one sample through, so that a model that can't work is refused before anything depends on it."""
    was_training = network.training
    network.eval()
    *_, (_, logits) = pass_through(network.rows, spec.input_shape)
    network.train(was_training)
    if logits != (spec.n_classes,):
        raise ModelError(
            f"The model {spec.name!r} answers with shape {logits} a sample; the data has {spec.n_classes} classes.",
            hint="Let make_model take n_classes and end in a layer that gives so many logits.",
            model=spec.name,
        )
    extra = next((name for name in network.state_dict() if name.endswith("_extra_state")), None)
    if extra is not None:
        raise ModelError(
            f"The model {spec.name!r} keeps {extra}, which is no parameter or buffer.",
            hint="Register as a buffer what a module has to remember; get_extra_state is not carried.",
            model=spec.name,
        )


def _parameters(make: Callable[..., object]) -> tuple[list[str], bool, list[str]]:
    """Names that can be given by keyword, whether any other can, and those that must be given."""
    parameters = inspect.signature(make).parameters.values()
    keyword = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in keyword if p.default is p.empty]
    needed += [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    return [p.name for p in keyword], any(p.kind is p.VAR_KEYWORD for p in parameters), needed


def _is_named_module(item: object) -> bool:
    return (
        isinstance(item, tuple | list)
        and len(item) == 2  # noqa: PLR2004 - a name and a module
        and isinstance(item[0], str)
        and isinstance(item[1], nn.Module)
    )
