"""Choose the cut layer of every device of a fleet from profiles, and say why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from toolkit.errors import PlanError, ProfileError, did_you_mean
from toolkit.plan.cost import CutCost, DeviceInput, Objective, ServerInput, cut_cost
from toolkit.plan.estimate import with_every_cut
from toolkit.plan.feasible import Constraints, no_cut_error
from toolkit.plan.reason import duration, reason
from toolkit.plan.schema import DevicePlan, Infeasible, Limit, Neighbour, Plan
from toolkit.plan.search import cheapest_within, deepen, deepest_within, shortest_round_ms
from toolkit.profile.model_profile import ModelProfile
from toolkit.profile.schema import CutRow, Profile, Training, misfit
from toolkit.wire.job import ModelSpec


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
    objective: Objective = "makespan",
    memory_share: float = 0.8,
    slack: float = 0.05,
    deadline_ms: float | None = None,
    min_exit_accuracy: float = 0.0,
    exits: ModelProfile | None = None,
    pins: Mapping[str, str] | None = None,
) -> Plan:
    """Choose cuts for the least objective, then deepen them as far as the slack allows: a deeper exit is a better one.

    Args:
        devices: the fleet; all profiles are of one model, batch size and exit head.
        server: the coordinator's speed, shared by all devices.
        objective: the fleet's round, all devices' computing, or all they send.
        memory_share: of a board's memory that training may use, in (0, 1].
        slack: how much more than the least of the objective deeper exits may cost; 0.05 is 5 %.
        deadline_ms: longest round.
        min_exit_accuracy: of every device's exit in the central run, in [0, 1].
        exits: the model's profile.
        pins: device to a cut that is given, not chosen.
    Raises: PlanError: no cut of a device keeps the constraints, or a pin can't be kept; facts: device, constraint.
        ProfileError: a profile has no step times, or they are another model's.
    """
    pins = pins or {}
    rules = Constraints(
        memory_share=memory_share,
        deadline_ms=deadline_ms,
        commit_ms=server.commit_ms,
        min_exit_accuracy=min_exit_accuracy,
        exits=exits,
    )
    model, training = _check(devices, pins, slack=slack)
    if exits is not None and (wrong := exits.misfit(model, exit_head=training.exit_head)):
        raise ProfileError(wrong, hint="python -m toolkit.profile.central makes one for this model.")
    menus = [
        _menu(d, server, rules, objective, batch_size=training.batch_size, pin=pins.get(d.name))
        for d in devices
    ]
    options = [[c for c in menu.feasible if pins.get(menu.device.name, c.cut) == c.cut] for menu in menus]
    shortest_ms = shortest_round_ms(options)
    if shortest_ms > rules.limit_ms:
        raise _too_slow_server(shortest_ms, rules)
    if objective == "makespan":
        limit_ms = min(shortest_ms + slack * (shortest_ms + server.commit_ms), rules.limit_ms)
        chosen, gap, method = deepest_within(options, limit_ms), 0.0, "exact: the shortest round"
    else:
        limit_ms = rules.limit_ms
        best = cheapest_within(options, limit_ms)
        chosen, gap, method = best.chosen, best.gap, best.method
        chosen = deepen(options, chosen, limit_ms=limit_ms, slack=slack)
    fleet = _Fleet(chosen, server.commit_ms)
    return Plan(
        schema=1,
        model=model,
        batch_size=training.batch_size,
        exit_head=training.exit_head,
        objective=objective,
        method=method,
        gap=round(gap, 6),
        round_ms=_rounded(fleet.round_ms),
        shortest_round_ms=_rounded(shortest_ms + server.commit_ms),
        server_ms=_rounded(fleet.server_ms),
        device_time_ms=_rounded(sum(c.round_compute_ms for c in chosen)),
        round_bytes=sum(c.round_bytes for c in chosen),
        commit_ms=_rounded(server.commit_ms),
        server_basis=server.basis,
        server_flop_per_s=server.flop_per_s,
        server_step_ms={cut: _rounded(ms) for cut, ms in (server.step_ms or {}).items()},
        bottleneck="server" if fleet.server_bound else devices[fleet.slowest].name,
        memory_share=memory_share,
        slack=slack,
        deadline_ms=deadline_ms,
        min_exit_accuracy=min_exit_accuracy,
        model_profile=exits.name if exits is not None else "",
        devices=tuple(
            _device_plan(
                menu, index, fleet, rules, objective, limit_ms=limit_ms, pinned=menu.device.name in pins
            )
            for index, menu in enumerate(menus)
        ),
    )


class _Fleet:
    """The chosen cuts, and what a round would take if one device's were another: without adding up the fleet anew."""

    def __init__(self, chosen: Sequence[CutCost], commit_ms: float) -> None:
        self.chosen = chosen
        self.commit_ms = commit_ms
        self.server_ms = sum(c.server_round_ms for c in chosen)
        order = sorted(range(len(chosen)), key=lambda i: -chosen[i].device_ms)
        self.slowest = order[0]
        self.slowest_ms = chosen[order[0]].device_ms
        self.second_ms = chosen[order[1]].device_ms if len(order) > 1 else 0.0

    @property
    def round_ms(self) -> float:
        return max(self.slowest_ms, self.server_ms) + self.commit_ms

    @property
    def server_bound(self) -> bool:
        return self.server_ms > self.slowest_ms

    def round_ms_with(self, index: int, cut: CutCost) -> float:
        others_ms = self.second_ms if index == self.slowest else self.slowest_ms
        server_ms = self.server_ms - self.chosen[index].server_round_ms + cut.server_round_ms
        return max(others_ms, cut.device_ms, server_ms) + self.commit_ms


