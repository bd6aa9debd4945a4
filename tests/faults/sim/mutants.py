"""Ways to get a rule wrong, first the eight of the rules. Each must show within 300 seeds: the test of the tests."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from typing import Any

import msgspec

from coordinator.fleet.intake import Intake
from coordinator.fleet.planning import Planner
from coordinator.rounds.device_round import DeviceRound
from coordinator.rounds.loop import RoundLoop
from coordinator.rounds.underway import Underway
from coordinator.server import Coordinator
from device_agent.agent import Agent
from device_agent.sending import Sender
from tests.faults.sim.stage import Makers
from toolkit.errors import RunError
from toolkit.wire import chunks, payloads, session, weights
from toolkit.wire.messages import Hello, State
from toolkit.wire.words import BridgeWord


class IdWithIncarnation(Coordinator):
    """A batch of another process is another batch: its list begins anew."""

    def _make_parts(self, planner: Planner) -> None:
        super()._make_parts(planner)
        on_hello = self._hearing._on_hello

        def begin_anew(device: str, hello: Hello, underway: Underway | None) -> None:
            before = self._roll[device].incarnation
            on_hello(device, hello, underway)
            if underway is not None and before and self._roll[device].incarnation > before:
                loop = underway.loop
                if device in loop.devices and loop.is_open:
                    loop.devices[device] = loop._list_of(device, loop.round)

        self._hearing._on_hello = begin_anew  # type: ignore[method-assign]


class WatermarkBeforeFsync(Coordinator):
    """What is about to be committed is told as if it were."""

    def _make_parts(self, planner: Planner) -> None:
        super()._make_parts(planner)
        commits, commit = self._commits, self._commits.commit

        def tell_first(underway: Underway, now: float) -> None:
            loop = underway.loop
            opened = loop.as_committed(now) if loop.is_open else None
            n_owed = {device: held.n_owed for device, held in loop.devices.items()}
            soon = msgspec.structs.replace(
                underway.state,
                round=loop.round - 1 if opened else loop.round,
                open=opened,
                n_owed=underway.state.n_owed if opened else n_owed,
            )
            kept = list(commits._kept)
            if kept and (opened or not loop.is_open):
                commits._kept.clear()
                commits._kept.extend([*kept, soon][-2:])
                self._flow.tell_everybody(underway)
                commits._kept.clear()
                commits._kept.extend(kept)
            commit(underway, now)

        commits.commit = tell_first  # type: ignore[method-assign]


class HighestSeqWatermark(Coordinator):
    """Whatever was applied last is told as durable."""

    def _make_parts(self, planner: Planner) -> None:
        super()._make_parts(planner)
        watermark = self._commits.watermark

        def of_the_last(device: str) -> tuple[int, int]:
            loop = self._underway.loop if self._underway else None
            if loop is not None and device in loop.devices and loop.devices[device].next > 1:
                return loop.round, loop.devices[device].next - 1
            return watermark(device)

        self._commits.watermark = of_the_last  # type: ignore[method-assign]


class NewestGenerationWatermark(Coordinator):
    """The newest checkpoint counts, not the oldest one that is kept."""

    def _make_parts(self, planner: Planner) -> None:
        super()._make_parts(planner)
        commits = self._commits

        def of_the_newest(device: str) -> tuple[int, int]:
            return commits._kept[-1].watermark(device)

        commits.watermark = of_the_newest  # type: ignore[method-assign]


class LedgerAfterModel(Coordinator):
    """The checkpoint is renamed before the ledger's rows are synced."""

    def _make_parts(self, planner: Planner) -> None:
        super()._make_parts(planner)
        commit, sync = self._commits.commit, self._ledger.sync

        def sync_last(underway: Underway, now: float) -> None:
            self._ledger.sync = lambda: None  # type: ignore[method-assign]
            try:
                commit(underway, now)
            finally:
                self._ledger.sync = sync  # type: ignore[method-assign]
            sync()

        self._commits.commit = sync_last  # type: ignore[method-assign]


class AnyTerm(Intake):
    """A payload made under an older term is as good as any."""

    def _is_in_order(self, header: Any, seat: Any, state: Any) -> bool:
        return super()._is_in_order(msgspec.structs.replace(header, term=seat.term), seat, state)


