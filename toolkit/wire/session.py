"""The device's side of the protocol as a table: pure ``step(state, event) -> (state, actions)``.

No I/O, no clock, no torch: time arrives in events, and what must happen leaves as actions. The coordinator's side
is ``seats.py``. PROTOCOL.md draws both diagrams from these tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from toolkit.wire.messages import Assignment, Fenced, MeasureRequest, Refusal, State, Welcome
from toolkit.wire.words import Ending

RESEND_AFTER_S = 5.0
"""A batch is sent again when the coordinator has named it as its next for so long."""
REHELLO_AFTER_S = 5.0
"""A hello without an answer is said again after so long."""
LEASE_S = 30.0
"""A coordinator that said nothing for so long is asked by a hello: its word of coming back may have been lost."""


class DevicePhase(StrEnum):
    """Where a device stands."""

    OFFLINE = "offline"
    SEEKING = "seeking"
    JOINING = "joining"
    MEASURING = "measuring"
    JOINED = "joined"
    TRAINING = "training"
    FINISHED = "finished"
    FAILED = "failed"
    REFUSED = "refused"
    FENCED = "fenced"


TERMINAL = frozenset({DevicePhase.FINISHED, DevicePhase.FAILED, DevicePhase.REFUSED, DevicePhase.FENCED})


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The link has a fresh connection; nothing of an earlier one can be relied on."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The connection is gone."""


@dataclass(frozen=True, slots=True)
class BridgeSeen:
    """The retained word of a coordinator: whether it serves a run, and where the run is over, how it ended."""

    run: str
    now: float
    is_online: bool = True
    ended: Ending = ""
    term: int = 0
    """Of the coordinator that speaks; 0 where it is not told."""


@dataclass(frozen=True, slots=True)
class Got:
    """A message from the coordinator."""

    message: Welcome | Assignment | State | Refusal | Fenced
    now: float


@dataclass(frozen=True, slots=True)
class Measured:
    """The profile that the coordinator asked for is ready."""

    now: float


@dataclass(frozen=True, slots=True)
class Tick:
    """All that had come was taken, and time passed; ``is_sending``: what was handed over has not all left yet."""

    now: float
    is_sending: bool = False


@dataclass(frozen=True, slots=True)
class Sent:
    """Batch ``seq`` of the open round was handed to the link."""

    seq: int
    now: float


Event = LinkUp | LinkDown | BridgeSeen | Got | Measured | Tick | Sent


@dataclass(frozen=True, slots=True)
class SayHello:
    """Subscribe to the run's down topic and say hello on its up topic."""

    run: str


@dataclass(frozen=True, slots=True)
class Look:
    """Subscribe to the bridge word anew: what is retained comes again."""


@dataclass(frozen=True, slots=True)
class Measure:
    """Measure this board, then give the event :class:`Measured`."""

    request: MeasureRequest


