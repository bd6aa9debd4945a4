"""Before the first round: devices join until there are enough, and a plan is made for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coordinator.fleet.events import PlanMade, RunEvent, Waiting
from coordinator.fleet.planning import Planner, server_spec
from coordinator.fleet.registry import unite
from coordinator.fleet.roll import Roll
from coordinator.store.checkpoints import CommittedState
from coordinator.store.ledger import Entry, Planned
from coordinator.store.run_folder import RunFolder
from toolkit.config import Run
from toolkit.errors import PartialError
from toolkit.wire.messages import Hello


class Gathering:
    """Waits for a run's devices.

    Args:
        roll: who is here.
        settings: of the run.
        planner: decides the cuts.
        folder: of the run; plan and profiles are written into it for people.
        record: takes each ledger entry.
        observe: takes each event of the run.
        now: monotonic seconds; the time that the run waits counts from here.
    """

    def __init__(
        self,
        roll: Roll,
        *,
        settings: Run,
        planner: Planner,
        folder: RunFolder,
        record: Callable[[Entry], None],
        observe: Callable[[RunEvent], None],
        now: float,
    ) -> None:
        self._roll = roll
        self._settings = settings
        self._planner = planner
        self._folder = folder
        self._record = record
        self._observe = observe
        self._began_at = now
        self._said: tuple[str, ...] | None = None

    def put_off(self, seconds: float) -> None:
        """Wait so much longer: meanwhile nobody could join."""
        self._began_at += seconds

    def look(self, now: float) -> CommittedState | None:
        """Plan once enough devices are here; None while they are not.

        Returns: the run as it stands before its first round, not committed yet.
        Raises: PartialError: too few came in time.
        """
        hellos = self._roll.ready()
        left_s = max(0.0, self._settings.wait_s - (now - self._began_at))
        ready = tuple(hellos)
        if ready != self._said:
            self._said = ready
            self._observe(Waiting(ready, self._settings.devices, left_s))
        if len(ready) >= self._settings.devices:
            return self._plan(hellos)
        if left_s <= 0:
            raise PartialError(
                f"Only {len(ready)} of {self._settings.devices} devices joined within {self._settings.wait_s:g} s"
                + (f": {', '.join(ready)}." if ready else "."),
                hint="Start the missing agents, or lower --devices.",
                ready=ready,
            )
        return None

    def _plan(self, hellos: Mapping[str, Hello]) -> CommittedState:
        settings = self._settings
        facts = unite([hello.data for hello in hellos.values()], classes=settings.classes)
        plan = self._planner.plan(self._folder.record.run, settings, facts, hellos)
        self._folder.write_text("plan.toml", plan.text)
        for device, hello in hellos.items():
            if hello.profile:
                self._folder.write_text(f"profiles/{device}.toml", hello.profile)
        self._observe(PlanMade(plan))
        self._record(Planned(plan.version, plan.cuts))
        return CommittedState(
            round=0,
            plan_version=plan.version,
            jobs=plan.jobs,
            lists=plan.lists,
            activation_shapes=plan.activation_shapes,
            fingerprints={device: hello.data.fingerprint for device, hello in hellos.items()},
            strategy=settings.strategy,
            strategy_options=settings.strategy_options,
            server=server_spec(settings),
        )
