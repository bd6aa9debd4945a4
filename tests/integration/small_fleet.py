"""A fleet of two small boards in memory, and what tests ask of it."""

from coordinator.fleet.events import Waiting
from coordinator.fleet.planning import GivenCuts
from coordinator.server import Coordinator
from coordinator.store.run_folder import RunFolder
from tests.numerics.fleet import RUN, TOPICS, Member, local_data, patterns
from toolkit.config import Run
from toolkit.link.memory import MemoryLink

SHAPE = (1, 4, 4)
SETTINGS = Run(
    model="mlp",
    model_options={"width": 16, "depth": 3},
    devices=2,
    rounds=3,
    batch_size=8,
    seed=1,
    wait_s=60.0,
)


def member(name, classes=("a", "b", "c"), *, shape=SHAPE, cut="hidden1", n=48):
    x, y = patterns(n, shape, seed=len(name), classes=classes)
    return Member(name, cut, local_data(x, y, classes=sorted(classes)))


def of_kind(fleet, kind):
    return [event for event in fleet.events if isinstance(event, kind)]


def ready(fleet):
    """Devices that the coordinator says are ready; None before it said anything."""
    waited = of_kind(fleet, Waiting)
    return waited[-1].ready if waited else None


def is_over(fleet):
    return lambda: fleet.coordinator.over and all(m.agent.over for m in fleet.members.values() if m.agent)


def resumed(fleet):
    """Close the coordinator's process and open another on the same folder."""
    fleet.coordinator.close()
    fleet.coordinator = Coordinator(
        MemoryLink(fleet.hub, "coordinator"),
        topics=TOPICS,
        folder=RunFolder(fleet.path / "run", RUN),
        settings=fleet.settings,
        clock=fleet.clock,
        observe=fleet.events.append,
        planner=GivenCuts({m.name: m.cut for m in fleet.members.values()}),
    )
    fleet.coordinator.start()
