"""A model as commands take it: a name, an input shape such as 1x8x8, a number of classes, and options NAME=VALUE."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from toolkit.errors import UsageError
from toolkit.wire.job import ModelSpec, Scalar


def model_spec(model: str, input_shape: str, classes: int, options: Sequence[str]) -> ModelSpec:
    """Read a model from the words of a command.

    Args:
        model: its name.
        input_shape: one sample's, as 1x8x8.
        classes: how many.
        options: each NAME=VALUE.
    Raises: UsageError: that is no model.
    """
    given = {
        "name": model,
        "input_shape": [int(side) if side.isdecimal() else side for side in input_shape.split("x")],
        "n_classes": classes,
        "options": {
            key: _scalar(value) for key, value in (pair(o, "--option", "NAME=VALUE") for o in options)
        },
    }
    try:
        return msgspec.convert(given, ModelSpec)
    except msgspec.ValidationError as exc:
        raise UsageError(
            f"That is no model: {exc}.", hint="An input shape is written 1x8x8 (channels, height, width)."
        ) from exc


def _scalar(text: str) -> Scalar:
    try:
        value: Scalar = msgspec.json.decode(text, type=int | float | bool)
    except msgspec.DecodeError:
        return text
    return value


def pair(text: str, flag: str, form: str) -> tuple[str, str]:
    """Split KEY=VALUE.

    Args:
        text: as the user wrote it.
        flag: it came with.
        form: it should have.
    Raises: UsageError: it has another form.
    """
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise UsageError(f"{flag} is written {form}, not {text!r}.")
    return key, value
