"""What a batch costs at a cut: the device's step, the upload, the server's step. Pure arithmetic on profiles.

Step and upload overlap: the device computes the next batch while the last one is sent. So a device's period is the
larger of the two, and the link's round-trip time is paid once, not a batch. The server is shared by all devices. A round
ends with held-out batches, which pass forward only, and with the server's commit, during which nobody is served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import msgspec

from toolkit.errors import PlanError, did_you_mean
from toolkit.profile.link import Link
from toolkit.profile.model_profile import ModelProfile
from toolkit.profile.schema import CutRow, Profile
from toolkit.wire.job import Name, SyncSpec
from toolkit.wire.limits import CHUNK_OVERHEAD_BYTES, DEFAULT_CHUNK_BYTES

Objective = Literal["makespan", "device-time", "bytes"]
"""What a plan makes small: the fleet's round, the devices' computing, or what they send; a round's worth each."""
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
ACTIVATION_BYTES = {"float32": 4, "float16": 2, "int8": 1}
"""Bytes an activation takes on the wire before compression, by codec."""
CODECS = (*ACTIVATION_BYTES, *(f"{codec}+zstd" for codec in ACTIVATION_BYTES))
"""Those of ``toolkit.wire.tensors``, which a planner without zstandard can't load."""
LABEL_BYTES = 8
NO_SYNC = SyncSpec()
TRAINING_PER_FORWARD = 3
"""A training step costs about three forward passes: the backward pass computes two products for each of the forward."""
ASSUMED_LINK = Link(
    name="unmeasured", provenance="assumed", up_bytes_per_s=2.5e6, down_bytes_per_s=2.5e6, rtt_ms=10.0
)
"""Taken for a profile that names no link: 20 Mbit/s each way, an ordinary wireless network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInput:
    """A device to plan for.

    Attributes:
        profile: of its board, for the model that is to be trained.
        n_batches: it owes a round.
        n_held_out_batches: that it judges its exit by at a round's end, forward passes only.
        n_eval_batches: held-out ones that it sends besides, for the server's route; a mean over rounds.
        codec: its activations travel in.
        sync: how devices' segments are made one between rounds: its weights travel up and down then.
    """

    name: str
    profile: Profile
    n_batches: int
    n_held_out_batches: int = 0
    n_eval_batches: float = 0.0
    codec: str = "float32"
    sync: SyncSpec = NO_SYNC

    def __post_init__(self) -> None:
        try:
            msgspec.convert(self.name, Name)
        except msgspec.ValidationError as exc:
            raise PlanError(
                f"{self.name!r} can't be a device's name.",
                hint="Letters, digits, '.', '_' and '-', at most 64.",
                device=self.name,
            ) from exc
        if self.n_batches < 1:
            raise PlanError(
                f"Device {self.name!r} owes {self.n_batches} batches a round; it needs at least 1.",
                device=self.name,
            )
        for codec in (self.codec, self.sync.codec):
            if codec not in CODECS:
                raise PlanError(
                    f"There is no codec {codec!r}.", hint=did_you_mean(codec, CODECS), device=self.name
                )

    @property
    def link(self) -> Link:
        """The profile's link, or the assumed one."""
        return self.profile.link or ASSUMED_LINK


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInput:
    """The coordinator's speed: measured step times by cut, or the FLOP/s it achieves in training.

    Attributes:
        step_ms: cut to the time of one training step of the layers after it, at the fleet's batch size.
        flop_per_s: 2 x MAC a second, sustained.
        commit_ms: to make a round durable, at its end; 0 where nobody measured it.
        assumed: nobody measured it.
    """

    step_ms: Mapping[str, float] | None = None
    flop_per_s: float | None = None
    commit_ms: float = 0.0
    assumed: bool = False

    def __post_init__(self) -> None:
        if (self.step_ms is None) == (self.flop_per_s is None):
            raise PlanError("A server is given by its step times or by its FLOP/s: one of the two.")
        values = list(self.step_ms.values()) if self.step_ms is not None else [self.flop_per_s or 0.0]
        if not all(0 < value < float("inf") for value in values):
            raise PlanError("The server's step times and FLOP/s must be above 0.")

    @property
    def basis(self) -> str:
        """How the server's times are known, for people."""
        if self.flop_per_s is None:
            return "step times measured for each cut"
        source = "assumed; on the coordinator, --measure-server measures it" if self.assumed else "given"
        return (
            f"{self.flop_per_s / 1e9:g} GFLOP/s ({source}); a training step is taken as "
            f"{TRAINING_PER_FORWARD} forward passes, as backward costs about twice the forward pass"
        )

    def step_ms_at(self, row: CutRow, *, batch_size: int) -> float | None:
        """Time of one training step for a batch cut at ``row``, ms; ``None`` where it was not measured."""
        if self.step_ms is not None:
            return self.step_ms.get(row.cut)
        flop = TRAINING_PER_FORWARD * row.suffix_flop * batch_size
        return flop / (self.flop_per_s or 1.0) * 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class CutCost:
    """One cut for one device: ms and bytes a batch, and what it adds to a round.

    Attributes:
        depth: position among the model's cuts, from 0 at the input.
        step_ms: the training step.
        hand_over_ms: the device's other work on a batch: recipe, codec, digest, chunks, and sending where it
            has one core for everything.
        upload_ms: of one batch; happens while the next is computed.
        n_bytes: of one batch on the wire.
        sync_bytes: of weights in a round, both ways together.
        round_bytes: all of a round, both ways.
        device_ms: the device's part of a round.
        round_compute_ms: its processor time in a round.
        server_round_ms: the server's steps of a round for this device.
        price: what the objective adds up over devices; 0 where it adds up nothing.
    """

    cut: str
    depth: int
    step_ms: float
    upload_ms: float
    server_ms: float
    device_ms: float
    server_round_ms: float
    hand_over_ms: float = 0.0
    round_compute_ms: float = 0.0
    n_bytes: int = 0
    sync_bytes: int = 0
    round_bytes: int = 0
    price: float = 0.0

    @property
    def compute_ms(self) -> float:
        """The device's processor time for one batch."""
        return self.step_ms + self.hand_over_ms


