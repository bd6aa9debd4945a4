"""The agent's loop: what the link brings goes to the session, what the session allows is trained and sent.

Nothing here blocks and nothing runs beside it but the link's own thread, which keeps the connection alive while a
step is computed. torch is loaded by the trainer, when a job arrives.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from device_agent.drift import PaceWatch
from device_agent.fetching import Fetching
from device_agent.sending import USUAL_CONDUCT, Conduct, Sender
from device_agent.trains_rounds import TrainsRounds
from toolkit import __version__
from toolkit.errors import (
    FencedError,
    MachineError,
    RefusedError,
    RemoteProtocolError,
    RunError,
)
from toolkit.failpoints import failpoint
from toolkit.link.base import CONNECT_S, Connected, Disconnected, Link, LinkEvent, Received
from toolkit.link.contact import Contact
from toolkit.wire import frames, session, weights
from toolkit.wire.job import Job, influence_line
from toolkit.wire.limits import MAX_TEXT_CHARACTERS, PROTOCOL_VERSION
from toolkit.wire.messages import (
    RUN_OVER,
    STOPPED,
    Assignment,
    Bye,
    Chunk,
    DataSummary,
    Fenced,
    Fetch,
    Hello,
    MeasureRequest,
    Message,
    Refusal,
    State,
    Welcome,
)
from toolkit.wire.payloads import Batch
from toolkit.wire.session import DevicePhase, DeviceState
from toolkit.wire.topics import Topics
from toolkit.wire.words import DeviceWord, Presence, encode_word, read_bridge_word

AHEAD = 2
"""Batches trained beyond credit and kept ready."""
OUTSTANDING_BYTES = 8 * 1024 * 1024
"""No further batch is handed to the link while it still holds so much."""


ADVICE = {
    "protocol": "Install the same version of hsee on both.",
    "late": "Start this device before the run, or start a new run.",
    "shape": "All devices of a run need samples of one shape: bring this device's to it.",
    "classes": "Rename or remove these classes here, or start the run without a class list.",
    "model": "Start the run with a model for such samples: hsee coordinator start --model",
    "weights": "If this board may be influenced, say so here: --accept-weights coordinator. Or start a run that does not.",
}
"""What a device's owner can do about a refusal, by its code."""


