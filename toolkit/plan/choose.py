"""Choose the cut layer of every device of a fleet from profiles, and say why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toolkit.errors import PlanError, ProfileError, did_you_mean
from toolkit.plan.cost import CutCost, DeviceInput, ServerInput, cut_cost
from toolkit.plan.reason import reason
from toolkit.plan.schema import DevicePlan, Infeasible, Limit, Neighbour, Plan
from toolkit.plan.search import deepest_within, shortest_round_ms
from toolkit.profile.schema import BYTES_PER_MB, CutRow, Profile, Training, misfit
from toolkit.wire.job import ModelSpec

INFERENCE_ONLY_BYTES = 384 * BYTES_PER_MB
"""Torch alone takes more than half of this: such a board is told that it is for inference."""


@dataclass(frozen=True, slots=True)
class _Menu:
    """What a device may choose from, shallow first, and what it may not."""

    device: DeviceInput
    feasible: list[CutCost]
    infeasible: tuple[Infeasible, ...]


def choose_cuts(
    devices: Sequence[DeviceInput],
    *,
    server: ServerInput,
    memory_share: float = 0.8,
    slack: float = 0.05,
    pins: Mapping[str, str] | None = None,
) -> Plan:
    """Choose cuts for the shortest round, then deepen them as far as the slack allows: a deeper exit is a better one.

    Args:
        devices: the fleet; all profiles are of one model, batch size and exit head.
        server: the coordinator's speed, shared by all devices.
        memory_share: of a board's memory that training may use, in (0, 1].
        slack: how much longer than the shortest a round may take for deeper exits; 0.05 is 5 %.
        pins: device to a cut that is given, not chosen.
    Raises: PlanError: no cut of a device fits its memory, or a pin can't be kept; facts: device, constraint.
        ProfileError: a profile has no step times, or they are another model's.
    """
    pins = pins or {}
    model, training = _check(devices, pins, memory_share=memory_share, slack=slack)
    menus = [
        _menu(d, server, batch_size=training.batch_size, memory_share=memory_share, pin=pins.get(d.name))
        for d in devices
    ]
    options = [[c for c in menu.feasible if pins.get(menu.device.name, c.cut) == c.cut] for menu in menus]
    shortest_ms = shortest_round_ms(options)
    chosen = deepest_within(options, shortest_ms * (1 + slack))
    fleet = _Fleet(chosen)
    return Plan(
        schema=1,
        model=model,
        batch_size=training.batch_size,
        exit_head=training.exit_head,
        round_ms=_rounded(fleet.round_ms),
        shortest_round_ms=_rounded(shortest_ms),
        server_ms=_rounded(fleet.server_ms),
        server_basis=server.basis,
        bottleneck="server" if fleet.server_bound else devices[fleet.slowest].name,
        memory_share=memory_share,
        slack=slack,
        devices=tuple(
            _device_plan(
                menu, index, fleet, limit_ms=shortest_ms * (1 + slack), pinned=menu.device.name in pins
            )
            for index, menu in enumerate(menus)
        ),
    )


class _Fleet:
    """The chosen cuts, and what a round would take if one device's were another: without adding up the fleet anew."""

    def __init__(self, chosen: Sequence[CutCost]) -> None:
        self.chosen = chosen
        self.server_ms = sum(c.server_round_ms for c in chosen)
        order = sorted(range(len(chosen)), key=lambda i: -chosen[i].device_ms)
        self.slowest = order[0]
        self.slowest_ms = chosen[order[0]].device_ms
        self.second_ms = chosen[order[1]].device_ms if len(order) > 1 else 0.0

    @property
    def round_ms(self) -> float:
        return max(self.slowest_ms, self.server_ms)

    @property
    def server_bound(self) -> bool:
        return self.server_ms > self.slowest_ms

    def round_ms_with(self, index: int, cut: CutCost) -> float:
        others_ms = self.second_ms if index == self.slowest else self.slowest_ms
        server_ms = self.server_ms - self.chosen[index].server_round_ms + cut.server_round_ms
        return max(others_ms, cut.device_ms, server_ms)