@dataclass(frozen=True, slots=True)
class Begin:
    """Take up a job."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Stop:
    """The session is over; ``phase`` says why, ``detail`` in words."""

    phase: DevicePhase
    detail: str
    code: str = ""


Action = SayHello | Look | Measure | Begin | Stop


@dataclass(frozen=True, slots=True)
class DeviceState:
    """All that a device's session remembers.

    Attributes:
        flow: the highest state message obeyed, if any.
        cursor: next seq of ``flow.round`` to hand over.
        named_since: when ``flow.next`` was first named, or handed over since and gone, for sending again.
        named_again: when a later message named it too.
        asked_at: when the last hello was said.
        looked_at: when the bridge word was asked for anew.
        heard_at: when the coordinator last said something that counted.
        is_served: whether a coordinator of the run is up, by its last word.
        other_run: of another coordinator that was seen in the fleet since.
    """

    boot_nonce: bytes
    phase: DevicePhase = DevicePhase.OFFLINE
    run: str | None = None
    term: int = 0
    incarnation: int = 0
    plan_version: int = 0
    flow: State | None = None
    cursor: int = 1
    named_since: float = 0.0
    named_again: float = 0.0
    asked_at: float = 0.0
    looked_at: float = 0.0
    heard_at: float = 0.0
    is_served: bool = False
    other_run: str = ""

    def is_alone(self, now: float) -> bool:
        """Whether a device with a job has heard no coordinator for the length of its lease."""
        return bool(self.plan_version) and self.phase not in TERMINAL and now - self.heard_at >= LEASE_S


Handler = Callable[[DeviceState, Event], tuple[DeviceState, list[Action]]]


def step(state: DeviceState, event: Event) -> tuple[DeviceState, list[Action]]:
    """Apply one event.

    Args:
        state: before.
        event: what happened.
    Returns: the state after, and what to do, in order. An event that means nothing here changes nothing.
    """
    if state.phase in TERMINAL:
        return state, []
    return _TABLE[type(event)](state, event)


def may_send(state: DeviceState) -> range:
    """Seqs of the open round that credit allows and that were not handed over yet."""
    if state.phase is not DevicePhase.TRAINING or state.flow is None or state.flow.phase != "training":
        return range(0)
    return range(state.cursor, state.flow.limit)


def _on_link_up(state: DeviceState, _event: LinkUp) -> tuple[DeviceState, list[Action]]:
    return replace(state, phase=DevicePhase.SEEKING, flow=None), []


def _on_link_down(state: DeviceState, _event: LinkDown) -> tuple[DeviceState, list[Action]]:
    return replace(state, phase=DevicePhase.OFFLINE, flow=None), []


def _on_bridge(state: DeviceState, event: BridgeSeen) -> tuple[DeviceState, list[Action]]:
    if state.phase is DevicePhase.OFFLINE:
        return state, []
    is_own = event.run == state.run
    # PROTOCOL.md 3: "A device ignores the words of its run that are of a lower term than its own."
    if is_own and 0 < event.term < state.term:
        return state, []
    if not event.is_online:
        return _on_word_offline(state, event) if is_own or not state.plan_version else (state, [])
    if not is_own and state.plan_version:
        return _on_other_run(replace(state, other_run=event.run), event.now)
    if not is_own and state.run is not None:
        # Welcomed to a run that never began, or to none: terms and incarnations are each run's own.
        state = replace(state, term=0, incarnation=0, flow=None)
    return _hello(replace(state, run=event.run, is_served=True, other_run=""), event.now)


def _on_word_offline(state: DeviceState, event: BridgeSeen) -> tuple[DeviceState, list[Action]]:
    # PROTOCOL.md 3: "A device with an assignment stops when the word of its run says how the run ended."
    if event.ended and state.plan_version:
        stop = Stop(DevicePhase(event.ended), f"The run has {event.ended}.")
        return replace(state, phase=stop.phase), [stop]
    # The coordinator is gone for now: what it said of flow no longer holds, what it assigned does.
    state = replace(state, phase=DevicePhase.SEEKING, flow=None, is_served=False)
    return _on_other_run(state, event.now) if state.other_run else (state, [])


def _on_other_run(state: DeviceState, now: float) -> tuple[DeviceState, list[Action]]:
    # PROTOCOL.md 11: "A device with an assignment stops if its own coordinator is offline or silent for 30 s."
    if state.is_served and now - state.heard_at < LEASE_S:
        return state, []
    stop = Stop(
        DevicePhase.FINISHED, f"The coordinator now serves run {state.other_run!r}; this one is over."
    )
    return replace(state, phase=stop.phase), [stop]


def _hello(state: DeviceState, now: float) -> tuple[DeviceState, list[Action]]:
    if state.run is None:
        return state, []
    return replace(state, phase=DevicePhase.JOINING, asked_at=now), [SayHello(state.run)]


def _on_got(state: DeviceState, event: Got) -> tuple[DeviceState, list[Action]]:
    if state.phase in (DevicePhase.OFFLINE, DevicePhase.SEEKING):
        return state, []
    match event.message:
        case Welcome() as welcome:
            after, actions = _on_welcome(state, welcome)
        case Assignment() as assignment:
            after, actions = _on_assignment(state, assignment)
        case State() as flow:
            after, actions = _on_flow(state, flow, event.now)
        case (Refusal() | Fenced()) as dismissal:
            after, actions = _on_dismissal(state, dismissal)
    return (state if after is state else replace(after, heard_at=event.now, other_run="")), actions


def _on_dismissal(state: DeviceState, dismissal: Refusal | Fenced) -> tuple[DeviceState, list[Action]]:
    if dismissal.boot_nonce != state.boot_nonce:
        return state, []
    if isinstance(dismissal, Refusal):
        stop = Stop(DevicePhase.REFUSED, dismissal.message, dismissal.code)
    else:
        stop = Stop(DevicePhase.FENCED, f"Incarnation {dismissal.incarnation} speaks for this device now.")
    return replace(state, phase=stop.phase), [stop]


def _on_welcome(state: DeviceState, welcome: Welcome) -> tuple[DeviceState, list[Action]]:
    # PROTOCOL.md 7: "A device MUST ignore a welcome that names another boot nonce, and any lower term."
    if welcome.boot_nonce != state.boot_nonce or welcome.term < state.term:
        return state, []
    # PROTOCOL.md 7: "A device MUST ignore a welcome while it has no hello open."
    if state.phase is not DevicePhase.JOINING:
        return state, []
    same_orders = (welcome.term, welcome.incarnation) == (state.term, state.incarnation)
    flow = state.flow if same_orders else None
    state = replace(state, term=welcome.term, incarnation=welcome.incarnation, flow=flow)
    if welcome.measure is not None:
        return replace(state, phase=DevicePhase.MEASURING), [Measure(welcome.measure)]
    return replace(state, phase=DevicePhase.JOINED), []


def _on_assignment(state: DeviceState, assignment: Assignment) -> tuple[DeviceState, list[Action]]:
    if assignment.term != state.term or assignment.plan_version < state.plan_version or not state.incarnation:
        return state, []
    state = replace(state, phase=DevicePhase.TRAINING, plan_version=assignment.plan_version)
    return state, [Begin(assignment)]


def _on_flow(state: DeviceState, flow: State, now: float) -> tuple[DeviceState, list[Action]]:
    # PROTOCOL.md 8: "A device MUST obey the state message with the highest (term, n) and ignore all others."
    old = state.flow
    outdated = old is not None and (flow.term, flow.n) <= (old.term, old.n)
    if outdated or flow.incarnation != state.incarnation or flow.term < state.term:
        return state, []
    state = replace(state, flow=flow, term=flow.term)
    if flow.phase in ("finished", "failed"):
        stop = Stop(DevicePhase(flow.phase), flow.detail)
        return replace(state, phase=stop.phase), [stop]
    if old is None or old.round != flow.round:
        state = replace(state, cursor=flow.next, named_since=now)
    elif old.next != flow.next:
        state = replace(state, cursor=max(state.cursor, flow.next), named_since=now)
    else:
        state = replace(state, named_again=now)
    # PROTOCOL.md 8: "A device that is told of a plan for which it holds no assignment MUST say hello."
    lacks_job = state.phase is DevicePhase.JOINED and flow.phase == "training"
    outdated_job = state.phase is DevicePhase.TRAINING and flow.plan_version > state.plan_version
    return _hello(state, now) if lacks_job or outdated_job else (state, [])


def _resend_if_stuck(state: DeviceState, tick: Tick) -> DeviceState:
    """Rule 8: sent, and yet named as next for so long, by the newest message that has come: it was lost."""
    flow = state.flow
    if flow is None or state.cursor <= flow.next:
        return state
    if tick.is_sending:  # it can't have been taken: nobody has it yet
        return replace(state, named_since=tick.now)
    if state.named_again - state.named_since < RESEND_AFTER_S:
        return state
    return replace(state, cursor=flow.next, named_since=tick.now)


def _on_measured(state: DeviceState, event: Measured) -> tuple[DeviceState, list[Action]]:
    if state.phase is not DevicePhase.MEASURING:
        return state, []
    return _hello(state, event.now)


def _on_tick(state: DeviceState, event: Tick) -> tuple[DeviceState, list[Action]]:
    state = _resend_if_stuck(state, event)
    if state.other_run:
        state, actions = _on_other_run(state, event.now)
        if actions:
            return state, actions
    # PROTOCOL.md 3: "A device that has waited for a word for 30 s SHOULD subscribe anew"
    waits = state.phase in (DevicePhase.SEEKING, DevicePhase.JOINING)
    if waits and event.now - max(state.looked_at, state.heard_at) >= LEASE_S:
        return replace(state, looked_at=event.now), [Look()]
    unanswered = state.phase is DevicePhase.JOINING and event.now - state.asked_at >= REHELLO_AFTER_S
    silent = state.phase in (DevicePhase.JOINED, DevicePhase.TRAINING)
    if unanswered or (silent and event.now - state.heard_at >= LEASE_S):
        return _hello(state, event.now)
    return state, []


def _on_sent(state: DeviceState, event: Sent) -> tuple[DeviceState, list[Action]]:
    if state.cursor != event.seq:
        return state, []
    first = state.flow is not None and event.seq == state.flow.next
    return replace(state, cursor=event.seq + 1, named_since=event.now if first else state.named_since), []


_TABLE: dict[type[Event], Handler] = {
    LinkUp: _on_link_up,  # type: ignore[dict-item]
    LinkDown: _on_link_down,  # type: ignore[dict-item]
    BridgeSeen: _on_bridge,  # type: ignore[dict-item]
    Got: _on_got,  # type: ignore[dict-item]
    Measured: _on_measured,  # type: ignore[dict-item]
    Tick: _on_tick,  # type: ignore[dict-item]
    Sent: _on_sent,  # type: ignore[dict-item]
}
