"""The coordinator: one loop that hears devices, trains on what they deliver, and tells them how far they may go.

Nothing here blocks and nothing runs beside it: ``poll`` takes what the link brought, then trains on at most one
batch. The link's own thread keeps the connection alive meanwhile.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import msgspec
import torch

from coordinator.advice import Advisor
from coordinator.checkpoints import CommittedState
from coordinator.events import Ended, Notice, PlanMade, RoundClosed, RunEvent, Waiting
from coordinator.flow import Flow
from coordinator.handing_down import HandingDown, Wish
from coordinator.ledger import Issued, Planned, TermRaised
from coordinator.planning import Planner, ProfilePlanner, influence_of
from coordinator.registry import refusal_of, refusal_of_model, unite
from coordinator.rounds import Delivery, RoundLoop, WeightsDelivery
from coordinator.run_folder import RunFolder
from coordinator.run_record import Status
from coordinator.server_model import ServerModel
from coordinator.service import Service
from coordinator.strategy.catalogue import make_strategy
from coordinator.underway import Underway, take_up
from toolkit.config import Run
from toolkit.errors import HseeError, MachineError, PartialError, RemoteProtocolError
from toolkit.link.base import CONNECT_S, Connected, Disconnected, Link, Received, matches
from toolkit.wire import chunks, frames, payloads, seats
from toolkit.wire.messages import (
    Assignment,
    Bye,
    Chunk,
    DownMessage,
    Fetch,
    Hello,
    Message,
    Pace,
    Phase,
    Weights,
)
from toolkit.wire.seats import Seat, SeatPhase
from toolkit.wire.topics import Topics
from toolkit.wire.weights import LoweredAddress, to_weights
from toolkit.wire.words import BridgeWord, Presence, encode_word, read_device_word

OFFLINE_GRACE_S = 30.0
"""A device known to be offline holds a round up no longer than this."""
SCRATCH = "scratch"
"""Folder in the run folder for what does not fit the memory."""


class Coordinator:
    """Runs one run.

    Args:
        link: not started yet.
        topics: of the fleet.
        folder: of the run; a checkpoint in it is taken up where it stands.
        settings: of the run.
        clock: monotonic seconds.
        observe: takes each event of the run.
        device: torch device of the server's steps.
        planner: decides the cuts; by default from the devices' profiles.
        make_model: makes the server's model.
        services: what rides beside training; closed with the coordinator.
        connect_s: how long the first connection may take; later ones are tried for ever.
    """

    def __init__(
        self,
        link: Link,
        *,
        topics: Topics,
        folder: RunFolder,
        settings: Run,
        clock: Callable[[], float],
        observe: Callable[[RunEvent], None],
        device: torch.device | str = "cpu",
        planner: Planner | None = None,
        make_model: Callable[..., ServerModel] = ServerModel,
        services: Sequence[Service] = (),
        connect_s: float = CONNECT_S,
    ) -> None:
        self._link = link
        self._topics = topics
        self._folder = folder
        self._settings = settings
        self._clock = clock
        self._observe = observe
        self._device = device
        self.run = folder.record.run
        make_strategy(
            settings.strategy, settings.strategy_options
        )  # a wrong name is told before anything begins
        self._planner = planner or ProfilePlanner()
        self._make_model = make_model
        self._services = tuple(services)
        self._ledger = folder.open_ledger()
        self.term = folder.take_up()
        self._ledger.append(TermRaised(self.term))
        self._seats: dict[str, Seat] = {}
        self._assemblers: dict[str, chunks.Assembler] = {}
        self._flow = Flow(settings.round_deadline_s)
        self._advisor = Advisor(folder.path, settings)
        self._handing_down = HandingDown(link, lambda device: topics.down(self.run, device))
        self._underway: Underway | None = None
        self._started_at = clock()
        self._first_contact_by: float | None = self._started_at + connect_s
        self._trying_said = False
        self._waiting_said: tuple[str, ...] | None = None
        self.n_refused_messages = 0
        self.status: Status = "waiting"
        self.detail = ""

    @property
    def sessions(self) -> Mapping[str, Seat]:
        """What is known of each device's session."""
        return self._seats

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.status in ("finished", "failed", "stopped")

    def start(self) -> None:
        """Take up a committed run if there is one, and begin to connect."""
        generations = self._folder.checkpoints.kept()
        if generations:
            underway = self._take_up(generations[-1].state())
            underway.model.load_state(generations[-1].tensors(), generations[-1].tensors_of_devices())
            self._folder.trim_metrics(underway.state.round)
            self._observe(Notice(f"Taking up run {self.run} after round {underway.state.round}."))
            self._begin(underway)
        else:
            self._folder.set_status("waiting")
        self._link.start()

    def poll(self, timeout_s: float) -> None:
        """Do what there is to do, waiting at most ``timeout_s`` for something to arrive.

        Raises: MachineError: this machine can't go on; the run can, when it is resumed. HseeError: the run can't
            go on; it is marked failed and devices are told.
        """
        try:
            busy = self._work()
            if self.over:  # nothing is heard after the run's last word
                return
            for service in self._services:
                busy |= service.tick(self._link.publish)
            for event in self._link.poll(0.0 if busy else timeout_s):
                self._on_link(event)
            self._keep_told()
        except MachineError as exc:
            # A disk that is full now may have room at the resume: devices wait for that.
            with suppress(MachineError):
                self.end("stopped", exc.message)
            raise
        except HseeError as exc:
            self.end("failed", exc.message)
            raise

    def end(self, status: Status, detail: str) -> None:
        """End the run: tell devices, write down why. What was committed stays."""
        if self.over:
            return
        self.status, self.detail = status, detail
        if status in ("finished", "failed"):
            for device in self._seats:
                self._tell(device, status)
        self._publish_bridge("offline")
        self._observe(Ended(status, detail))
        self._folder.set_status(status, detail)

    def close(self) -> None:
        """Leave the broker and let the folder go.

        Raises: MachineError: the ledger's last rows can't be written; they belong to no commit.
        """
        self._link.close()
        try:
            for service in self._services:
                service.close()
            self._ledger.close()
        finally:
            shutil.rmtree(self._folder.path / SCRATCH, ignore_errors=True)
            self._folder.close()

    # What is there to do

    def _work(self) -> bool:
        """Do one piece of work; whether there may be more at once."""
        if self.over:
            return False
        now = self._clock()
        if self._underway is None:
            self._gather(now)
            return False
        loop = self._underway.loop
        is_sending = self._handing_down.send_some(self._underway)
        if loop.train_one() is not None or is_sending:
            return True
        self._excuse_the_lost(loop, now)
        deadline_s = self._settings.round_deadline_s
        if loop.complete:
            self._close_round(self._underway, now, "deadline" if loop.is_overdue else "complete")
            return True
        if deadline_s > 0 and now - loop.opened_at >= deadline_s and not loop.is_overdue:
            loop.stop_waiting("deadline")
            return True
        return False

    def _gather(self, now: float) -> None:
        hellos = {
            device: seat.hello
            for device, seat in sorted(self._seats.items())
            if seat.phase is SeatPhase.READY and seat.connected and seat.hello is not None
        }
        left_s = max(0.0, self._settings.wait_s - (now - self._started_at))
        ready = tuple(hellos)
        if ready != self._waiting_said:
            self._waiting_said = ready
            self._observe(Waiting(ready, self._settings.devices, left_s))
        if len(ready) >= self._settings.devices:
            self._plan(hellos)
        elif left_s <= 0:
            raise PartialError(
                f"Only {len(ready)} of {self._settings.devices} devices joined within {self._settings.wait_s:g} s"
                + (f": {', '.join(ready)}." if ready else "."),
                hint="Start the missing agents, or lower --devices.",
                ready=ready,
            )

    def _plan(self, hellos: dict[str, Hello]) -> None:
        facts = unite([hello.data for hello in hellos.values()], classes=self._settings.classes)
        plan = self._planner.plan(self.run, self._settings, facts, hellos)
        self._folder.write_text("plan.toml", plan.text)
        for device, hello in hellos.items():
            if hello.profile:
                self._folder.write_text(f"profiles/{device}.toml", hello.profile)
        self._observe(PlanMade(plan))
        self._ledger.append(Planned(plan.version, plan.cuts))
        underway = self._take_up(
            CommittedState(
                round=0,
                plan_version=plan.version,
                jobs=plan.jobs,
                lists=plan.lists,
                activation_shapes=plan.activation_shapes,
                fingerprints={device: hello.data.fingerprint for device, hello in hellos.items()},
                strategy=self._settings.strategy,
                strategy_options=self._settings.strategy_options,
            )
        )
        self._commit(underway)
        self._begin(underway)

    def _take_up(self, state: CommittedState) -> Underway:
        self._underway = take_up(
            state,
            record=self._ledger.append,
            make_model=self._make_model,
            scratch=self._folder.path / SCRATCH,
            device=self._device,
        )
        return self._underway

    def _begin(self, underway: Underway) -> None:
        """Give every device its job and open the next round."""
        state = underway.state
        for device, job in sorted(state.jobs.items()):
            self._advance(
                device,
                seats.Assigned(Assignment(term=self.term, plan_version=state.plan_version, job=job)),
            )
        self.status = "training"
        self._folder.set_status("training")
        for service in self._services:
            service.begin(underway)
        self._open_round(underway)

    # Rounds

    def _open_round(self, underway: Underway) -> None:
        loop = underway.loop
        if loop.round >= underway.state.common.rounds:
            self.end("finished", f"All {loop.round} rounds are done.")
            return
        loop.open(self._clock())
        for device in loop.devices:
            if self._seats[device].left:
                loop.excuse(device, "left")
            self._tell(device, "training")

    def _close_round(self, underway: Underway, now: float, reason: str) -> None:
        report = underway.loop.close(now, reason)
        self._folder.write_metrics(report, underway.state.cuts)
        self._commit(underway)
        self._folder.record.rounds_closed = report.round
        self._folder.save_record()
        self._observe(RoundClosed(report, underway.state.cuts, underway.state.common.rounds))
        for text in self._advisor.round_over():
            self._observe(Notice(text))
        if not any(seat.connected for seat in self._seats.values()):
            raise PartialError(
                f"Every device is gone at the end of round {report.round}.",
                hint=f"What was trained is kept. When devices are back: hsee run resume {self._folder.path}",
            )
        self._open_round(underway)

    def _commit(self, underway: Underway) -> None:
        """Commit the closed round: ledger rows first, then the checkpoint's rename."""
        self._ledger.sync()
        underway.state = msgspec.structs.replace(
            underway.state,
            round=underway.loop.round,
            ledger_length=self._ledger.length,
            ledger_head=self._ledger.head.hex(),
        )
        self._folder.checkpoints.commit(underway.state, underway.model.state(), underway.model.kept())

    def _excuse_the_lost(self, loop: RoundLoop, now: float) -> None:
        for device, held in loop.devices.items():
            seat = self._seats[device]
            silent_s = now - max(seat.last_heard, loop.opened_at)
            if not held.complete and (seat.left or (not seat.connected and silent_s >= OFFLINE_GRACE_S)):
                loop.excuse(device, "left" if seat.left else "offline")
                self._observe(Notice(f"Round {loop.round} goes on without {device} ({held.excused})."))

    # What arrives

    def _on_link(self, event: Connected | Disconnected | Received) -> None:
        match event:
            case Connected():
                self._first_contact_by = None
                of_services = (topics for service in self._services for topics in service.filters)
                self._link.subscribe(
                    self._topics.all_up(self.run), self._topics.all_device_states, *of_services
                )
                self._publish_bridge("online")
            case Disconnected(error=error):
                due = self._first_contact_by
                if due is None:
                    self._observe(Notice(f"Lost the broker: {error.message} Trying again."))
                elif not error.retryable or self._clock() >= due:
                    raise error
                elif not self._trying_said:
                    self._trying_said = True
                    self._observe(Notice(f"{error.message} Trying again for {due - self._clock():.0f} s."))
            case Received(topic=topic, payload=payload):
                try:
                    self._on_message(topic, payload)
                except RemoteProtocolError as exc:
                    self.n_refused_messages += 1
                    self._observe(Notice(f"Refused a message on {topic}: {exc.message}"))

    def _on_message(self, topic: str, payload: bytes) -> None:
        for service in self._services:
            if any(matches(topic_filter, topic) for topic_filter in service.filters):
                service.take(topic, payload)
                return
        if topic.endswith("/state"):
            self._on_device_state(self._topics.device_of(topic, leaf="state"), payload)
            return
        self._on_up(self._topics.device_of(topic, leaf="up"), *frames.decode(payload))

    def _on_up(self, device: str, message: Message, body: memoryview) -> None:
        match message:
            case Hello():
                self._on_hello(device, message)
            case Fetch():
                self._on_fetch(device, message)
            case Bye():
                self._advance(device, seats.Gone(message.boot_nonce, on_purpose=True))
            case Pace():
                # PROTOCOL.md 18: "The coordinator MUST refuse a pace that names another device than its topic"
                if message.device != device:
                    raise RemoteProtocolError(f"A pace on the topic of {device!r} names {message.device!r}.")
                self._advisor.hear(device, message)
            case Chunk():
                self._advance(device, seats.Heard(self._clock()))
                whole = self._assemblers.setdefault(device, chunks.Assembler()).add(message, body)
                if whole is not None:
                    self._on_payload(device, whole)
            case _:
                raise RemoteProtocolError(f"A device does not send a {type(message).__name__}.")

    def _on_device_state(self, device: str, payload: bytes) -> None:
        """The last will of a device's process, or its own word."""
        if device not in self._seats:
            return
        word = read_device_word(payload)
        if word.state == "offline":
            self._advance(device, seats.Gone(bytes.fromhex(word.boot_nonce)))

    def _on_hello(self, device: str, hello: Hello) -> None:
        state = self._underway.state if self._underway else None
        present = [
            seat.hello.data.input_shape
            for seat in self._seats.values()
            if seat.hello is not None and seat.device != device and seat.connected
        ]
        refusal = refusal_of(
            hello,
            device=device,
            classes=state.common.classes if state else self._settings.classes,
            input_shape=state.common.model.input_shape if state else next(iter(present), None),
            members=state.jobs if state else None,
            fingerprint=state.fingerprints.get(device) if state else None,
            influence=state.common.influence if state else influence_of(self._settings),
        )
        if refusal is None and state is None and not present:
            refusal = refusal_of_model(self._settings, hello.data.input_shape)
        measure = None if refusal else self._planner.needs_measuring(self._settings, hello)
        seat = self._seat(device)
        fresh = (
            hello.boot_nonce != seat.boot_nonce
            and hello.boot_nonce not in seat.superseded
            and refusal is None
        )
        incarnation = self._folder.issue_incarnation(device) if fresh else seat.incarnation
        if fresh:
            self._ledger.append(Issued(device, incarnation))
            self._assemblers.pop(device, None)
        self._advance(
            device, seats.HelloHeard(hello, seats.Judgement(refusal, measure), incarnation, self._clock())
        )
        if refusal is not None:
            self._observe(Notice(f"Refused device {device}: {refusal[1]}"))
        elif self._underway is not None and self._seats[device].boot_nonce == hello.boot_nonce:
            self._underway.loop.welcome_back(device)
            self._tell(device, "training")

    def _on_payload(self, device: str, whole: bytes) -> None:
        if self._underway is None:
            return
        loop, state = self._underway.loop, self._underway.state
        header, body = payloads.decode_up(whole, device=device)
        # PROTOCOL.md 6: "A payload of another term, incarnation, plan or round is ignored; its batch stays owed."
        orders = (header.term, header.incarnation, header.plan_version)
        if orders != (self.term, self._seat(device).incarnation, state.plan_version):
            return
        if not loop.wants(device, round_=header.round, seq=header.seq):
            return
        kind = loop.kind_of(device, header.seq)
        if kind != ("weights" if isinstance(header, Weights) else header.kind):
            raise RemoteProtocolError(f"Item {header.seq} of device {device!r} is not of kind {kind!r}.")
        if isinstance(header, Weights):
            self._on_weights(device, header, body, len(whole), self._underway)
            return
        batch = payloads.to_batch(
            header,
            body,
            activation_shape=state.activation_shapes[device],
            n_classes=len(state.common.classes),
            batch_size=state.jobs[device].batch_size,
        )
        loop.deliver(device, header.seq, Delivery(batch, header.sha256.hex(), len(whole)))

    def _on_weights(
        self, device: str, header: Weights, body: memoryview, n_bytes: int, underway: Underway
    ) -> None:
        segments = underway.model.segments
        if segments is not None:
            layout = segments.layout_of(device)
            segment = layout.named(to_weights(header, body, layout.lengths))
            underway.loop.deliver_weights(
                device, WeightsDelivery(segment, header.segment_step, header.sha256.hex(), n_bytes)
            )

    def _on_fetch(self, device: str, fetch: Fetch) -> None:
        """A device lacks what a closed round came to."""
        if fetch.device != device:
            raise RemoteProtocolError(f"A fetch on the topic of {device!r} names {fetch.device!r}.")
        underway, seat = self._underway, self._seat(device)
        if underway is None or device not in underway.state.jobs:
            return
        orders = (fetch.term, fetch.incarnation, fetch.round)
        if orders == (self.term, seat.incarnation, underway.model.lowered_round):
            address = LoweredAddress(
                device=device,
                round=fetch.round,
                term=fetch.term,
                incarnation=fetch.incarnation,
                plan_version=underway.state.plan_version,
            )
            self._handing_down.ask(Wish(address, fetch.taken))

    # What is told

    def _keep_told(self) -> None:
        if self._underway is None or self.over:
            return
        now = self._clock()
        for device in self._underway.loop.devices:
            if self._flow.is_due(device, self._underway.loop, now):
                self._tell(device, "training")

    def _tell(self, device: str, phase: Phase) -> None:
        underway, seat = self._underway, self._seats[device]
        # A device may have joined and left again before the plan was made.
        if underway is None or not seat.incarnation or device not in underway.state.jobs:
            return
        seat = self._seats[device] = replace(seat, n=seat.n + 1)
        state = self._flow.message(
            seat,
            underway.loop,
            phase=phase,
            durable_round=self._folder.checkpoints.kept()[0].round,
            plan_version=underway.state.plan_version,
            lowered_round=underway.model.lowered_round,
            detail=self.detail,
            now=self._clock(),
        )
        self._send(device, state)

    def _send(self, device: str, message: DownMessage) -> None:
        self._link.publish(self._topics.down(self.run, device), frames.encode(message))

    def _publish_bridge(self, state: Presence) -> None:
        word = encode_word(BridgeWord(state, self.run, self.term))
        self._link.publish(self._topics.bridge_state, word, retain=True)

    # Small pieces

    def _advance(self, device: str, event: seats.SeatEvent) -> None:
        before = self._seat(device)
        after, replies = seats.step(before, event)
        self._seats[device] = after
        for reply in replies:
            self._send(device, reply)
        if after.phase is SeatPhase.ACTIVE and before.connected != after.connected:
            self._observe(Notice(f"Device {device} is {'back' if after.connected else 'offline'}."))

    def _seat(self, device: str) -> Seat:
        return self._seats.setdefault(device, Seat(device, self.run, self.term))