def _check(
    devices: Sequence[DeviceInput], pins: Mapping[str, str], *, memory_share: float, slack: float
) -> tuple[ModelSpec, Training]:
    if not devices:
        raise PlanError("A plan needs at least one device.")
    if not 0 < memory_share <= 1:
        raise PlanError(f"The memory share is above 0 and at most 1, not {memory_share}.")
    if not 0 <= slack < float("inf"):
        raise PlanError(f"The slack is 0 or more, not {slack}.")
    names = [d.name for d in devices]
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if twice:
        raise PlanError(f"The device {min(twice)!r} stands there twice.", hint="Give each its own name.")
    for name in pins:
        if name not in names:
            raise PlanError(
                f"There is no device {name!r} to pin.", hint=did_you_mean(name, names), device=name
            )
    model, training = _measured(devices[0].profile)
    for device in devices:
        if wrong := misfit(
            device.profile, model, batch_size=training.batch_size, exit_head=training.exit_head
        ):
            raise ProfileError(
                f"{wrong} (Device {device.name!r}; the fleet's first profile is {devices[0].profile.name!r}.)",
                hint=_measure_hint(model, training),
                device=device.name,
            )
    return model, training


def _measured(profile: Profile) -> tuple[ModelSpec, Training]:
    if profile.model is None or profile.training is None:
        raise ProfileError(
            f"Profile {profile.name!r} ({profile.provenance.kind}) has no measured step times.",
            hint="Measure on the board itself: hsee profile --model ... --input ... --classes ... -o board.toml",
            profile=profile.name,
        )
    return profile.model, profile.training


def _measure_hint(model: ModelSpec, training: Training) -> str:
    shape = "x".join(map(str, model.input_shape))
    return (
        f"Measure on the board itself: hsee profile --model {model.name} --input {shape} "
        f"--classes {model.n_classes} --batch {training.batch_size} --exit-head {training.exit_head}"
    )


def _menu(
    device: DeviceInput, server: ServerInput, *, batch_size: int, memory_share: float, pin: str | None
) -> _Menu:
    rows = device.profile.cuts
    known = [row.cut for row in rows]
    if pin is not None and pin not in known:
        raise PlanError(
            f"Device {device.name!r} can't be pinned to {pin!r}: its profile has no such cut.",
            hint=did_you_mean(pin, known),
            device=device.name,
        )
    feasible, infeasible = [], []
    for depth, row in enumerate(rows):
        server_ms = None if row.failed else server.step_ms_at(row, batch_size=batch_size)
        if wrong := _infeasible(device.profile, row, memory_share=memory_share, server_ms=server_ms):
            infeasible.append(wrong)
        else:
            feasible.append(
                cut_cost(device, row, depth=depth, batch_size=batch_size, server_ms=server_ms or 0.0)
            )
    menu = _Menu(device, feasible, tuple(infeasible))
    if not feasible or pin in {i.cut for i in infeasible}:
        raise _no_cut(menu, pin)
    return menu


def _infeasible(
    profile: Profile, row: CutRow, *, memory_share: float, server_ms: float | None
) -> Infeasible | None:
    if row.failed:
        return Infeasible(
            cut=row.cut,
            constraint="measurement",
            detail=f"it could not be measured: {row.failed}",
            fix="a board with more memory or a smaller batch, then hsee profile again",
        )
    board_mb = profile.board.memory_bytes / BYTES_PER_MB
    allowed_mb = board_mb * memory_share
    if row.peak_memory_mb > allowed_mb:
        share = math.ceil(row.peak_memory_mb / board_mb * 100) / 100
        fixes = [f"--memory-share {share:.2f}"] if share <= 0.95 else []  # noqa: PLR2004 - the system needs the rest
        fixes += [f"a board with {math.ceil(row.peak_memory_mb / memory_share)} MB", "a smaller batch"]
        return Infeasible(
            cut=row.cut,
            constraint="memory",
            detail=f"training there takes {row.peak_memory_mb:.0f} MB of memory, and {allowed_mb:.0f} MB may be used "
            f"({memory_share:.0%} of {board_mb:.0f})",
            fix=" or ".join(fixes),
        )
    if server_ms is None:
        return Infeasible(
            cut=row.cut,
            constraint="measurement",
            detail="the server's step for it was not measured",
            fix="measuring the server again, or giving its FLOP/s",
        )
    return None