class Agent:
    """One device's process.

    Args:
        link: not started yet; its last will is :class:`DeviceWord` "offline".
        topics: of the fleet.
        device: this device's id.
        boot_nonce: of this process, 16 random bytes.
        data: what is told of the local data.
        profile: of this board as TOML text; may be empty.
        make_trainer: called with the job when it arrives.
        measure: called when the coordinator asks for a profile; returns it as TOML text.
        clock: monotonic seconds.
        say: takes each line that whoever watches should read.
        saved_place: says for a run how far what was saved of it has come, as (round, seq), before its job is here.
        conduct: what this device does and lets be done to it.
        connect_s: how long the first connection may take; later ones are tried for ever.
    """

    def __init__(  # noqa: PLR0913 - all that a process is made of
        self,
        link: Link,
        *,
        topics: Topics,
        device: str,
        boot_nonce: bytes,
        data: DataSummary,
        profile: str,
        make_trainer: Callable[[Job], TrainsRounds],
        measure: Callable[[MeasureRequest], str],
        clock: Callable[[], float],
        say: Callable[[str], None],
        saved_place: Callable[[str], tuple[int, int]] = lambda _run: (0, 0),
        conduct: Conduct = USUAL_CONDUCT,
        connect_s: float = CONNECT_S,
    ) -> None:
        self._link = link
        self._topics = topics
        self._device = device
        self._data = data
        self._profile = profile
        self._make_trainer = make_trainer
        self._measure = measure
        self._clock = clock
        self._say = say
        self._conduct = conduct
        self._sender = Sender(link, topics, device, conduct)
        self._alone_said = False
        self._session = DeviceState(boot_nonce)
        self._saved_place = saved_place
        self._trainer: TrainsRounds | None = None
        self._job: Job | None = None
        self._ready: OrderedDict[int, Batch] = OrderedDict()
        self._pace: PaceWatch | None = None
        self._fetching: Fetching | None = None
        self._stop: session.Stop | None = None
        self._is_unfit = False
        self._failure = ""
        self._contact = Contact(clock, who="this device", connect_s=connect_s)
        self.n_refused_messages = 0
        self.exit_accuracy: float | None = None

    @property
    def phase(self) -> DevicePhase:
        """Where the session stands."""
        return self._session.phase

    @property
    def is_connected(self) -> bool:
        """Whether the link is up."""
        return self._contact.is_connected

    @property
    def cut(self) -> str:
        """The cut layer of its job; empty where there is none."""
        return "" if self._job is None else self._job.cut

    @property
    def trained(self) -> tuple[int, int]:
        """How far training has come, as (round, seq)."""
        return (self._trainer.round, self._trainer.seq) if self._trainer else (0, 0)

    @property
    def over(self) -> bool:
        """Whether the run is over for this process."""
        return self._stop is not None

    def start(self) -> None:
        """Begin to connect."""
        self._link.start()

    def poll(self, timeout_s: float) -> None:
        """Take what the link brought, then do one piece of work; wait at most ``timeout_s`` if there is none.

        Raises: HseeError: this process can't go on.
        """
        try:
            busy = self._work()
        except MachineError:
            self._is_unfit = True
            raise
        if self._pace is not None:
            self._pace.looked(self._clock(), self._link.outstanding_bytes)
        for event in self._link.poll(0.0 if busy else timeout_s):
            self._on_link(event)
        self._feed(session.Tick(self._clock(), is_sending=self._link.outstanding_bytes > 0))

    def result(self) -> str:
        """Say how the run ended for this device.

        Raises: FencedError, RefusedError, RunError: it did not end well.
        """
        stop = self._stop
        if stop is None:
            raise RunError("The run is not over.")
        if stop.phase is DevicePhase.FENCED:
            raise FencedError(
                f"Another process took over the device id {self._device!r}; this one stops. {stop.detail}",
                hint="One device id is one process: give each its own --id, or stop the other one.",
            )
        if stop.phase is DevicePhase.REFUSED:
            raise RefusedError(
                f"The coordinator refused {self._device!r}: {stop.detail}",
                hint=ADVICE.get(stop.code, ""),
                reason=stop.code,
            )
        if stop.phase is DevicePhase.FAILED:
            raise RunError(f"The run failed at the coordinator: {stop.detail}")
        return stop.detail

    def fail(self, why: str) -> None:
        """Take note of why this process can't go on: its goodbye tells."""
        self._failure = why[:MAX_TEXT_CHARACTERS]

    def close(self) -> None:
        """Save, say goodbye, and leave the broker."""
        try:
            # A fenced process speaks for nobody any more; its files are as its last round left them. And a disk that
            # refused something is not tried again: what it says then proves nothing.
            if self._trainer is not None and self.phase is not DevicePhase.FENCED and not self._is_unfit:
                self._trainer.save()
        finally:
            self._leave()

    def _leave(self) -> None:
        state = self._session
        if self.is_connected and state.phase is not DevicePhase.FENCED:
            reason = self._failure or (RUN_OVER if self.over else STOPPED)
            self._up(Bye(device=self._device, boot_nonce=state.boot_nonce, reason=reason))
            self._link.publish(self._topics.device_state(self._device), self._word("offline"), retain=True)
        self._link.close()

    # What there is to do

    def _work(self) -> bool:
        """Do one piece of work; whether there may be more at once."""
        trainer, flow = self._trainer, self._session.flow
        if trainer is None or self.over:
            return False
        if self._session.is_alone(self._clock()):
            return self._train_extra(trainer)
        if flow is None or self.phase is not DevicePhase.TRAINING:
            return False
        return self._work_on(flow, trainer)

    def _work_on(self, flow: State, trainer: TrainsRounds) -> bool:
        if flow.round != trainer.round:
            self._finish_round(trainer)
            trainer.enter_round(flow.round, flow.next - 1)
            self._ready.clear()
        if self._fetching is not None and flow.lowered_round > trainer.lowered_round and trainer.is_untouched:
            self._ask_for(flow.lowered_round, self._fetching)
            return False
        credit = [seq for seq in session.may_send(self._session) if self._has(trainer, flow.round, seq)]
        if credit and self._link.outstanding_bytes < OUTSTANDING_BYTES:
            return self._serve(trainer, credit[0])
        if not credit and trainer.seq < trainer.n_train and len(self._ready) < AHEAD:
            self._train(trainer)
            return True
        return False

    def _has(self, trainer: TrainsRounds, round_: int, seq: int) -> bool:
        """Whether there is such an item: a coordinator that does not know yet of other data asks for the list of the old."""
        gathers = self._job is not None and self._job.gathers(round_)
        return seq <= trainer.n_batches + gathers

    def _serve(self, trainer: TrainsRounds, seq: int) -> bool:
        """Send batch ``seq``, after training up to it if need be."""
        for old in [ready for ready in self._ready if ready < seq]:
            del self._ready[old]
        batch = self._ready.pop(seq, None)
        if batch is None and trainer.seq < min(seq, trainer.n_train):
            self._train(trainer)  # one step a call, so that the link is heard in between
            return True
        state, job = self._session, self._job
        if job is not None:
            if seq > trainer.n_batches:
                n_bytes = self._sender.send_weights(state, job, seq, trainer)
            else:
                n_bytes = self._sender.send_batch(state, job, seq, batch or trainer.make_again(seq))
            if self._pace is not None:
                self._pace.sent(n_bytes)
        self._feed(session.Sent(seq, self._clock()))
        return True

    def _train_extra(self, trainer: TrainsRounds) -> bool:
        """Rule 8: with no coordinator heard for its lease, a device trains on; but joining comes first."""
        is_joining = self._clock() - self._contact.changed_at < session.REHELLO_AFTER_S
        if is_joining or not self._conduct.trains_alone:
            return False
        if not self._alone_said:
            self._alone_said = True
            self._say("no coordinator heard for a while: training on alone; such steps are extra")
        trainer.train_extra()
        return True

    def _train(self, trainer: TrainsRounds) -> None:
        began_s = self._clock()
        batch = trainer.train_next()
        if self._pace is not None:
            self._pace.stepped(self._clock() - began_s)
        self._ready[trainer.seq] = batch
        if trainer.seq == trainer.n_train:
            self._finish_round(trainer)

    def _finish_round(self, trainer: TrainsRounds) -> None:
        accuracy = trainer.finish_round()
        if accuracy is not None:
            self.exit_accuracy = accuracy
            self._say(f"round {trainer.round}: exit accuracy {accuracy:.1%} on own held-out samples")
        self._tell_pace(trainer.round)

    def _tell_pace(self, round_: int) -> None:
        pace = self._pace.round_over(round_) if self._pace is not None else None
        if self._pace is None or pace is None:
            return
        self._up(pace)
        for advice in self._pace.advice(pace):
            self._say(advice)

    def _ask_for(self, round_: int, fetching: Fetching) -> None:
        state, trainer = self._session, self._trainer
        if trainer is not None and fetching.is_due(round_, self._clock()):
            self._up(
                Fetch(
                    device=self._device,
                    term=state.term,
                    incarnation=state.incarnation,
                    round=round_,
                    taken=trainer.lowered_round,
                )
            )

    # What arrives

    def _on_link(self, event: LinkEvent) -> None:
        match event:
            case Connected():
                self._say("connected to the broker")
                self._contact.made()
                self._feed(session.LinkUp())
                self._link.subscribe(self._topics.bridge_state)
                self._link.publish(self._topics.device_state(self._device), self._word("online"), retain=True)
            case Disconnected(error=error):
                line = self._contact.lost(error)
                if line:
                    self._say(line)
                self._feed(session.LinkDown())
            case Received(topic=topic, payload=payload):
                try:
                    self._on_message(topic, payload)
                except RemoteProtocolError as exc:
                    self.n_refused_messages += 1
                    self._say(f"refused a message on {topic}: {exc.message}")

    def _on_message(self, topic: str, payload: bytes) -> None:
        now = self._clock()
        if topic == self._topics.bridge_state:
            word = read_bridge_word(payload)
            if word.state == "offline":
                self._say("the coordinator is offline; waiting for it")
            self._feed(session.BridgeSeen(word.run, now, word.state == "online", word.ended, word.term))
            return
        message, body = frames.decode(payload)
        if isinstance(message, Chunk):
            self._on_chunk(message, body)
            return
        if not isinstance(message, Welcome | Assignment | State | Refusal | Fenced):
            raise RemoteProtocolError(f"A coordinator does not send a {type(message).__name__}.")
        self._feed(session.Got(message, now))

    def _on_chunk(self, chunk: Chunk, body: memoryview) -> None:
        """A piece of what the coordinator hands down."""
        fetching, trainer, state = self._fetching, self._trainer, self._session
        # PROTOCOL.md 19: "A device MUST refuse chunks on `down` unless its own settings accept weights"
        if fetching is None or trainer is None:
            raise RemoteProtocolError("This device takes no weights.")
        whole = fetching.add(chunk, body, self._clock())
        if whole is None:
            return
        header, content = weights.decode_lowered(whole, device=self._device)
        orders = (header.term, header.incarnation, header.plan_version)
        wanted = state.flow.lowered_round if state.flow is not None else 0
        if orders != (state.term, state.incarnation, state.plan_version) or header.round != wanted:
            return
        if header.round > trainer.lowered_round and trainer.is_untouched:
            trainer.take_lowered(header, content)

    def _feed(self, event: session.Event) -> None:
        self._session, actions = session.step(self._session, event)
        for action in actions:
            match action:
                case session.SayHello(run=run):
                    self._hello(run)
                case session.Look():
                    self._link.subscribe(self._topics.bridge_state)
                case session.Measure(request=request):
                    self._say(f"measuring this board for {request.model.name}")
                    self._profile = self._measure(request)
                    self._feed(session.Measured(self._clock()))
                case session.Begin(assignment=assignment):
                    self._begin(assignment)
                case session.Stop() as stop:
                    self._stop = stop

    def _begin(self, assignment: Assignment) -> None:
        job = assignment.job
        # PROTOCOL.md 19: "A device whose own settings do not accept that MUST refuse such an assignment and stop"
        if job.influence and self._conduct.accept_weights == "never":
            raise RefusedError(
                f"The coordinator would influence this device's weights ({job.influence}); its own settings do not"
                " accept that: device.accept_weights = never.",
                hint=ADVICE["weights"],
                reason="weights",
            )
        if self._trainer is None or self._job != job:
            self._say(influence_line(job.influence))
            self._say(f"cut after {job.cut}: training its segment and exit for run {job.run}")
            self._ready.clear()
            failpoint("device.welcome_unsaved")
            self._job, self._trainer = job, self._make_trainer(job)
            self._pace = PaceWatch(self._profile, device=self._device, job=job)
            self._fetching = Fetching(max_bytes=self._trainer.max_lowered_bytes) if job.influence else None

    # What is told

    def _hello(self, run: str) -> None:
        if self._fetching is not None:
            self._fetching.forget()
        self._link.subscribe(self._topics.down(run, self._device))
        round_, seq = self.trained if self._trainer else self._saved_place(run)
        self._up(
            Hello(
                device=self._device,
                boot_nonce=self._session.boot_nonce,
                protocols=[PROTOCOL_VERSION],
                software=f"hsee {__version__}",
                data=self._data,
                profile=self._profile,
                trained_round=round_,
                trained_seq=seq,
                accept_weights=self._conduct.accept_weights,
            )
        )

    def _up(self, message: Message) -> None:
        if self._session.run is not None:
            self._link.publish(self._topics.up(self._session.run, self._device), frames.encode(message))

    def _word(self, state: Presence) -> bytes:
        return encode_word(DeviceWord(state, self._session.boot_nonce.hex()))
