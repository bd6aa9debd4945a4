"""A run in virtual time: one thread, and whoever is earliest moves next."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from coordinator.server import Coordinator
from device_agent.agent import Agent
from toolkit.errors import RunError
from toolkit.link.virtual import Line, VirtualBroker, VirtualLink
from toolkit.simulate.actors import DroppedOutError
from toolkit.simulate.fleet import TOPICS, SimulatedFleet
from toolkit.simulate.times import ActorClock
from toolkit.wire.words import DeviceWord, encode_word

TICK_S = 1.0
"""Who has nothing to do looks at its timers so often."""
AFTERMATH_S = 60.0
"""How long agents have to hear that the run is over."""


@dataclass(slots=True, eq=False)
class Actor:
    """One end: what moves, its clock, its link."""

    mover: Coordinator | Agent
    clock: ActorClock
    link: VirtualLink
    due_s: float = float("inf")

    @property
    def n_moves(self) -> int:
        """Grows with all that happens at this end."""
        return self.clock.n_moves + self.link.n_moves


def run_virtually(fleet: SimulatedFleet) -> None:
    """Run to the end.

    Raises: HseeError: as the real coordinator or agent would.
    """
    schedule = _Schedule(fleet)
    try:
        schedule.run()
    finally:
        schedule.close()


class _Schedule:
    """Wakes each end when it can go on: at once, when a message is here, or at the next tick."""

    def __init__(self, fleet: SimulatedFleet) -> None:
        self._fleet = fleet
        self._hub = VirtualBroker()
        self._queue: list[tuple[float, int, Actor]] = []
        self._n_woken = 0
        self._links: dict[str, VirtualLink] = {}
        fleet.count_bytes = self._count_bytes
        link = self._link("coordinator", fleet.server_clock, Line())
        self._coordinator = fleet.make_coordinator(link, fleet.server_clock)
        self._devices: dict[str, Actor] = {}
        self._server = self._add(Actor(self._coordinator, fleet.server_clock, link))
        self._coordinator.start()
        for name, member in fleet.members.items():
            if not fleet.is_lost(name):
                self._devices[name] = self._add_device(name, member.clock)

    def run(self) -> None:
        """Go on until the run is over and everybody knows it."""
        while self._queue:
            time_s, _, actor = heapq.heappop(self._queue)
            if time_s != actor.due_s:
                continue
            actor.due_s = float("inf")
            actor.clock.now_s = max(actor.clock.now_s, time_s)
            if not self._coordinator.over:
                self._move(actor)
            elif actor is not self._server:
                if all(map(self._fleet.has_heard, self._devices)):
                    break
                if time_s > self._server.clock.now_s + AFTERMATH_S:
                    raise RunError("Devices have not heard that the simulated run is over.")
                self._move(actor)
        self._fleet.read_meters()

    def close(self) -> None:
        """Let every folder go; nothing is said to anybody any more."""
        self._coordinator.close()
        self._fleet.close()

    def _move(self, actor: Actor) -> None:
        before = actor.n_moves
        try:
            actor.mover.poll(0.0)
        except DroppedOutError:
            self._lose(actor)
            return
        if actor.mover.over:
            return
        now_s = actor.clock.now_s
        if actor.n_moves > before:
            self._wake(actor, now_s)
        else:
            line_free_s = actor.link.up_free_s
            until_s = min(now_s + TICK_S, actor.link.next_arrival_s)
            self._wake(actor, min(until_s, line_free_s) if line_free_s > now_s else until_s)

    def _lose(self, actor: Actor) -> None:
        """A device is gone as if its cable were pulled."""
        name = actor.link.client_id
        self._hub.arrival_s = actor.clock.now_s
        self._hub.drop(actor.link)
        actor.link.close()
        del self._devices[name]

    def _add_device(self, name: str, clock: ActorClock) -> Actor:
        term = self._coordinator.term
        nonce = self._fleet.boot_nonce(name, term)
        will = (TOPICS.device_state(name), encode_word(DeviceWord("offline", nonce.hex())))
        link = self._links[name] = self._link(name, clock, self._fleet.times.devices[name].line, will=will)
        agent = self._fleet.make_agent(name, link, clock, term=term)
        agent.start()
        return self._add(Actor(agent, clock, link))

    def _link(
        self, name: str, clock: ActorClock, line: Line, *, will: tuple[str, bytes] | None = None
    ) -> VirtualLink:
        return VirtualLink(
            self._hub,
            name,
            clock=clock,
            line=line,
            on_arrival=lambda at_s: self._wake_by_name(name, at_s),
            will=will,
        )

    def _add(self, actor: Actor) -> Actor:
        self._wake(actor, actor.clock.now_s)
        return actor

    def _wake_by_name(self, name: str, at_s: float) -> None:
        actor = self._server if name == "coordinator" else self._devices.get(name)
        if actor is not None:
            self._wake(actor, max(at_s, actor.clock.now_s))

    def _wake(self, actor: Actor, at_s: float) -> None:
        if at_s < actor.due_s:
            actor.due_s = at_s
            self._n_woken += 1
            heapq.heappush(self._queue, (at_s, self._n_woken, actor))

    def _count_bytes(self) -> tuple[dict[str, int], dict[str, int]]:
        return (
            {name: link.n_published_bytes for name, link in self._links.items()},
            {name: link.n_received_bytes for name, link in self._links.items()},
        )
