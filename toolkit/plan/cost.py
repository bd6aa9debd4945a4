"""What a batch costs at a cut: the device's step, the upload, the server's step. Pure arithmetic on profiles.

Step and upload overlap: the device computes the next batch while the last one is sent. So a device's period is the
larger of the two, and the link's round-trip time is paid once, not a batch. The server is shared by all devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from toolkit.errors import PlanError, did_you_mean
from toolkit.profile.schema import CutRow, Link, Profile
from toolkit.wire.job import Name
from toolkit.wire.limits import CHUNK_OVERHEAD_BYTES, DEFAULT_CHUNK_BYTES

ACTIVATION_BYTES = {"float32": 4, "float16": 2, "int8": 1}
"""Bytes an activation takes on the wire, by codec."""
LABEL_BYTES = 8
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
        codec: its activations travel in.
    """

    name: str
    profile: Profile
    n_batches: int
    codec: str = "float32"

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
        if self.codec not in ACTIVATION_BYTES:
            raise PlanError(
                f"There is no codec {self.codec!r}.",
                hint=did_you_mean(self.codec, ACTIVATION_BYTES),
                device=self.name,
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
        assumed: nobody measured it.
    """

    step_ms: Mapping[str, float] | None = None
    flop_per_s: float | None = None
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
        source = "assumed" if self.assumed else "given"
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
    """One cut for one device: ms a batch, and the two parts of a round it adds to.

    Attributes:
        depth: position among the model's cuts, from 0 at the input.
        device_ms: the device's part of a round.
        server_round_ms: the server's steps of a round for this device.
    """

    cut: str
    depth: int
    step_ms: float
    upload_ms: float
    server_ms: float
    device_ms: float
    server_round_ms: float


def upload_bytes(row: CutRow, *, batch_size: int, codec: str) -> int:
    """Bytes of one batch on the wire: activations in their codec, labels, and what frames its chunks."""
    n_activations = row.activation_bytes // ACTIVATION_BYTES["float32"] * batch_size
    body = n_activations * ACTIVATION_BYTES[codec] + LABEL_BYTES * batch_size
    return body + -(-body // DEFAULT_CHUNK_BYTES) * CHUNK_OVERHEAD_BYTES


def cut_cost(device: DeviceInput, row: CutRow, *, depth: int, batch_size: int, server_ms: float) -> CutCost:
    """Price one cut of one device."""
    n_bytes = upload_bytes(row, batch_size=batch_size, codec=device.codec)
    upload_ms = n_bytes / device.link.up_bytes_per_s * 1e3
    return CutCost(
        cut=row.cut,
        depth=depth,
        step_ms=row.step_ms_mean,
        upload_ms=upload_ms,
        server_ms=server_ms,
        device_ms=max(row.step_ms_mean, upload_ms) * device.n_batches,
        server_round_ms=server_ms * device.n_batches,
    )