def _check(
    devices: Sequence[DeviceInput], pins: Mapping[str, str], *, slack: float
) -> tuple[ModelSpec, Training]:
    if not devices:
        raise PlanError("A plan needs at least one device.")
    if not 0 <= slack < float("inf"):
        raise PlanError(f"The slack is 0 or more, not {slack}.", hint="5 % is written 0.05.")
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
    if profile.model is None or profile.training is None or (profile.inference_only and not profile.cuts):
        if profile.inference_only:
            raise no_cut_error(profile.name, profile, (), pin=None)
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
    device: DeviceInput,
    server: ServerInput,
    rules: Constraints,
    objective: Objective,
    *,
    batch_size: int,
    pin: str | None,
) -> _Menu:
    device = replace(device, profile=with_every_cut(device.profile))
    rows = device.profile.cuts
    known = [row.cut for row in rows]
    if pin is not None and pin not in known:
        raise PlanError(
            f"Device {device.name!r} can't be pinned to {pin!r}: its profile has no such cut.",
            hint=did_you_mean(pin, known),
            device=device.name,
        )
    feasible: list[CutCost] = []
    infeasible: list[Infeasible] = []
    for depth, row in enumerate(rows):
        found = _price(device, row, depth, server, rules, objective, batch_size=batch_size)
        if isinstance(found, Infeasible):
            infeasible.append(found)
        else:
            feasible.append(found)
    if not feasible or pin in {i.cut for i in infeasible}:
        raise no_cut_error(device.name, device.profile, tuple(infeasible), pin=pin)
    return _Menu(device, feasible, tuple(infeasible))


def _price(
    device: DeviceInput,
    row: CutRow,
    depth: int,
    server: ServerInput,
    rules: Constraints,
    objective: Objective,
    *,
    batch_size: int,
) -> CutCost | Infeasible:
    if barred := rules.barred_by_profile(device.profile, row):
        return barred
    server_ms = server.step_ms_at(row, batch_size=batch_size)
    if server_ms is None:
        return Infeasible(
            cut=row.cut,
            constraint="measurement",
            detail="the server's step for it was not measured",
            fix="measuring the server again, or giving its FLOP/s",
        )
    cost = cut_cost(
        device,
        row,
        depth=depth,
        batch_size=batch_size,
        server_ms=server_ms,
        objective=objective,
        exits=rules.exits,
    )
    return rules.barred_by_deadline(cost, n_batches=device.n_batches) or cost


def _too_slow_server(shortest_ms: float, rules: Constraints) -> PlanError:
    shortest_ms += rules.commit_ms
    return PlanError(
        f"No plan keeps the deadline of {duration(rules.deadline_ms or 0.0)}: with the server's steps for all devices, "
        f"the shortest round takes {duration(shortest_ms)}.",
        hint=f"What would help: --deadline {math.ceil(shortest_ms / 100) / 10:g}, a faster server, or fewer --batches.",
        constraint="deadline",
    )


def _device_plan(
    menu: _Menu,
    index: int,
    fleet: _Fleet,
    rules: Constraints,
    objective: Objective,
    *,
    limit_ms: float,
    pinned: bool,
) -> DevicePlan:
    device, cost = menu.device, fleet.chosen[index]
    shallower = next((c for c in reversed(menu.feasible) if c.depth < cost.depth), None)
    deeper = _neighbour(fleet, rules, index, next((c for c in menu.feasible if c.depth > cost.depth), None))
    barred = next((i for i in menu.infeasible if _depth(device, i.cut) == cost.depth + 1), None)
    limited_by = _limit(device, cost, barred, fleet, limit_ms=limit_ms)
    return DevicePlan(
        device=device.name,
        profile=device.profile.name,
        known=device.profile.provenance.kind,
        estimated=device.profile.cuts[cost.depth].unmeasured,
        cut=cost.cut,
        n_batches=device.n_batches,
        n_held_out_batches=device.n_held_out_batches,
        n_eval_batches=device.n_eval_batches,
        codec=device.codec,
        exit_accuracy=rules.accuracy_at(cost.cut),
        step_ms=_rounded(cost.step_ms),
        hand_over_ms=_rounded(cost.hand_over_ms),
        upload_ms=_rounded(cost.upload_ms),
        server_ms=_rounded(cost.server_ms),
        batch_bytes=cost.n_bytes,
        sync_bytes=cost.sync_bytes,
        device_ms=_rounded(cost.device_ms),
        limited_by=limited_by,
        reason=reason(
            cost,
            objective=objective,
            limited_by=limited_by,
            round_ms=fleet.round_ms,
            server_round_ms=fleet.server_ms,
            barred=barred,
            deeper=deeper,
            pinned=pinned,
            estimated=device.profile.cuts[cost.depth].unmeasured,
            partial=device.profile.partial and cost.depth == len(device.profile.cuts) - 1,
        ),
        pinned=pinned,
        link_assumed=device.link.provenance == "assumed",
        shallower=_neighbour(fleet, rules, index, shallower),
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
    return "compute" if cost.compute_ms >= cost.upload_ms else "uplink"


def _neighbour(fleet: _Fleet, rules: Constraints, index: int, cost: CutCost | None) -> Neighbour | None:
    if cost is None:
        return None
    return Neighbour(
        cut=cost.cut,
        round_ms=_rounded(fleet.round_ms_with(index, cost)),
        device_time_ms=_rounded(cost.round_compute_ms),
        round_bytes=cost.round_bytes,
        exit_accuracy=rules.accuracy_at(cost.cut),
    )


def _depth(device: DeviceInput, cut: str) -> int:
    return [row.cut for row in device.profile.cuts].index(cut)


def _rounded(ms: float) -> float:
    return round(ms, 3)
