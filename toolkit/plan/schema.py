"""A plan: the cut layer of every device, why, and what the other cuts would cost. A TOML file, ``plan.toml``.

Times are ms of wall time; a round is the number of batches that stands beside each device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from toolkit.errors import PlanError
from toolkit.plan.cost import Objective
from toolkit.profile.model_profile import Share
from toolkit.profile.schema import Kind
from toolkit.profile.toml_struct import parse_struct, read_struct, struct_text, write_text
from toolkit.wire.job import Count, ModelSpec, Name, Positive

Ms = Annotated[float, Meta(ge=0)]
Cut = Annotated[str, Meta(min_length=1, max_length=256)]
Limit = Literal["compute", "uplink", "server", "memory"]


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """Another cut for one device, all others kept: the fleet's round, and the device's own computing and bytes in it."""

    cut: Cut
    round_ms: Ms
    device_time_ms: Ms = 0.0
    round_bytes: Count = 0
    exit_accuracy: Share | None = None


class Infeasible(msgspec.Struct, frozen=True, kw_only=True):
    """A cut that a device can't take: the constraint that failed, with its numbers, and what would fix it."""

    cut: Cut
    constraint: Literal["memory", "measurement", "exit accuracy", "deadline"]
    detail: str
    fix: str


class DevicePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One device's cut.

    Attributes:
        known: how its step times are known.
        n_held_out_batches: that it judges its exit by at a round's end.
        n_eval_batches: held-out ones that it sends in a round, on average.
        exit_accuracy: of this cut's exit in the central run that the model's profile holds.
        step_ms: training on one batch.
        hand_over_ms: the device's other work on one batch: codec, digest, chunks, sending.
        upload_ms: sending one batch's activations and labels; happens while the next is computed.
        server_ms: the server's training step on one batch.
        batch_bytes: of one batch on the wire.
        sync_bytes: of weights in a round, both ways together, where devices' segments are made one.
        device_ms: the device's part of a round: batches x the larger of computing and upload.
        limited_by: what would have to improve first, for a shorter round or a deeper cut.
        reason: one sentence for people.
        pinned: the cut was given, not chosen.
        estimated: this cut was not measured; its times lie between those of its neighbours.
        shallower: the next feasible cut towards the input.
        deeper: the next feasible cut towards the output.
    """

    device: Name
    profile: Name
    known: Kind
    cut: Cut
    n_batches: Positive
    codec: str
    step_ms: Ms
    upload_ms: Ms
    server_ms: Ms
    device_ms: Ms
    limited_by: Limit
    reason: str
    exit_accuracy: Share | None = None
    n_held_out_batches: Count = 0
    n_eval_batches: Ms = 0.0
    hand_over_ms: Ms = 0.0
    batch_bytes: Count = 0
    sync_bytes: Count = 0
    pinned: bool = False
    estimated: bool = False
    link_assumed: bool = False
    shallower: Neighbour | None = None
    deeper: Neighbour | None = None
    infeasible: tuple[Infeasible, ...] = ()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Cuts for a fleet.

    Attributes:
        round_ms: the larger of the slowest device's part and the server's, and the commit.
        server_ms: the server's part of a round: its steps for all devices, one after another.
        commit_ms: to make a round durable at its end, when nobody is served; 0 where nobody measured it.
        server_basis: how the server's step times are known.
        server_step_ms: of each cut, where they were measured; else ``server_flop_per_s`` is what they were counted with.
        bottleneck: a device's name, or "server".
        objective: what was made small.
        method: how the cuts were found; ``gap`` bounds how far they may be from the best, before slack.
        device_time_ms: all devices' computing in a round.
        round_bytes: all that devices send in a round, and the weights that come down.
        slack: share of the least objective that might be spent on deeper exits.
        model_profile: whose exit accuracies are shown; empty for none.
    """

    schema: Literal[1]
    model: ModelSpec
    batch_size: Positive
    exit_head: str
    round_ms: Ms
    shortest_round_ms: Ms
    server_ms: Ms
    server_basis: str
    bottleneck: str
    memory_share: float
    slack: float
    devices: tuple[DevicePlan, ...]
    objective: Objective = "makespan"
    method: str = ""
    gap: Ms = 0.0
    device_time_ms: Ms = 0.0
    round_bytes: Count = 0
    commit_ms: Ms = 0.0
    deadline_ms: Ms | None = None
    min_exit_accuracy: Share = 0.0
    model_profile: str = ""
    server_flop_per_s: float | None = None
    server_step_ms: dict[str, Ms] = {}

    @property
    def cuts(self) -> dict[str, str]:
        """Device to cut layer."""
        return {d.device: d.cut for d in self.devices}

    @property
    def links_assumed(self) -> tuple[str, ...]:
        """Devices whose link was not measured."""
        return tuple(d.device for d in self.devices if d.link_assumed)


COMMENTS = {
    "round_ms": "the larger of the slowest device's part and the server's, and the commit",
    "commit_ms": "to make a round durable at its end",
    "shortest_round_ms": "of all possible plans; slack was spent on deeper exits",
    "server_ms": "the server's part of a round",
    "server_flop_per_s": "2 x MAC; what the server's steps were counted with",
    "bottleneck": "a device, or server",
    "memory_share": "of a board's memory that training may use",
    "devices.known": "measured | emulated",
    "gap": "share by which the objective may miss its least, before slack",
    "device_time_ms": "all devices' computing in a round",
    "round_bytes": "all that devices send in a round, and the weights that come down",
    "devices.exit_accuracy": "held-out, in the central run of the model's profile",
    "devices.sync_bytes": "weights, both ways, a round",
    "devices.step_ms": "training on one batch",
    "devices.hand_over_ms": "codec, digest, chunks, sending; one batch",
    "devices.upload_ms": "sending one batch, while the next is computed",
    "devices.server_ms": "the server's step on one batch",
    "devices.device_ms": "the device's part of a round",
    "devices.limited_by": "compute | uplink | server | memory",
    "devices.estimated": "this cut was not measured: its times lie between its neighbours'",
    "devices.pinned": "the cut was given, not chosen",
    "devices.link_assumed": "the link was not measured",
    "devices.shallower.round_ms": "the fleet's round, were this device cut there",
    "devices.deeper.round_ms": "the fleet's round, were this device cut there",
}


MEND = "Undo the edit, or plan again: hsee plan."


def plan_text(plan: Plan) -> str:
    """Write a plan as commented TOML."""
    return struct_text(plan, title="Cut layers of a fleet, chosen by hsee plan.", comments=COMMENTS)


def write_plan(path: Path, plan: Plan) -> None:
    """Write a plan file, whole or not at all.

    Raises: MachineError: the disk is full or the folder not writable.
    """
    write_text(path, plan_text(plan))


def parse_plan(text: str, *, where: str = "plan") -> Plan:
    """Read a plan from TOML text.

    Raises: PlanError: it names ``where``, the key, and what was expected.
    """
    return parse_struct(text, Plan, where=where, error=PlanError, hint=MEND)


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises: PlanError: it names file, key, and what was expected.
    """
    return read_struct(path, Plan, noun="plan", error=PlanError, hint=MEND)
