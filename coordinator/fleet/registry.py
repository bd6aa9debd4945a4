"""Who may take part: hellos are held to the run, and what the joined devices hold becomes the run's data facts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toolkit.config import Run
from toolkit.errors import DataError, ModelError
from toolkit.nn.server_exits import check_server_exits
from toolkit.nn.zoo import build_network
from toolkit.wire.job import ModelSpec
from toolkit.wire.limits import PROTOCOL_VERSION
from toolkit.wire.messages import DataSummary, Hello

MAX_NAMED = 6
"""A refusal names no more classes than this, and of each no more than ``MAX_NAME_CHARACTERS``."""
MAX_NAME_CHARACTERS = 40
MIN_CLASSES = 2


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What the run owns of data: one ordered class list, one shape, one normalisation (per channel)."""

    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def refusal_of(
    hello: Hello,
    *,
    device: str,
    classes: Sequence[str],
    input_shape: Sequence[int] | None,
    members: Iterable[str] | None,
    influence: str = "",
) -> tuple[str, str] | None:
    """Say why a hello can't be accepted.

    Args:
        hello: as it came.
        device: the sender, as the topic names it.
        classes: the run's class list if it is set already, else empty.
        input_shape: of the run's data if it is known already.
        members: devices of the plan once there is one; nobody else joins then.
        influence: how the run reaches devices' weights, in words; empty where it does not.
    Returns: (code, message for the device's owner), or None where it is welcome.
    """
    if hello.device != device:
        return "name", f"A hello on the topic of {device!r} names {hello.device!r}."
    if PROTOCOL_VERSION not in hello.protocols:
        return (
            "protocol",
            f"The coordinator speaks protocol {PROTOCOL_VERSION}; the device speaks {hello.protocols}.",
        )
    if members is not None and device not in members:
        return "late", "The run began without this device."
    # PROTOCOL.md 19: "the coordinator MUST refuse its hello with the code `weights` before."
    if influence and hello.accept_weights == "never":
        return "weights", (
            f"This run lets the coordinator influence devices' weights ({influence}); this device's own settings do"
            " not accept that: device.accept_weights = never."
        )
    return _refusal_of_data(hello.data, classes, input_shape)


def _refusal_of_data(
    data: DataSummary, classes: Sequence[str], input_shape: Sequence[int] | None
) -> tuple[str, str] | None:
    if input_shape is not None and list(data.input_shape) != list(input_shape):
        return "shape", (
            f"This device's samples have shape {data.input_shape}; the run's have {list(input_shape)}."
        )
    unknown = [name for name in data.classes if name not in classes] if classes else []
    if unknown:
        return "classes", (
            f"This device holds classes that the run does not have: {_named(unknown)}."
            f" The run's classes are {_named(classes)}."
        )
    return None


def refusal_of_model(settings: Run, input_shape: Sequence[int]) -> tuple[str, str] | None:
    """Say why the run's model can't be built for a device's samples, before the device measures itself for it.

    Raises: CutError: the run asks for an exit at a stage that no server of this model has: no device can mend that.
    """
    spec = ModelSpec(
        name=settings.model,
        input_shape=list(input_shape),
        n_classes=max(MIN_CLASSES, len(settings.classes)),
        options=settings.model_options,
    )
    try:
        network = build_network(spec, seed=settings.seed)
    except ModelError as exc:
        return "model", exc.message
    check_server_exits(settings.server_exits, network.stage_names)
    return None


def _named(names: Sequence[str]) -> str:
    """List names so that any number of them, however long, fits a message."""
    short = [
        n if len(n) <= MAX_NAME_CHARACTERS else f"{n[:MAX_NAME_CHARACTERS]}..." for n in names[:MAX_NAMED]
    ]
    more = len(names) - len(short)
    return ", ".join(short) + (f" and {more} more" if more else "")


def unite(summaries: Sequence[DataSummary], *, classes: Sequence[str] = ()) -> DataFacts:
    """Make the run's data facts of what the joined devices hold.

    Args:
        summaries: at least one.
        classes: the run's class list where it is set; else the union of the devices', numbers in their order.
    Returns: the normalisation is that of all training samples pooled, by count.
    Raises: DataError: fewer than two classes in all.
    """
    names = tuple(classes) or tuple(sorted({name for s in summaries for name in s.classes}, key=_natural))
    if len(names) < MIN_CLASSES:
        raise DataError(
            f"The devices hold the class {names[0]!r} only.", hint="Training needs at least two classes."
        )
    total = sum(s.n_train for s in summaries)
    n_channels = len(summaries[0].mean)
    mean = [sum(s.n_train * s.mean[c] for s in summaries) / total for c in range(n_channels)]
    second = [
        sum(s.n_train * (s.var[c] + s.mean[c] ** 2) for s in summaries) / total for c in range(n_channels)
    ]
    std = [max(second[c] - mean[c] ** 2, 1e-12) ** 0.5 for c in range(n_channels)]
    return DataFacts(names, tuple(summaries[0].input_shape), tuple(mean), tuple(std))


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts class 10 behind class 9; names with one key, as 1 and 01, stand in plain order."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name
