"""The coordinator: one loop that hears devices, trains on what they deliver, and tells them how far they may go.

Nothing here blocks and nothing runs beside it: ``poll`` takes what the link brought, then trains on at most one
batch. The link's own thread keeps the connection alive meanwhile.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec
import torch

from coordinator.advice import Advisor
from coordinator.allowance import Seldom
from coordinator.attendance import check_quorum, excuse_the_lost
from coordinator.bridge import Bridge
from coordinator.checkpoints import KEPT_GENERATIONS, CommittedState
from coordinator.events import Ended, Notice, PlanMade, RoundClosed, RunEvent, Waiting
from coordinator.flow import Flow
from coordinator.handing_down import HandingDown
from coordinator.intake import Intake
from coordinator.ledger import Planned, Rewound, TermRaised
from coordinator.planning import Planner, ProfilePlanner, server_spec
from coordinator.registry import unite
from coordinator.roll import Roll
from coordinator.run_folder import RunFolder
from coordinator.run_record import Status
from coordinator.server_model import ServerModel
from coordinator.service import Service
from coordinator.strategy.catalogue import make_strategy
from coordinator.underway import Model, Underway, take_up
from toolkit.config import Run
from toolkit.errors import HseeError, MachineError, PartialError, RemoteProtocolError
from toolkit.failpoints import failpoint
from toolkit.link.base import CONNECT_S, Connected, Disconnected, Link, Received, matches
from toolkit.wire import frames, seats
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
)
from toolkit.wire.seats import Seat
from toolkit.wire.topics import Topics
from toolkit.wire.words import read_bridge_word, read_device_word

FAREWELL_S = 60.0
"""A run that is done waits so long for a broker that is away, to tell its devices."""
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
        make_model: Callable[..., Model] = ServerModel,
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
        self._generation, self._ledger = folder.open_checkpoint()
        self.term = folder.take_up()
        self._ledger.append(TermRaised(self.term))
        if folder.record.rewound_to is not None:
            self._ledger.append(Rewound(folder.record.rewound_to, self.term))
        self._roll = Roll(
            folder,
            term=self.term,
            settings=settings,
            planner=self._planner,
            record=self._ledger.append,
            send=self._send,
            observe=observe,
            clock=clock,
        )
        self._bridge = Bridge(link, topics=topics, run=self.run, term=self.term, clock=clock)
        self._intake = Intake(settings.activation_limit)
        self._refusals = Seldom()
        self._kept: deque[CommittedState] = deque(maxlen=KEPT_GENERATIONS)
        self._flow = Flow(settings.round_deadline_s)
        self._advisor = Advisor(folder.path, settings)
        self._handing_down = HandingDown(link, lambda device: topics.down(self.run, device))
        self._underway: Underway | None = None
        self._committed_at = self._alone_since = self._started_at = clock()
        self._first_contact_by: float | None = self._started_at + connect_s
        self.is_connected = False
        self._trying_said = False
        self._waiting_said: tuple[str, ...] | None = None
        self.n_refused_messages = 0
        self.status: Status = "waiting"
        self.detail = ""

    @property
    def sessions(self) -> Mapping[str, Seat]:
        """What is known of each device's session."""
        return self._roll.seats

    def dismiss(self, device: str) -> bool:
        """Wait no longer for a device that was thrown out; it is back with its next hello, if it can say one.

        Returns: whether it was heard of here.
        """
        if device not in self._roll:
            return False
        self._roll.advance(device, seats.Gone(self._roll[device].boot_nonce, on_purpose=True))
        return True

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.status in ("finished", "failed", "stopped")

    def start(self) -> None:
        """Take up a committed run if there is one, and begin to connect."""
        if self._generation is None:
            self._folder.set_status("waiting")
        else:
            self._kept.extend(generation.state() for generation in self._folder.checkpoints.kept())
            underway = self._take_up(self._kept[-1])
            underway.model.load(self._generation)
            self._folder.trim_metrics(underway.state.round)
            self._observe(Notice(f"Taking up run {self.run} after round {underway.state.round}."))
            self._begin(underway)
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
            for device in self._roll:
                self._tell(device, status)
            self._bridge.say("offline", ended=status)
        else:
            self._bridge.say("offline")
        self._end_silently(status, detail)

    def _end_silently(self, status: Status, detail: str) -> None:
        self.status, self.detail = status, detail
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
        if not self._underway.loop.is_open:
            return self._next_round(self._underway, now)
        is_sending = self._handing_down.send_some(self._underway)
        return self._train(self._underway, now) or is_sending or self._move_round(self._underway, now)

    def _train(self, underway: Underway, now: float) -> bool:
        if underway.loop.train_one() is None:
            return False
        if 0 < self._settings.commit_every_s <= now - self._committed_at:
            self._commit(underway, now)
        return True

    def _move_round(self, underway: Underway, now: float) -> bool:
        """Wait no longer for who comes too late, and close the round when it is complete; whether something changed."""
        loop = underway.loop
        late = loop.pass_turn(now)
        if late is not None:
            self._observe(Notice(f"{late} missed its turn in round {loop.round}; it comes last."))
            return True
        for device, why in excuse_the_lost(loop, self._roll, now):
            self._observe(Notice(f"Round {loop.round} goes on without {device} ({why})."))
        if loop.complete:
            self._close_round(underway, now, "deadline" if loop.is_overdue else "complete")
            return True
        deadline_s = self._settings.round_deadline_s
        if deadline_s > 0 and now - loop.opened_at >= deadline_s and not loop.is_overdue:
            loop.stop_waiting("deadline")
            return True
        return False

    def _gather(self, now: float) -> None:
        hellos = self._roll.ready()
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
                server=server_spec(self._settings),
            )
        )
        self._commit(underway, self._clock())
        self._begin(underway)

    def _take_up(self, state: CommittedState) -> Underway:
        self._underway = take_up(
            state,
            record=self._ledger.append,
            make_model=self._make_model,
            scratch=self._folder.path / SCRATCH,
            device=self._device,
            turn_s=self._settings.turn_s or self._settings.round_deadline_s / (len(state.jobs) + 1),
        )
        return self._underway

    def _begin(self, underway: Underway) -> None:
        """Give every device its job and open the next round."""
        state = underway.state
        for device, job in sorted(state.jobs.items()):
            self._roll.advance(
                device,
                seats.Assigned(Assignment(term=self.term, plan_version=state.plan_version, job=job)),
            )
        self.status = "training"
        self._folder.set_status("training")
        for service in self._services:
            service.begin(underway)
        if underway.state.open is not None:
            underway.loop.reopen(self._clock(), underway.state.open)
            self._tell_everybody()
        elif not self._is_done(underway):
            self._open_round(underway)

    # Rounds

    def _next_round(self, underway: Underway, now: float) -> bool:
        """Open the next round once a device is here for it, or end the run; whether it did.

        Raises: PartialError: none came for so long that the run ends.
        """
        if self._is_done(underway):
            return self._finish(underway, now)
        if self._roll.is_anybody_here:
            self._open_round(underway)
            return True
        if now - self._alone_since >= self._settings.absent_s:
            raise PartialError(
                f"Every device has been gone for {self._settings.absent_s:g} s after round {underway.loop.round}.",
                hint=f"What was trained is kept. When devices are back: hsee run resume {self._folder.path}",
            )
        return False

    def _open_round(self, underway: Underway) -> None:
        loop = underway.loop
        loop.open(self._clock())
        for device in loop.devices:
            if self._roll[device].left:
                loop.excuse(device, "left")
        self._tell_everybody()

    def _is_done(self, underway: Underway) -> bool:
        return underway.loop.round >= underway.state.common.rounds

    def _finish(self, underway: Underway, now: float) -> bool:
        """End the run where devices can be told of it, or when the broker has been away for long."""
        if not self.is_connected and now - self._committed_at < FAREWELL_S:
            return False
        self.end("finished", f"All {underway.loop.round} rounds are done.")
        return True

    def _close_round(self, underway: Underway, now: float, reason: str) -> None:
        loop = underway.loop
        check_quorum(loop, quorum=self._settings.quorum, min_share=self._settings.min_share)
        report = loop.close(now, reason)
        self._folder.write_metrics(report, underway.state.cuts)
        self._commit(underway, now)
        self._folder.record.rounds_closed = report.round
        self._folder.record.rewound_to = None  # its entry is committed
        self._folder.save_record()
        failpoint("coordinator.closed_untold")
        self._observe(RoundClosed(report, underway.state.cuts, underway.state.common.rounds))
        for text in self._advisor.round_over():
            self._observe(Notice(text))
        if self._is_done(underway):
            self._finish(underway, now)
        elif self._roll.is_anybody_here:
            self._open_round(underway)
        elif self._roll.is_everybody_gone_for_good:
            raise PartialError(
                f"Every device is gone at the end of round {report.round}.",
                hint=f"What was trained is kept. When devices are back: hsee run resume {self._folder.path}",
            )
        else:
            self._alone_since = now
            self._observe(
                Notice(f"Every device is gone after round {loop.round}; the next one waits for the first.")
            )

    def _commit(self, underway: Underway, now: float) -> None:
        """Commit what is trained: ledger rows first, then the checkpoint's rename."""
        loop = underway.loop
        opened = loop.as_committed(now) if loop.is_open else None
        if loop.is_open and opened is None:
            return
        self._ledger.sync()
        failpoint("coordinator.ledger_synced")
        n_owed = {device: held.n_owed for device, held in loop.devices.items()}
        underway.state = msgspec.structs.replace(
            underway.state,
            round=loop.round - 1 if opened else loop.round,
            n_owed=underway.state.n_owed if opened else n_owed,
            open=opened,
            n_applied=dict(loop.n_applied),
            ledger_length=self._ledger.length,
            ledger_head=self._ledger.head.hex(),
        )
        self._folder.checkpoints.commit(underway.state, underway.model.files())
        self._kept.append(underway.state)
        self._committed_at = now
        failpoint("coordinator.committed")

    # What arrives

    def _on_link(self, event: Connected | Disconnected | Received) -> None:
        match event:
            case Connected():
                self._first_contact_by = None
                self.is_connected = True
                of_services = (topics for service in self._services for topics in service.filters)
                self._link.subscribe(
                    self._topics.all_up(self.run),
                    self._topics.all_device_states,
                    self._topics.bridge_state,
                    *of_services,
                )
                self._bridge.say("online")
            case Disconnected(error=error):
                self.is_connected = False
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
                    self._refuse(topic, exc.message)

    def _on_message(self, topic: str, payload: bytes) -> None:
        for service in self._services:
            if any(matches(topic_filter, topic) for topic_filter in service.filters):
                service.take(topic, payload)
                return
        if topic == self._topics.bridge_state:
            self._on_bridge(payload)
            return
        if topic.endswith("/state"):
            self._on_device_state(self._topics.device_of(topic, leaf="state"), payload)
            return
        device = self._topics.device_of(topic, leaf="up")
        if self._intake.admits(device, len(payload), underway=self._underway, now=self._clock()):
            self._on_up(device, *frames.decode(payload))
        else:
            self._refuse(topic, "it sends more than it was asked for.")

    def _refuse(self, topic: str, why: str) -> None:
        """Count a message that is not taken; say so, but not of each one of a flood."""
        self.n_refused_messages += 1
        n_quiet = self._refusals.worth_saying(topic, self._clock())
        if n_quiet is not None:
            more = f" ({n_quiet} more since the last that was told)" if n_quiet else ""
            self._observe(Notice(f"Refused a message on {topic}: {why}{more}"))

    def _on_up(self, device: str, message: Message, body: memoryview) -> None:
        match message:
            case Hello():
                self._on_hello(device, message)
            case Fetch():
                self._handing_down.fetch(device, message, seat=self._roll[device], underway=self._underway)
            case Bye():
                self._roll.advance(device, seats.Gone(message.boot_nonce, on_purpose=True))
            case Pace():
                # PROTOCOL.md 18: "The coordinator MUST refuse a pace that names another device than its topic"
                if message.device != device:
                    raise RemoteProtocolError(f"A pace on the topic of {device!r} names {message.device!r}.")
                self._advisor.hear(device, message)
            case Chunk():
                self._roll.advance(device, seats.Heard(self._clock()))
                seat = self._roll[device]
                self._intake.take(device, message, body, seat=seat, underway=self._underway)
            case _:
                raise RemoteProtocolError(f"A device does not send a {type(message).__name__}.")

    def _on_device_state(self, device: str, payload: bytes) -> None:
        """The last will of a device's process, or its own word."""
        word = read_device_word(payload)
        if word.state == "offline" and device in self._roll:
            self._roll.advance(device, seats.Gone(bytes.fromhex(word.boot_nonce)))

    def _on_bridge(self, payload: bytes) -> None:
        """A coordinator's word in this fleet: this one's own, or that of another.

        Raises: RunError: this one has to end.
        """
        word = read_bridge_word(payload)
        lost = self._bridge.taken_over_by(word)
        if lost is not None:
            self._end_silently("stopped", lost.message)
            raise lost
        self._bridge.hear(word)

    def _on_hello(self, device: str, hello: Hello) -> None:
        accepted, fresh = self._roll.hello(device, hello, self._underway)
        if fresh:
            self._intake.forget(device)
            if self._underway is not None:
                self._underway.loop.forgive(device)
        if accepted and self._underway is not None and self._underway.loop.is_open:
            self._underway.loop.welcome_back(device)
            self._tell(device, "training")

    # What is told

    def _keep_told(self) -> None:
        if self._underway is None or self.over or not self._underway.loop.is_open:
            return
        now = self._clock()
        for device in self._underway.loop.devices:
            if self._flow.is_due(device, self._underway.loop, now):
                self._tell(device, "training")

    def _tell_everybody(self) -> None:
        for device in self._underway.loop.devices if self._underway is not None else ():
            self._tell(device, "training")

    def _tell(self, device: str, phase: Phase) -> None:
        underway = self._underway
        # A device may have joined and left again before the plan was made.
        if underway is None or not self._roll[device].incarnation or device not in underway.loop.devices:
            return
        state = self._flow.message(
            self._roll.count_state(device),
            underway.loop,
            phase=phase,
            watermark=self._watermark(device),
            plan_version=underway.state.plan_version,
            lowered_round=underway.model.lowered_round,
            detail=self.detail,
            now=self._clock(),
        )
        self._send(device, state)

    def _watermark(self, device: str) -> tuple[int, int]:
        """Rule 6: the watermark is that of the oldest kept generation."""
        return self._kept[0].watermark(device)

    def _send(self, device: str, message: DownMessage) -> None:
        self._link.publish(self._topics.down(self.run, device), frames.encode(message))
