"""The coordinator's side of the protocol for one device: pure ``step(seat, event) -> (seat, messages)``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from toolkit.wire.limits import PROTOCOL_VERSION
from toolkit.wire.messages import Assignment, Fenced, Hello, MeasureRequest, Refusal, Welcome

MAX_SUPERSEDED = 64
"""Boot nonces of replaced processes that a seat remembers; the oldest is forgotten first."""


class SeatPhase(StrEnum):
    """Where a device stands, seen from the coordinator."""

    ABSENT = "absent"
    MEASURING = "measuring"
    READY = "ready"
    ACTIVE = "active"


@dataclass(frozen=True, slots=True)
class Judgement:
    """The registry's verdict on a hello: refused with (code, message), or asked to measure, or neither."""

    refusal: tuple[str, str] | None = None
    measure: MeasureRequest | None = None


@dataclass(frozen=True, slots=True)
class HelloHeard:
    """A hello on this device's topic; ``incarnation`` is durable and issued to it if its process is new."""

    hello: Hello
    judgement: Judgement
    incarnation: int
    now: float


@dataclass(frozen=True, slots=True)
class Heard:
    """Any other sign of life."""

    now: float


@dataclass(frozen=True, slots=True)
class Gone:
    """The last will of one of the device's processes, or its own goodbye (``on_purpose``), and ``why`` if it failed."""

    boot_nonce: bytes
    on_purpose: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Assigned:
    """A committed plan gives this device a job."""

    assignment: Assignment


SeatEvent = HelloHeard | Heard | Gone | Assigned
Reply = Welcome | Refusal | Fenced | Assignment


@dataclass(frozen=True, slots=True)
class Seat:
    """All that the coordinator's session remembers of one device.

    Attributes:
        connected: as far as is known.
        left: it said goodbye on purpose.
        last_heard: on the coordinator's monotonic clock, seconds.
        n: of the last state message sent.
    """

    device: str
    run: str
    term: int
    phase: SeatPhase = SeatPhase.ABSENT
    boot_nonce: bytes = b""
    incarnation: int = 0
    superseded: tuple[bytes, ...] = ()
    hello: Hello | None = None
    assignment: Assignment | None = None
    connected: bool = False
    left: bool = False
    last_heard: float = 0.0
    n: int = 0


def step(seat: Seat, event: SeatEvent) -> tuple[Seat, list[Reply]]:
    """Apply one event.

    Returns: the seat after, and the messages to send to the device, in order.
    """
    match event:
        case HelloHeard():
            return _on_hello(seat, event)
        case Heard():
            return replace(seat, last_heard=event.now, connected=True), []
        case Gone():
            if event.boot_nonce != seat.boot_nonce:
                return seat, []
            return replace(seat, connected=False, left=seat.left or event.on_purpose), []
        case Assigned():
            seat = replace(seat, phase=SeatPhase.ACTIVE, assignment=event.assignment)
            return seat, [event.assignment]


def _on_hello(seat: Seat, event: HelloHeard) -> tuple[Seat, list[Reply]]:
    nonce = event.hello.boot_nonce
    # PROTOCOL.md 7: "The newest process wins; a superseded one MUST be answered fenced."
    if nonce in seat.superseded:
        return seat, [Fenced(boot_nonce=nonce, incarnation=seat.incarnation)]
    if event.judgement.refusal is not None:
        code, text = event.judgement.refusal
        return seat, [Refusal(boot_nonce=nonce, code=code, message=text)]
    if nonce != seat.boot_nonce:
        old = (seat.boot_nonce,) if seat.boot_nonce else ()
        superseded = (*seat.superseded, *old)[-MAX_SUPERSEDED:]
        seat = replace(seat, boot_nonce=nonce, incarnation=event.incarnation, superseded=superseded)
    measure = event.judgement.measure
    idle = SeatPhase.MEASURING if measure else SeatPhase.READY
    seat = replace(
        seat,
        phase=SeatPhase.ACTIVE if seat.assignment else idle,
        hello=event.hello,
        connected=True,
        left=False,
        last_heard=event.now,
    )
    welcome = Welcome(
        boot_nonce=nonce,
        run=seat.run,
        term=seat.term,
        incarnation=seat.incarnation,
        protocol=PROTOCOL_VERSION,
        measure=None if seat.assignment else measure,
    )
    return seat, [welcome, seat.assignment] if seat.assignment else [welcome]
