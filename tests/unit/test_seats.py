from dataclasses import replace

import msgspec
import pytest

from tests.protocol.diagrams import seat_events
from tests.protocol.samples import ASSIGNMENT, HELLO, MEASURE, NONCE, OTHER_NONCE
from toolkit.wire.messages import Fenced, Refusal, Welcome
from toolkit.wire.seats import (
    MAX_SUPERSEDED,
    Assigned,
    Gone,
    Heard,
    HelloHeard,
    Judgement,
    Reply,
    Seat,
    SeatEvent,
    SeatPhase,
    step,
)

EMPTY = Seat("dev1", "run1", 3)
FINE = Judgement()


def hello(
    nonce: bytes = NONCE, incarnation: int = 1, judgement: Judgement = FINE, now: float = 0.0
) -> HelloHeard:
    return HelloHeard(msgspec.structs.replace(HELLO, boot_nonce=nonce), judgement, incarnation, now)


def run(seat: Seat, *events: SeatEvent) -> tuple[Seat, list[Reply]]:
    told: list[Reply] = []
    for event in events:
        seat, replies = step(seat, event)
        told += replies
    return seat, told


READY, _ = run(EMPTY, hello())
MEASURING, _ = run(EMPTY, hello(judgement=Judgement(measure=MEASURE)))
ACTIVE, _ = run(READY, Assigned(ASSIGNMENT))
SEATS = {seat.phase: seat for seat in (EMPTY, READY, MEASURING, ACTIVE)}


def test_a_hello_is_answered_with_a_welcome():
    seat, told = run(EMPTY, hello(incarnation=7, now=5.0))
    assert told == [Welcome(boot_nonce=NONCE, run="run1", term=3, incarnation=7, protocol=1)]
    assert (seat.phase, seat.connected, seat.last_heard, seat.incarnation) == (SeatPhase.READY, True, 5.0, 7)


def test_a_device_without_a_fitting_profile_is_asked_to_measure():
    seat, (welcome,) = run(EMPTY, hello(judgement=Judgement(measure=MEASURE)))
    assert seat.phase is SeatPhase.MEASURING
    assert isinstance(welcome, Welcome)
    assert welcome.measure == MEASURE
    assert run(seat, hello())[0].phase is SeatPhase.READY


def test_a_device_with_a_job_gets_it_again_at_every_hello():
    _, told = run(ACTIVE, hello(judgement=Judgement(measure=MEASURE)))
    assert [type(reply) for reply in told] == [Welcome, type(ASSIGNMENT)]
    assert isinstance(told[0], Welcome)
    assert told[0].measure is None
    assert told[1] == ASSIGNMENT


def test_the_same_process_keeps_its_incarnation():
    seat, (first, second) = run(EMPTY, hello(incarnation=1), hello(incarnation=2))
    assert isinstance(first, Welcome)
    assert isinstance(second, Welcome)
    assert first.incarnation == second.incarnation == seat.incarnation == 1


def test_the_newest_process_wins_and_the_other_is_fenced_for_good():
    seat, told = run(ACTIVE, hello(OTHER_NONCE, 2))
    assert (seat.boot_nonce, seat.incarnation, seat.superseded) == (OTHER_NONCE, 2, (NONCE,))
    assert isinstance(told[0], Welcome)
    for judgement in (FINE, Judgement(measure=MEASURE), Judgement(refusal=("late", "No."))):
        after, told = run(seat, hello(NONCE, 3, judgement))
        assert told == [Fenced(boot_nonce=NONCE, incarnation=2)]
        assert after == seat


@pytest.mark.parametrize("seat", SEATS.values(), ids=list(SEATS))
def test_a_hello_that_cannot_be_accepted_changes_nothing(seat):
    bad = hello(OTHER_NONCE, 9, Judgement(refusal=("shape", "Not that.")))
    after, told = run(seat, bad)
    assert after == seat
    assert told == [Refusal(boot_nonce=OTHER_NONCE, code="shape", message="Not that.")]


def test_superseded_processes_are_remembered_within_bounds():
    seat = EMPTY
    nonces = [number.to_bytes(16) for number in range(MAX_SUPERSEDED + 10)]
    for incarnation, nonce in enumerate(nonces, start=1):
        seat, _ = run(seat, hello(nonce, incarnation))
    assert len(seat.superseded) == MAX_SUPERSEDED
    assert seat.superseded == tuple(nonces[-MAX_SUPERSEDED - 1 : -1])
    assert isinstance(run(seat, hello(nonces[-2], 99))[1][0], Fenced)


def test_the_last_will_of_an_older_process_says_nothing_of_the_newer():
    seat, _ = run(READY, hello(OTHER_NONCE, 2))
    assert run(seat, Gone(NONCE)) == (seat, [])
    assert run(seat, Gone(NONCE, on_purpose=True)) == (seat, [])
    assert not run(seat, Gone(OTHER_NONCE))[0].connected


def test_a_goodbye_is_told_from_a_loss():
    lost, _ = run(READY, Gone(NONCE))
    left, _ = run(READY, Gone(NONCE, on_purpose=True))
    assert (lost.left, left.left) == (False, True)
    assert run(left, Gone(NONCE))[0].left  # its word "offline" follows its bye
    back, _ = run(left, hello(now=9.0))
    assert (back.left, back.connected, back.last_heard) == (False, True, 9.0)


def test_any_message_is_a_sign_of_life():
    seat, told = run(READY, Gone(NONCE), Heard(4.0))
    assert (seat.connected, seat.last_heard, told) == (True, 4.0, [])


VERDICTS = {
    "any other message": {},
    "last will": {},
    "bye": {},
    "a plan is committed": dict.fromkeys(SeatPhase, SeatPhase.ACTIVE),
    "hello": dict.fromkeys((SeatPhase.ABSENT, SeatPhase.MEASURING), SeatPhase.READY),
    "hello without a fitting profile": dict.fromkeys(
        (SeatPhase.ABSENT, SeatPhase.READY), SeatPhase.MEASURING
    ),
    "hello that can't be accepted": {},
    "hello of a superseded process": {},
}


def test_the_verdicts_cover_every_event():
    seen = {label for label, _ in seat_events(replace(READY, superseded=(OTHER_NONCE,)))}
    assert seen == set(VERDICTS)
    assert set(SEATS) == set(SeatPhase)


@pytest.mark.parametrize("phase", list(SeatPhase))
@pytest.mark.parametrize("superseded", [(), (OTHER_NONCE,)], ids=["first", "second"])
def test_every_phase_and_event_has_a_verdict(phase, superseded):
    seat = replace(SEATS[phase], superseded=superseded)
    for label, event in seat_events(seat):
        assert run(seat, event)[0].phase == VERDICTS[label].get(phase, phase), label