class OlderTermAccepted(Coordinator):
    def _make_parts(self, planner: Planner) -> None:
        super()._make_parts(planner)
        self._hearing._intake = AnyTerm(0.0, doubt=self._bridge.doubt)


class TwinsUnseen(Coordinator):
    """A word of the own run and term is the own word, whoever says it: as it was when words named no process."""

    def _make_parts(self, planner: Planner) -> None:
        super()._make_parts(planner)
        hear = self._bridge.hear

        def as_ones_own(word: BridgeWord) -> RunError | None:
            return hear(msgspec.structs.replace(word, boot_nonce=self._folder.boot_nonce))

        self._bridge.hear = as_ones_own  # type: ignore[method-assign]


class UnfitApplied(Coordinator):
    """Activations beyond the run's limit are trained on like any."""

    def _make_parts(self, planner: Planner) -> None:
        super()._make_parts(planner)
        self._hearing._intake = Intake(0.0, doubt=self._bridge.doubt)


class NeverParked(Coordinator):
    """Whatever a device sends, the round waits for the rest of it."""

    def _begin(self, underway: Underway) -> None:
        super()._begin(underway)
        underway.loop._put_aside = partial(self._without_parking, underway.loop)  # type: ignore[method-assign]

    def _without_parking(self, loop: RoundLoop, device: str, held: DeviceRound) -> None:
        n_refused, held.n_refused = held.n_refused, -(10**6)
        RoundLoop._put_aside(loop, device, held)
        held.n_refused += 10**6 + n_refused


class SenderByBatchId(Sender):
    """Two renderings of a batch have one payload id."""

    def send_batch(self, state: Any, job: Any, seq: int, batch: Any) -> int:
        address = payloads.PayloadAddress(
            device=self._device,
            round=state.flow.round,
            seq=seq,
            term=state.term,
            incarnation=state.incarnation,
            plan_version=state.plan_version,
            cut=job.cut,
        )
        payload = payloads.encode(address, batch, job.codec)
        name = sha256(f"{self._device}/{address.round}/{seq}".encode()).digest()[:16]
        for chunk in chunks.split(payload, payload_id=name, chunk_bytes=self._conduct.chunk_bytes):
            self._link.publish(self._topics.up(job.run, self._device), chunk)
        return len(payload)


class ChunksByBatchId(Agent):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        sender = self._sender
        self._sender = SenderByBatchId(sender._link, sender._topics, sender._device, sender._conduct)


class AnyRoundTaken(Agent):
    """What is handed down is taken whenever it comes, in the middle of a round too, and once more."""

    def _on_chunk(self, chunk: Any, body: memoryview) -> None:
        if self._fetching is not None and self._trainer is not None:
            whole = self._fetching.add(chunk, body, self._clock())
            if whole is not None:
                header, content = weights.decode_lowered(whole, device=self._device)
                self._trainer.take_lowered(header, content)


class CreditAsDelta(Agent):
    """Every state message adds its credit to what is left of the last one's."""

    _credit_to = (0, 0)

    def _feed(self, event: session.Event) -> None:
        if isinstance(event, session.Got) and isinstance(event.message, State):
            flow = event.message
            round_, limit = self._credit_to
            if round_ != flow.round:
                limit = flow.next
            limit = max(flow.limit, limit + flow.limit - flow.next)
            self._credit_to = flow.round, limit
            event = session.Got(msgspec.structs.replace(flow, limit=limit), event.now)
        super()._feed(event)


MUTANTS = {
    "id with incarnation": Makers(coordinator=IdWithIncarnation),
    "watermark before fsync": Makers(coordinator=WatermarkBeforeFsync),
    "highest-seq watermark": Makers(coordinator=HighestSeqWatermark),
    "chunks by batch id": Makers(agent=ChunksByBatchId),
    "credit as a delta": Makers(agent=CreditAsDelta),
    "ledger after model": Makers(coordinator=LedgerAfterModel),
    "newest-generation watermark": Makers(coordinator=NewestGenerationWatermark),
    "older term accepted": Makers(coordinator=OlderTermAccepted),
    "twins unseen": Makers(coordinator=TwinsUnseen),
    "never parked": Makers(coordinator=NeverParked),
    "unfit is applied": Makers(coordinator=UnfitApplied),
    "weights taken at any time": Makers(agent=AnyRoundTaken),
}
