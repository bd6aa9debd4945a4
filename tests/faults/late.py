"""The row of what is delivered after its round was closed, in virtual time: by production code, counted on its way in."""

from __future__ import annotations

from functools import cached_property

from coordinator.server import Coordinator
from coordinator.store.ledger import Applied, Closed
from tests.faults.registry import row
from tests.faults.scene import Scene
from tests.faults.sim.scenario import Scenario, Weather
from tests.faults.sim.world import History, World
from toolkit.wire import frames
from toolkit.wire.chunks import Assembler
from toolkit.wire.messages import Chunk, Payload

N_LATE = {True: 1_000, False: 10_000}
"""In the quick tier, and at night."""
LISTS = {"ant": (6, 1), "bee": (6, 1), "cat": (6, 1), "dog": (6, 1)}


class Late(World):
    """Counts payloads that reach the coordinator when their round is closed."""

    n_late = 0

    def _heard(self, who: str, topic: str, payload: bytes) -> None:
        super()._heard(who, topic, payload)
        process = self._processes.get("coordinator")
        mover = process.mover if process is not None else None
        if isinstance(mover, Coordinator) and mover._underway is not None and topic.endswith("/up"):
            round_ = self._round_of(topic, payload)
            self.n_late += round_ is not None and round_ < mover._underway.loop.round

    def _round_of(self, topic: str, message: bytes) -> int | None:
        """The round of a payload of which this is the last piece; None for another message."""
        header, body = frames.decode(message)
        if not isinstance(header, Chunk):
            return None
        whole = self.assemblers.setdefault(topic, Assembler()).add(header, body)
        sent = frames.decode(whole)[0] if whole is not None else None
        return sent.round if isinstance(sent, Payload) else None

    @cached_property
    def assemblers(self) -> dict[str, Assembler]:
        """By topic: not the coordinator's own."""
        return {}


@row("R9", "delivery after the round closed: none is applied")
def late_deliveries(scene: Scene) -> str:
    n_late = n_applied = n_histories = 0
    while n_late < N_LATE[scene.scale == 1]:
        weather = Weather(
            delay_s=0.1, jitter_s=scene.random.choice((4.0, 10.0, 30.0)), p_double=1.0, keeps_sessions=True
        )
        world = Late(
            Scenario(
                seed=scene.random.randrange(2**32),
                lists=LISTS,
                step_s=dict.fromkeys(LISTS, 0.2),
                rounds=12,
                deadline_s=10.0,
                weather=weather,
            )
        )
        history = world.run()
        assert not history.problems, history.problems
        n_applied += _applied_in_time(history)
        n_late += world.n_late
        n_histories += 1
    assert n_applied, "nothing came in time either"
    scene.n_seeds += n_histories
    return f"0 of {n_late} late payloads applied, {n_applied} in time, in {n_histories} histories"


def _applied_in_time(history: History) -> int:
    """Applied batches, each before the entry that closed its round."""
    closed, n = 0, 0
    for entry in history.entries:
        if isinstance(entry, Closed):
            closed = entry.round
        elif isinstance(entry, Applied):
            assert entry.round > closed, f"{entry} stands behind the end of its round"
            n += 1
    return n