def _no_cut(menu: _Menu, pin: str | None) -> PlanError:
    name, board_bytes = menu.device.name, menu.device.profile.board.memory_bytes
    if not menu.infeasible:
        return PlanError(
            f"The profile of device {name!r} has no cuts.", hint="Run hsee profile again.", device=name
        )
    easiest = next(i for i in menu.infeasible if pin in (None, i.cut))
    hint = f"What would help: {easiest.fix}."
    if board_bytes < INFERENCE_ONLY_BYTES:
        hint = (
            f"With {board_bytes / BYTES_PER_MB:.0f} MB this board is for inference only (hsee infer); training needs "
            "about 512 MB."
        )
    what = f"Device {name!r} can't be cut after {easiest.cut!r}" if pin else f"No cut fits device {name!r}"
    return PlanError(
        f"{what}: {'' if pin else f'after {easiest.cut!r}, '}{easiest.detail}.",
        hint=hint,
        device=name,
        constraint=easiest.constraint,
        cut=easiest.cut,
    )


def _device_plan(menu: _Menu, index: int, fleet: _Fleet, *, limit_ms: float, pinned: bool) -> DevicePlan:
    device, cost = menu.device, fleet.chosen[index]
    shallower = next((c for c in reversed(menu.feasible) if c.depth < cost.depth), None)
    deeper = _neighbour(fleet, index, next((c for c in menu.feasible if c.depth > cost.depth), None))
    barred = next((i for i in menu.infeasible if _depth(device, i.cut) == cost.depth + 1), None)
    limited_by = _limit(device, cost, barred, fleet, limit_ms=limit_ms)
    return DevicePlan(
        device=device.name,
        profile=device.profile.name,
        known=device.profile.provenance.kind,
        cut=cost.cut,
        n_batches=device.n_batches,
        codec=device.codec,
        step_ms=_rounded(cost.step_ms),
        upload_ms=_rounded(cost.upload_ms),
        server_ms=_rounded(cost.server_ms),
        device_ms=_rounded(cost.device_ms),
        limited_by=limited_by,
        reason=reason(
            cost,
            limited_by=limited_by,
            round_ms=fleet.round_ms,
            server_round_ms=fleet.server_ms,
            barred=barred,
            deeper=deeper,
            pinned=pinned,
        ),
        pinned=pinned,
        link_assumed=device.link.provenance == "assumed",
        shallower=_neighbour(fleet, index, shallower),
        deeper=deeper,
        infeasible=menu.infeasible,
    )


def _limit(
    device: DeviceInput, cost: CutCost, barred: Infeasible | None, fleet: _Fleet, *, limit_ms: float
) -> Limit:
    if fleet.server_bound:
        return "server"
    if barred is not None and barred.constraint == "memory":
        row = device.profile.cuts[cost.depth + 1]
        if row.step_ms_mean * device.n_batches <= limit_ms:
            return "memory"
    return "compute" if cost.step_ms >= cost.upload_ms else "uplink"


def _neighbour(fleet: _Fleet, index: int, cost: CutCost | None) -> Neighbour | None:
    if cost is None:
        return None
    return Neighbour(cut=cost.cut, round_ms=_rounded(fleet.round_ms_with(index, cost)))


def _depth(device: DeviceInput, cut: str) -> int:
    return [row.cut for row in device.profile.cuts].index(cut)


def _rounded(ms: float) -> float:
    return round(ms, 3)
