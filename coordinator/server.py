"""The coordinator: one loop that hears devices, trains on what they deliver, and tells them how far they may go.

Nothing here blocks and nothing runs beside it: ``poll`` takes what the link brought, then trains on at most one
batch. The link's own thread keeps the connection alive meanwhile. What the parts know: ``gathering`` who is waited
for and the plan, ``round_course`` when a round opens and closes, ``commits`` what survives a crash, ``flow`` what
devices are told, ``hearing`` what they say.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch

from coordinator.beside.service import Service
from coordinator.commits import Commits
from coordinator.fleet.advice import Advisor
from coordinator.fleet.allowance import Seldom
from coordinator.fleet.bridge import Bridge
from coordinator.fleet.events import Ended, Notice, RunEvent
from coordinator.fleet.handing_down import HandingDown
from coordinator.fleet.intake import Intake
from coordinator.fleet.planning import Planner, ProfilePlanner
from coordinator.fleet.roll import Roll
from coordinator.flow import Flow
from coordinator.gathering import Gathering
from coordinator.hearing import Hearing
from coordinator.round_course import RoundCourse
from coordinator.rounds.underway import Makes, Underway, take_up
from coordinator.store.checkpoints import CommittedState
from coordinator.store.ledger import Rewound, TermRaised
from coordinator.store.run_folder import RunFolder
from coordinator.store.run_record import Status
from coordinator.strategy.catalogue import make_strategy
from toolkit.config import Run
from toolkit.errors import HseeError, MachineError, RemoteProtocolError, RunError
from toolkit.link.base import CONNECT_S, Connected, Disconnected, Link, LinkEvent, Received, matches
from toolkit.link.contact import Contact
from toolkit.wire import frames, seats
from toolkit.wire.messages import Assignment, DownMessage
from toolkit.wire.seats import Seat
from toolkit.wire.topics import Topics
from toolkit.wire.words import read_bridge_word

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
        makes: what the run is computed with.
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
        makes: Makes = Makes(),  # noqa: B008 - frozen
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
        # A wrong name is told before anything begins.
        strategy = make_strategy(settings.strategy, settings.strategy_options)
        self._commits_within = strategy.mode != "pooled"
        self._makes = makes
        self._services = tuple(services)
        self._generation, self._ledger = folder.open_checkpoint()
        self.term = folder.take_up()
        self._ledger.append(TermRaised(self.term))
        rewound_to = folder.unrecorded_rewind
        if rewound_to is not None:
            self._ledger.append(Rewound(rewound_to, self.term))
        self._contact = Contact(clock, who="this coordinator", connect_s=connect_s)
        self._make_parts(planner or ProfilePlanner(scratch=folder.path / SCRATCH))
        self._refusals = Seldom()
        self._underway: Underway | None = None
        self.n_refused_messages = 0
        self.status: Status = "waiting"
        self.detail = ""

    def _make_parts(self, planner: Planner) -> None:
        link, topics, folder, settings = self._link, self._topics, self._folder, self._settings
        clock, observe, record = self._clock, self._observe, self._ledger.append
        advisor = Advisor(folder.path, settings)
        self._bridge = Bridge(
            link,
            topics=topics,
            run=self.run,
            term=self.term,
            boot_nonce=folder.boot_nonce,
            clock=clock,
        )
        self._roll = Roll(
            folder,
            term=self.term,
            settings=settings,
            planner=planner,
            record=record,
            send=self._send,
            observe=observe,
            clock=clock,
        )
        self._gathering = Gathering(
            self._roll,
            settings=settings,
            planner=planner,
            folder=folder,
            record=record,
            observe=observe,
            now=clock(),
        )
        self._commits = Commits(folder.checkpoints, self._ledger, now=clock())
        self._flow = Flow(
            self._roll, self._commits, send=self._send, clock=clock, deadline_s=settings.round_deadline_s
        )
        self._course = RoundCourse(
            self._roll,
            settings=settings,
            folder=folder,
            commits=self._commits,
            flow=self._flow,
            advisor=advisor,
            observe=observe,
            clock=self._contact.heard_until,
        )
        self._handing_down = HandingDown(link, lambda device: topics.down(self.run, device))
        self._intake = Intake(settings.activation_limit, doubt=self._bridge.doubt)
        self._hearing = Hearing(
            topics,
            roll=self._roll,
            intake=self._intake,
            flow=self._flow,
            handing_down=self._handing_down,
            advisor=advisor,
            clock=clock,
        )

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
    def is_connected(self) -> bool:
        """Whether the link is up."""
        return self._contact.is_connected

    @property
    def over(self) -> bool:
        """Whether the run has ended."""
        return self.status in ("finished", "failed", "stopped")

    def start(self) -> None:
        """Take up a committed run if there is one, and begin to connect."""
        for text in self._folder.damage:
            self._observe(Notice(text))
        if self._settings.commit_every_s > 0 and not self._commits_within:
            self._observe(
                Notice(
                    f"Strategy {self._settings.strategy} trains when a round is whole: it is committed at each round's end"
                    " only, whatever run.commit_every_s says."
                )
            )
        if self._generation is None:
            self._folder.set_status("waiting")
        else:
            underway = self._take_up(self._commits.take_up())
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
            self._bridge.tick()
            for service in self._services:
                busy |= service.tick(self._link.publish)
            for event in self._link.poll(0.0 if busy else timeout_s):
                self._on_link(event)
            if self._underway is not None and self._underway.loop.is_open and not self.over:
                self._flow.keep_told(self._underway)
        except MachineError as exc:
            # A disk that is full now may have room at the resume: devices wait for that. One that failed is not tried
            # again: what it says then proves nothing.
            with suppress(MachineError):
                self.end("stopped", exc.message, written=exc.facts.get("errno") != errno.EIO)
            raise
        except HseeError as exc:
            self.end("failed", exc.message)
            raise

    def end(self, status: Status, detail: str, *, written: bool = True) -> None:
        """End the run: tell devices, write down why. What was committed stays.

        Args:
            status: that it ends with.
            detail: why.
            written: false where the run folder's disk failed.
        """
        if self.over:
            return
        self.status, self.detail = status, detail
        if status in ("finished", "failed"):
            if self._underway is not None:
                for device in self._roll:
                    self._flow.tell(device, self._underway, phase=status, detail=detail)
            self._bridge.say("offline", ended=status)
        else:
            self._bridge.say("offline")
        self._end_silently(status, detail, written=written)

    def _end_silently(self, status: Status, detail: str, *, written: bool = True) -> None:
        self.status, self.detail = status, detail
        self._observe(Ended(status, detail))
        if written:
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

    # What there is to do

    def _work(self) -> bool:
        """Do one piece of work; whether there may be more at once."""
        if self.over:
            return False
        now, underway = self._contact.heard_until(), self._underway
        if underway is None:
            self._gather(now)
            return False
        if not underway.loop.is_open:
            return self._finish_if_done(underway) or self._course.open_next(underway, now)
        is_sending = self._handing_down.send_some(underway)
        if self._course.train(underway, now) or is_sending or self._course.move(underway, now):
            self._finish_if_done(underway)
            return True
        return False

    def _gather(self, now: float) -> None:
        state = self._gathering.look(now)
        if state is not None:
            underway = self._take_up(state)
            self._commits.commit(underway, now)
            self._begin(underway)

    def _take_up(self, state: CommittedState) -> Underway:
        self._underway = take_up(
            state,
            record=self._ledger.append,
            makes=self._makes,
            scratch=self._folder.path / SCRATCH,
            device=self._device,
            turn_s=self._settings.turn_s or self._settings.round_deadline_s / (len(state.jobs) + 1),
            waiting_bytes=self._settings.waiting_bytes,
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
        self._course.take_up(underway)

    def _finish_if_done(self, underway: Underway) -> bool:
        """End a run that is done, where devices can be told of it, or when the broker has been away for long."""
        can_tell = self.is_connected or self._clock() - self._contact.changed_at >= FAREWELL_S
        if not underway.is_done or not can_tell:
            return False
        self.end("finished", underway.end)
        return True

    # What arrives

    def _on_link(self, event: LinkEvent) -> None:
        match event:
            case Connected():
                away_s = self._contact.made()
                self._gathering.put_off(away_s)
                self._course.put_off(away_s, self._underway)
                of_services = (topics for service in self._services for topics in service.filters)
                self._link.subscribe(
                    self._topics.all_up(self.run),
                    self._topics.all_device_states,
                    self._topics.bridge_state,
                    *of_services,
                )
                self._bridge.arrive()
            case Disconnected(error=error):
                self._give_way(self._bridge.lose_connection(error))
                line = self._contact.lost(error)
                if line:
                    self._observe(Notice(line[0].upper() + line[1:]))
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
            self._give_way(self._bridge.hear(read_bridge_word(payload)))
        else:
            self._hearing.take(topic, payload, self._underway)

    def _give_way(self, lost: RunError | None) -> None:
        """End without a word where another coordinator goes on: neither run nor fleet are this one's."""
        if lost is not None:
            self._end_silently("stopped", lost.message)
            raise lost

    def _refuse(self, topic: str, why: str) -> None:
        """Count a message that is not taken; say so, but not of each one of a flood."""
        self.n_refused_messages += 1
        n_quiet = self._refusals.worth_saying(topic, self._clock())
        if n_quiet is not None:
            more = f" ({n_quiet} more since the last that was told)" if n_quiet else ""
            self._observe(Notice(f"Refused a message on {topic}: {why}{more}"))

    def _send(self, device: str, message: DownMessage) -> None:
        self._link.publish(self._topics.down(self.run, device), frames.encode(message))
