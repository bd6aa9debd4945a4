"""Advice on a running plan: which devices have left their profiles, and what the plan would be now. It changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from coordinator.fleet.planning import sync_of
from coordinator.fleet.wishes import wishes_of
from toolkit.config import Run
from toolkit.errors import HseeError, PlanError, ProfileError
from toolkit.plan.choose import choose_cuts
from toolkit.plan.cost import DeviceInput, ServerInput
from toolkit.plan.estimate import with_every_cut
from toolkit.plan.reason import duration
from toolkit.plan.schema import Plan, read_plan
from toolkit.profile.drift import FACTOR, Drifted, PaceSum, at_pace, find_drift
from toolkit.profile.schema import Profile, for_classes, read_profile
from toolkit.wire.messages import Pace

MOST_NAMED = 4
"""Devices that one piece of advice names; a fleet that slows down as a whole is one fact."""


class Advisor:
    """Hears what batches take the devices; at a round's end says what left its profile, and what the plan would be.

    Args:
        folder: of the run, with its ``plan.toml`` and ``profiles/``; read when a device is first heard.
        settings: of the run.
    """

    def __init__(self, folder: Path, settings: Run) -> None:
        self._folder = folder
        self._settings = settings
        self._plan: Plan | None = None
        self._profiles: dict[str, Profile] = {}
        self._is_read = False
        self._sums: dict[str, PaceSum] = {}
        self._found: dict[str, tuple[Drifted, ...]] = {}
        self._said: dict[tuple[str, str], float] = {}

    def hear(self, device: str, pace: Pace) -> None:
        """Compare a device's rounds with its profile; without one there is nothing to say."""
        self._read()
        plan, profile = self._plan, self._profiles.get(device)
        chosen = None if plan is None else next((d for d in plan.devices if d.device == device), None)
        if chosen is None or profile is None:
            return
        judged = self._sums.setdefault(device, PaceSum()).add(pace)
        if judged is not None:
            self._found[device] = find_drift(profile, cut=chosen.cut, codec=chosen.codec, pace=judged)

    def round_over(self) -> list[str]:
        """Say what is new since the last round, for people: drifted devices, then the plan as it would be now."""
        fresh = {
            device: [d for d in found if self._is_news(device, d)] for device, found in self._found.items()
        }
        told = [f"{device}: {drifted}" for device, news in sorted(fresh.items()) for drifted in news]
        if not told or self._plan is None:
            return []
        self._said |= {(device, d.what): d.factor for device, news in fresh.items() for d in news}
        more = f"; and {len(told) - MOST_NAMED} more" if len(told) > MOST_NAMED else ""
        return [f"Left its profile: {'; '.join(told[:MOST_NAMED])}{more}.", self._plan_now(self._plan)]

    def _is_news(self, device: str, drifted: Drifted) -> bool:
        said = self._said.get((device, drifted.what))
        return said is None or not 1 / FACTOR <= drifted.factor / said <= FACTOR

    def _read(self) -> None:
        if self._is_read:
            return
        self._is_read = True
        try:
            self._plan = read_plan(self._folder / "plan.toml")
        except PlanError:
            return  # of cuts that were given: no times were weighed
        for device in self._plan.cuts:
            try:
                profile = read_profile(self._folder / "profiles" / f"{device}.toml")
            except ProfileError:
                continue
            self._profiles[device] = with_every_cut(for_classes(profile, self._plan.model.n_classes))

    def _plan_now(self, plan: Plan) -> str:
        """Say what the plan would be if all devices stayed as they are; the run's own cuts stay."""
        try:
            best, kept = self._choose(plan, {}), self._choose(plan, plan.cuts)
        except HseeError as exc:
            return f"Advice: no plan can be made from what was measured now: {exc.message}"
        moved = [
            f"{device} after {cut} (now {plan.cuts[device]})"
            for device, cut in best.cuts.items()
            if cut != plan.cuts[device]
        ]
        if not moved:
            return (
                f"Advice: the plan would be the same; a round takes about {duration(kept.round_ms)}, and "
                f"{duration(plan.round_ms)} were planned."
            )
        more = f" and {len(moved) - MOST_NAMED} more" if len(moved) > MOST_NAMED else ""
        return (
            f"Advice: the plan would now cut {', '.join(moved[:MOST_NAMED])}{more}: a round of about "
            f"{duration(best.round_ms)} instead of {duration(kept.round_ms)}. Cuts stay for this run; to plan the next "
            "one so, measure these devices again (hsee profile)."
        )

    def _choose(self, plan: Plan, pins: Mapping[str, str]) -> Plan:
        devices = [
            DeviceInput(
                name=d.device,
                profile=at_pace(self._profiles[d.device], self._found.get(d.device, ())),
                n_batches=d.n_batches,
                n_held_out_batches=d.n_held_out_batches,
                n_eval_batches=d.n_eval_batches,
                codec=d.codec,
                sync=sync_of(self._settings),
            )
            for d in plan.devices
            if d.device in self._profiles
        ]
        if len(devices) < len(plan.devices):
            raise PlanError("Not every device of the run has a profile.")
        wishes = wishes_of(self._settings, plan.cuts)
        return choose_cuts(
            devices,
            server=ServerInput(
                step_ms=plan.server_step_ms or None,
                flop_per_s=plan.server_flop_per_s,
                commit_ms=plan.commit_ms,
            ),
            objective=plan.objective,
            memory_share=plan.memory_share,
            slack=plan.slack,
            min_exit_accuracy=plan.min_exit_accuracy,
            exits=wishes.exits,
            pins=pins or {d.device: d.cut for d in plan.devices if d.pinned},
        )