def upload_bytes(row: CutRow, *, batch_size: int, codec: str, exits: ModelProfile | None = None) -> int:
    """Bytes of one batch on the wire: activations in their codec, labels, and what frames its chunks.

    Args:
        row: of the cut.
        batch_size: samples in a batch.
        codec: of the activations.
        exits: the model's profile, which knows how far a compressing codec gets; without it no gain is counted.
    """
    n_activations = row.activation_bytes // ACTIVATION_BYTES["float32"] * batch_size
    known = exits.exit_at(row.cut) if exits is not None else None
    factor = known.compressed.get(codec, 1.0) if known is not None else 1.0
    body = (
        round(n_activations * ACTIVATION_BYTES[codec.partition("+")[0]] * factor) + LABEL_BYTES * batch_size
    )
    return body + -(-body // DEFAULT_CHUNK_BYTES) * CHUNK_OVERHEAD_BYTES


def sync_bytes(row: CutRow, sync: SyncSpec) -> int:
    """Bytes of weights that travel up for a round, and as many down: those of segment and exit, shared out over the rounds.

    A compressing codec is not credited: weights hardly shrink.
    """
    if sync.mode == "none":
        return 0
    copies = 2 if sync.momentum == "average" else 1
    return round(copies * row.n_parameters * ACTIVATION_BYTES[sync.codec.partition("+")[0]] / sync.every)


def cut_cost(
    device: DeviceInput,
    row: CutRow,
    *,
    depth: int,
    batch_size: int,
    server_ms: float,
    objective: Objective = "makespan",
    exits: ModelProfile | None = None,
) -> CutCost:
    """Price one cut of one device."""
    n_bytes = upload_bytes(row, batch_size=batch_size, codec=device.codec, exits=exits)
    upload_ms = device.link.upload_ms(n_bytes)
    hand_over_ms = row.hand_over_ms.get(device.codec, 0.0)
    if device.codec in row.at_work_ms:
        hand_over_ms = max(row.at_work_ms[device.codec] - row.step_ms_mean, hand_over_ms)
    elif device.profile.board.n_cores == 1:
        hand_over_ms += device.link.send_ms(n_bytes)
    compute_ms = row.step_ms_mean + hand_over_ms
    forward_share = row.flop / row.train_flop if row.train_flop else 1 / TRAINING_PER_FORWARD
    forward_ms = forward_share * row.step_ms_mean
    judging_ms, eval_ms = device.n_held_out_batches * forward_ms, forward_ms + hand_over_ms
    round_end_ms = judging_ms + device.n_eval_batches * max(eval_ms, upload_ms)
    round_compute_ms = compute_ms * device.n_batches + judging_ms + device.n_eval_batches * eval_ms
    weight_bytes = sync_bytes(row, device.sync)
    # Nothing is computed meanwhile: the next round begins with what comes down.
    sync_ms = weight_bytes * (1 / device.link.up_bytes_per_s + 1 / device.link.down_bytes_per_s) * 1e3
    round_bytes = round(n_bytes * (device.n_batches + device.n_eval_batches)) + 2 * weight_bytes
    prices = {"makespan": 0.0, "device-time": round_compute_ms, "bytes": float(round_bytes)}
    return CutCost(
        cut=row.cut,
        depth=depth,
        step_ms=row.step_ms_mean,
        hand_over_ms=hand_over_ms,
        upload_ms=upload_ms,
        server_ms=server_ms,
        device_ms=max(compute_ms, upload_ms) * device.n_batches + round_end_ms + sync_ms,
        round_compute_ms=round_compute_ms,
        server_round_ms=server_ms * (device.n_batches + device.n_eval_batches / TRAINING_PER_FORWARD),
        n_bytes=n_bytes,
        sync_bytes=2 * weight_bytes,
        round_bytes=round_bytes,
        price=prices[objective],
    )
