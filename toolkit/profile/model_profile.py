"""How good each exit of a model is: accuracy by cut, from a central run. A TOML file beside the boards' profiles.

Milliseconds and bytes alone would always pick the cut nearest to the input, whose exit is worth least.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from toolkit.errors import ProfileError
from toolkit.profile.link import Text
from toolkit.profile.toml_struct import read_struct, struct_text, write_text
from toolkit.wire.job import Count, ModelSpec, Name, Positive

Share = Annotated[float, Meta(ge=0, le=1)]
Factor = Annotated[float, Meta(gt=0, lt=100)]


class CentralRun(msgspec.Struct, frozen=True, kw_only=True):
    """The run that the numbers come from: all data in one place, each cut's segment and exit trained on it.

    Attributes:
        data: the source, in the words of ``device.data``.
        n_eval: held-out samples that the accuracies are of.
        seeds: one run each.
    """

    date: dt.date
    machine: Text
    command: Text
    data: Text
    n_train: Positive
    n_eval: Positive
    epochs: Positive
    batch_size: Positive
    seeds: Annotated[tuple[Count, ...], Meta(min_length=1)]
    software: dict[str, str] = {}


class ExitRow(msgspec.Struct, frozen=True, kw_only=True):
    """One cut's exit.

    Attributes:
        accuracy: held-out, mean over the seeds; ``accuracy_min`` and ``accuracy_max`` are the seeds' own.
        server_accuracy: of the rest of the network behind this cut, trained on its activations.
        compressed: codec to the size of its activations over their size uncompressed, for codecs that compress.
    """

    cut: Annotated[str, Meta(min_length=1, max_length=256)]
    accuracy: Share
    accuracy_min: Share
    accuracy_max: Share
    server_accuracy: Share
    compressed: dict[str, Factor] = {}

    def __post_init__(self) -> None:
        if not self.accuracy_min <= self.accuracy <= self.accuracy_max:
            msg = f"exit {self.cut!r} needs accuracy_min <= accuracy <= accuracy_max"
            raise ValueError(msg)


class ModelProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A model on a data set: how good its exits are, cut by cut, shallow first."""

    schema: Literal[1]
    name: Name
    provenance: CentralRun
    model: ModelSpec
    exit_head: Annotated[str, Meta(min_length=1, max_length=64)]
    exits: Annotated[tuple[ExitRow, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        cuts = [row.cut for row in self.exits]
        if len(set(cuts)) < len(cuts):
            msg = "a cut stands there twice"
            raise ValueError(msg)

    def exit_at(self, cut: str) -> ExitRow | None:
        """Find a cut's exit."""
        return next((row for row in self.exits if row.cut == cut), None)

    def misfit(self, model: ModelSpec, *, exit_head: str) -> str:
        """Say why these accuracies are not those of a job; nothing when they are. Data are not compared."""
        pairs = [
            (key, getattr(self.model, key), getattr(model, key)) for key in ("name", "input_shape", "options")
        ]
        # Options are what the model was built with, and a class more or less does not reorder its exits.
        pairs.append(("exit_head", self.exit_head, exit_head))
        wrong = [f"{key} is {got!r}, needed is {wanted!r}" for key, got, wanted in pairs if got != wanted]
        return f"Model profile {self.name!r} is of something else: {'; '.join(wrong)}." if wrong else ""


COMMENTS = {
    "provenance.command": "makes this file again",
    "exits.accuracy": "held-out, mean over the seeds",
    "exits.server_accuracy": "of the rest of the network behind this cut",
}


def read_model_profile(path: Path) -> ModelProfile:
    """Read a model's profile.

    Raises: ProfileError: it names file, key, and what was expected.
    """
    return read_struct(
        path,
        ModelProfile,
        noun="model profile",
        error=ProfileError,
        hint="python -m toolkit.profile.central makes one.",
    )


def write_model_profile(path: Path, profile: ModelProfile) -> None:
    """Write a model's profile, whole or not at all.

    Raises: MachineError: the disk is full or the folder not writable.
    """
    title = "How good a model's exits are, by cut, from a central run."
    write_text(path, struct_text(profile, title=title, comments=COMMENTS))
