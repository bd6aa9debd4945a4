"""What a run asks of a device: the typed job that an assignment carries.

A job is data only. Code never travels: a model is named, and built from the packages on the board.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from toolkit.wire.limits import MAX_CLASSES, MAX_NAME_BYTES, MAX_NDIM

Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_BYTES, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z")]
"""A device id, run id or fleet: safe as one level of a topic and as one name of a folder."""
NameOrNone = Annotated[str, Meta(max_length=MAX_NAME_BYTES, pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?\Z")]
Scalar = str | int | float | bool
Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1, le=2**31)]
Shape = Annotated[list[Positive], Meta(min_length=1, max_length=MAX_NDIM - 1)]
ClassNames = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(min_length=2, max_length=MAX_CLASSES)
]


OWN_MODEL = "python:"
"""What the name of a user's own model begins with; the rest says where its function is installed."""


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A model by name with its options; ``input_shape`` is one sample without the batch axis."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    input_shape: Shape
    n_classes: Annotated[int, Meta(ge=2, le=MAX_CLASSES)]
    options: dict[str, Scalar] = {}


class OptimizerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """SGD with momentum: the learning rate falls from ``lr`` to zero along a half cosine over the run's rounds."""

    lr: Annotated[float, Meta(gt=0)] = 0.05
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Meta(ge=0)] = 5e-4
    schedule: Annotated[str, Meta(pattern=r"^(constant|cosine)\Z")] = "cosine"


class SyncSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how devices' segments are made one, between rounds.

    ``mode`` says who shares: nobody; devices of one cut; or a stage all devices that hold it, an exit head those of one cut.
    ``every`` is in rounds. ``momentum`` is averaged like the weights, dropped, or each device's own.
    ``codec`` is that of the weights on their way, both ways.
    """

    mode: Annotated[str, Meta(pattern=r"^(none|same_cut|prefix)\Z")] = "none"
    every: Positive = 1
    momentum: Annotated[str, Meta(pattern=r"^(keep|average|reset)\Z")] = "keep"
    codec: Annotated[str, Meta(min_length=1, max_length=32)] = "float32"


class Distillation(msgspec.Struct, frozen=True, kw_only=True):
    """A teacher's share in a loss: ``weight * temperature^2 * KL(teacher, student)``; weight 0 is none of it."""

    weight: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    temperature: Annotated[float, Meta(gt=0, le=1e3)] = 3.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a device needs to train its segment and exit.

    ``mean`` and ``std`` are per channel (first axis of a sample), applied to inputs as ``(x - mean) / std``.
    ``round_steps`` is the number of batches a device trains in a round; 0 means one local epoch.
    ``eval_samples`` caps the held-out samples sent as activations at the end of every ``eval_every``-th round.
    ``all_exits`` asks for a head at every stage of the segment, not at the cut alone; ``among_exits`` lets them teach
    each other. ``sync`` and ``from_server`` let the coordinator influence the device's weights: only where it accepts that.
    """

    run: Name
    model: ModelSpec
    cut: Annotated[str, Meta(min_length=1, max_length=256)]
    classes: ClassNames
    mean: list[float]
    std: list[float]
    seed: Count
    rounds: Positive
    batch_size: Annotated[int, Meta(ge=2, le=65_536)]
    round_steps: Count = 0
    eval_samples: Count = 256
    eval_every: Positive = 1
    optimizer: OptimizerSpec = OptimizerSpec()
    exit_head: Annotated[str, Meta(min_length=1, max_length=64)] = "pooled"
    codec: Annotated[str, Meta(min_length=1, max_length=32)] = "float32"
    threads: Positive = 1
    all_exits: bool = False
    among_exits: Distillation = Distillation()
    sync: SyncSpec = SyncSpec()
    from_server: Distillation = Distillation()

    def evaluates(self, round_: int) -> bool:
        """Whether devices send held-out batches at the end of a round."""
        return round_ % self.eval_every == 0 or round_ == self.rounds

    def gathers(self, round_: int) -> bool:
        """Whether devices' segments are made one after a round."""
        return self.sync.mode != "none" and round_ % self.sync.every == 0 and round_ < self.rounds

    def hands_down(self, round_: int) -> bool:
        """Whether anything goes down to devices after a round."""
        return self.gathers(round_) or (self.from_server.weight > 0 and round_ < self.rounds)

    @property
    def influence(self) -> str:
        """How the coordinator reaches this device's weights, in words; empty where it does not."""
        return influence(self.sync, self.from_server)


def influence(sync: SyncSpec, from_server: Distillation) -> str:
    """How a coordinator reaches devices' weights, as the run's settings say it; empty where it does not."""
    ways = []
    if sync.mode != "none":
        ways.append(f"run.client_sync = {sync.mode}")
    if from_server.weight:
        ways.append(f"run.server_logits = {from_server.weight:g}")
    return ", ".join(ways)


def influence_line(ways: str) -> str:
    """Tell people what :func:`influence` found."""
    return f"server influences devices: {f'yes ({ways})' if ways else 'no'}"
