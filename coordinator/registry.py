"""Who may take part: hellos are held to the run, and what the joined devices hold becomes the run's data facts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from toolkit.errors import DataError
from toolkit.wire.limits import PROTOCOL_VERSION
from toolkit.wire.messages import DataSummary, Hello


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
) -> tuple[str, str] | None:
    """Say why a hello can't be accepted.

    Args:
        hello: as it came.
        device: the sender, as the topic names it.
        classes: the run's class list if it is set already, else empty.
        input_shape: of the run's data if it is known already.
        members: devices of the plan once there is one; nobody else joins then.
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
        return "late", "The run began without this device. Start it before the run, or start a new run."
    if input_shape is not None and list(hello.data.input_shape) != list(input_shape):
        return "shape", (
            f"This device's samples have shape {hello.data.input_shape}; the run's have {list(input_shape)}."
            " All devices of a run need samples of one shape."
        )
    unknown = [name for name in hello.data.classes if name not in classes] if classes else []
    if unknown:
        return "classes", (
            f"This device holds classes that the run does not have: {', '.join(unknown)}."
            f" The run's classes are {', '.join(classes)}."
        )
    return None


def unite(summaries: Sequence[DataSummary], *, classes: Sequence[str] = ()) -> DataFacts:
    """Make the run's data facts of what the joined devices hold.

    Args:
        summaries: at least one.
        classes: the run's class list where it is set; else the union of the devices', numbers in their order.
    Returns: the normalisation is that of all training samples pooled, by count.
    Raises: DataError: fewer than two classes in all.
    """
    names = tuple(classes) or tuple(sorted({name for s in summaries for name in s.classes}, key=_natural))
    if len(names) < 2:  # noqa: PLR2004 - a classifier's least
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


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts class 10 behind class 9."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part
    ]
