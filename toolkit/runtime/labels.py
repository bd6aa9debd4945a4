"""One sample with its label, and how a label's name finds its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError, did_you_mean


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample on its way from a source.

    Attributes:
        name: by which messages and answers call it.
        x: of one sample's shape, raw.
        label: index into the class names, or None.
    """

    name: str
    x: NDArray[np.float32]
    label: int | None


def label_index(label: str | int, class_names: Sequence[str], where: str) -> int:
    """Look a label up: a class's name, or its index.

    Raises: DataError: it is neither; facts: label.
    """
    if label in class_names:
        return class_names.index(str(label))
    text = str(label).strip()
    if text.isdecimal() and int(text) < len(class_names):
        return int(text)
    raise DataError(
        f"{where} names the class {text!r}, which the model does not know.",
        hint=f"{did_you_mean(text, class_names)} Use --no-labels to answer without looking at labels.",
        label=text,
    )
