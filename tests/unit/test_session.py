from dataclasses import replace

import msgspec
import pytest

from tests.protocol.diagrams import device_events
from tests.protocol.samples import ASSIGNMENT, FENCED, MEASURE, NONCE, OTHER_NONCE, REFUSAL, STATE, WELCOME
from toolkit.wire.messages import State
from toolkit.wire.session import (
    LEASE_S,
    REHELLO_AFTER_S,
    RESEND_AFTER_S,
    TERMINAL,
    Action,
    Begin,
    BridgeSeen,
    DevicePhase,
    DeviceState,
    Event,
    Got,
    LinkDown,
    LinkUp,
    Look,
    Measure,
    Measured,
    SayHello,
    Sent,
    Stop,
    Tick,
    may_send,
    step,
)

P = DevicePhase
BASE = DeviceState(NONCE)
JOINING = replace(BASE, phase=P.JOINING, run="run1")
WELCOMED = replace(JOINING, term=1, incarnation=1)
TRAINING = replace(WELCOMED, phase=P.TRAINING, plan_version=1, flow=STATE, is_served=True)
STATES = {
    P.OFFLINE: replace(TRAINING, phase=P.OFFLINE, flow=None),
    P.SEEKING: replace(TRAINING, phase=P.SEEKING, flow=None),
    P.JOINING: JOINING,
    P.MEASURING: replace(WELCOMED, phase=P.MEASURING),
    P.JOINED: replace(WELCOMED, phase=P.JOINED),
    P.TRAINING: TRAINING,
    **{phase: replace(TRAINING, phase=phase) for phase in TERMINAL},
}


def run(state: DeviceState, *events: Event) -> tuple[DeviceState, list[Action]]:
    done: list[Action] = []
    for event in events:
        state, actions = step(state, event)
        done += actions
    return state, done


def flow(now: float = 0.0, **changes: object) -> Got:
    return Got(msgspec.structs.replace(STATE, **changes), now)


def welcome(**changes: object) -> Got:
    return Got(msgspec.structs.replace(WELCOME, **changes), 0.0)


EVENTS = list(device_events(BASE))
PASS = {"offline", "seeking", "joining", "measuring", "joined", "training"}
VERDICTS: dict[str, dict[str, str]] = {
    # event: phase -> phase after; a phase not named here does not change
    "connected": dict.fromkeys(PASS, "seeking"),
    "connection lost": dict.fromkeys(PASS, "offline"),
    "word online": dict.fromkeys(PASS - {"offline"}, "joining"),
    "word offline": dict.fromkeys(PASS - {"offline"}, "seeking"),
    "word that the run finished": {
        **dict.fromkeys(PASS - {"offline"}, "seeking"),
        "seeking": "finished",
        "training": "finished",
    },
    "word that the run failed": {
        **dict.fromkeys(PASS - {"offline"}, "seeking"),
        "seeking": "failed",
        "training": "failed",
    },
    "word of another run": {"measuring": "joining", "joined": "joining"},
    "word of another run after 30 s of silence": {
        "seeking": "finished",
        "training": "finished",
        "measuring": "joining",
        "joined": "joining",
    },
    "welcome": {"joining": "joined"},
    "welcome that asks to measure": {"joining": "measuring"},
    "measured": {"measuring": "joining"},
    "assignment": {"measuring": "training", "joined": "training"},
    "state": {"joined": "joining"},
    "state of a newer plan": {"joined": "joining", "training": "joining"},
    "state finished": {"measuring": "finished", "joined": "finished", "training": "finished"},
    "state failed": {"measuring": "failed", "joined": "failed", "training": "failed"},
    "refusal": dict.fromkeys(("joining", "measuring", "joined", "training"), "refused"),
    "fenced": dict.fromkeys(("joining", "measuring", "joined", "training"), "fenced"),
    "5 s without an answer": {},
    "sent": {},
    "30 s of silence": {"joined": "joining", "training": "joining"},
}


def test_the_verdicts_cover_every_event():
    assert sorted(VERDICTS) == sorted(EVENTS)
    assert set(STATES) == set(DevicePhase)


@pytest.mark.parametrize("label", EVENTS)
@pytest.mark.parametrize("phase", list(DevicePhase))
def test_every_phase_and_event_has_a_verdict(phase, label):
    state = STATES[phase]
    event = device_events(state).get(label)
    if event is None:
        assert (phase, label) == (P.JOINING, "30 s of silence")
        return
    after, _ = step(state, event)
    assert after.phase == VERDICTS[label].get(phase.value, phase.value)


@pytest.mark.parametrize("phase", sorted(TERMINAL))
def test_a_terminal_phase_absorbs_everything(phase):
    state = STATES[phase]
    assert all(step(state, event) == (state, []) for event in device_events(state).values())
    assert not may_send(state)


def test_a_device_joins_and_begins():
    state, done = run(
        BASE, LinkUp(), BridgeSeen("run1", 0.0), welcome(), Got(ASSIGNMENT, 0.0), flow(next=2, limit=5)
    )
    assert done == [SayHello("run1"), Begin(ASSIGNMENT)]
    assert (state.term, state.incarnation, state.plan_version) == (1, 1, 1)
    assert may_send(state) == range(2, 5)


def test_a_device_measures_when_it_is_asked_and_says_hello_again():
    state, done = run(JOINING, welcome(measure=MEASURE), Measured(3.0))
    assert done == [Measure(MEASURE), SayHello("run1")]
    assert (state.phase, state.asked_at) == (P.JOINING, 3.0)


# Welcomes, refusals, fencing


def test_a_welcome_to_another_process_or_of_an_older_term_is_ignored():
    assert run(JOINING, welcome(boot_nonce=OTHER_NONCE)) == (JOINING, [])
    newer = replace(JOINING, term=2)
    assert run(newer, welcome(term=1)) == (newer, [])


def test_a_late_double_of_a_welcome_does_not_take_the_job_away():
    assert run(TRAINING, welcome()) == (TRAINING, [])


@pytest.mark.parametrize("dismissal", [REFUSAL, FENCED])
def test_a_dismissal_counts_for_the_process_it_names_only(dismissal):
    other = msgspec.structs.replace(dismissal, boot_nonce=OTHER_NONCE)
    assert run(TRAINING, Got(other, 0.0)) == (TRAINING, [])
    state, (stop,) = run(TRAINING, Got(dismissal, 0.0))
    assert isinstance(stop, Stop)
    assert state.phase is stop.phase is (P.FENCED if dismissal is FENCED else P.REFUSED)
    assert stop.code == ("" if dismissal is FENCED else "late")


def test_an_assignment_of_another_term_or_an_older_plan_is_ignored():
    for wrong in ({"term": 2}, {"term": 1, "plan_version": 1}):
        state = replace(TRAINING, plan_version=2)
        assert run(state, Got(msgspec.structs.replace(ASSIGNMENT, **wrong), 0.0)) == (state, [])
    assert run(JOINING, Got(ASSIGNMENT, 0.0)) == (JOINING, [])


def test_a_new_term_forgets_credit_and_keeps_the_plan():
    state, _ = run(TRAINING, BridgeSeen("run1", 0.0), welcome(term=2, incarnation=2))
    assert (state.term, state.incarnation, state.flow, state.plan_version) == (2, 2, None, 1)


# State messages


def test_the_highest_term_and_n_is_obeyed():
    state, _ = run(TRAINING, flow(n=5, next=3, limit=9))
    for stale in ({"n": 5, "limit": 99}, {"n": 4, "limit": 99}):
        assert run(state, flow(**stale)) == (state, [])
    newer, _ = run(state, flow(n=6, next=3, limit=4))
    assert may_send(newer) == range(3, 4)
    higher, _ = run(state, flow(term=2, n=1, next=3, limit=8))
    assert (higher.term, may_send(higher)) == (2, range(3, 8))
    assert run(higher, flow(term=1, n=99, limit=99)) == (higher, [])


def test_a_state_for_another_incarnation_is_ignored():
    for wrong in (2, 7):
        assert run(TRAINING, flow(n=9, incarnation=wrong, limit=99)) == (TRAINING, [])


@pytest.mark.parametrize("phase", ["finished", "failed"])
def test_the_end_of_the_run_ends_the_session(phase):
    state, done = run(TRAINING, flow(n=2, phase=phase, detail="why"))
    assert done == [Stop(DevicePhase(phase), "why")]
    assert state.phase == phase


def test_nothing_is_sent_while_the_run_waits():
    assert not may_send(run(TRAINING, flow(n=2, phase="waiting"))[0])


def test_credit_is_absolute():
    state, _ = run(TRAINING, flow(n=2, next=1, limit=4))
    state, _ = run(state, Sent(1, 0.0), Sent(2, 0.0))
    assert may_send(state) == range(3, 4)
    state, _ = run(state, flow(n=3, next=2, limit=5))
    assert may_send(state) == range(3, 5)  # told again, not added up
    state, _ = run(state, flow(n=4, next=4, limit=6))
    assert may_send(state) == range(4, 6)  # the coordinator had 3 from an earlier rendering
    state, _ = run(state, flow(n=5, next=4, limit=4))
    assert not may_send(state)


def test_only_the_seq_at_the_cursor_counts_as_sent():
    state, _ = run(TRAINING, Sent(2, 0.0))
    assert state == TRAINING


def test_a_new_round_begins_where_the_coordinator_says():
    state, _ = run(TRAINING, Sent(1, 0.0), Sent(2, 0.0), flow(n=2, round=2, next=1, limit=3))
    assert may_send(state) == range(1, 3)


def test_credit_ends_with_the_connection():
    for event in (LinkDown(), LinkUp(), BridgeSeen("run1", 0.0, is_online=False)):
        state, _ = run(TRAINING, event)
        assert state.flow is None
        assert not may_send(state)
        assert (state.run, state.term, state.incarnation, state.plan_version) == ("run1", 1, 1, 1)


def test_after_a_reconnect_a_device_goes_on_at_next():
    state, _ = run(TRAINING, flow(n=2, limit=9), *(Sent(seq, 0.0) for seq in range(1, 6)))
    state, done = run(
        state,
        LinkDown(),
        LinkUp(),
        BridgeSeen("run1", 1.0),
        welcome(),
        Got(ASSIGNMENT, 1.0),
        flow(n=3, next=3, limit=9),
    )
    assert done == [SayHello("run1"), Begin(ASSIGNMENT)]
    assert may_send(state) == range(3, 9)


# Sending again


def sent_two(at: float) -> DeviceState:
    state, _ = run(TRAINING, flow(now=0.0, n=2, next=1, limit=4), Sent(1, at), Sent(2, at))
    return state


def told(state: DeviceState, now: float, **changes: int) -> DeviceState:
    """One message of the coordinator, taken at once."""
    return run(state, flow(now=now, limit=4, **changes), Tick(now))[0]


def test_a_batch_is_sent_again_once_it_was_named_long_enough_after_it_was_sent():
    early = told(sent_two(1.0), 1.0 + RESEND_AFTER_S - 0.01, n=3)
    assert may_send(early) == range(3, 4)
    late = told(early, 1.0 + RESEND_AFTER_S, n=4)
    assert may_send(late) == range(1, 4)


def test_sending_again_starts_the_wait_anew():
    state, _ = run(told(sent_two(0.0), RESEND_AFTER_S, n=3), Sent(1, 7.0), Sent(2, 7.0))
    assert may_send(told(state, 7.0 + RESEND_AFTER_S - 0.01, n=4)) == range(3, 4)
    assert may_send(told(state, 7.0 + RESEND_AFTER_S, n=4)) == range(1, 4)


def test_time_alone_sends_nothing_again():
    state, done = run(sent_two(0.0), Tick(RESEND_AFTER_S * 2))
    assert (may_send(state), done) == (range(3, 4), [])


def test_progress_starts_the_wait_anew():
    state = told(sent_two(0.0), 4.0, n=3, next=2)
    assert may_send(told(state, 4.0 + RESEND_AFTER_S - 0.01, n=4, next=2)) == range(3, 4)


def test_what_has_not_left_the_device_is_not_lost():
    """A batch that takes half a minute to travel is sent once; the wait begins when it has gone."""
    state = sent_two(0.0)
    for second in range(5, 31, 5):
        state, _ = run(state, flow(now=second, n=second, limit=4), Tick(second, is_sending=True))
        assert may_send(state) == range(3, 4)
    assert may_send(told(state, 30.0 + RESEND_AFTER_S - 0.01, n=31)) == range(3, 4)
    assert may_send(told(state, 30.0 + RESEND_AFTER_S, n=32)) == range(1, 4)


def test_of_messages_that_waited_for_a_long_step_the_newest_counts():
    """A device that computed for a minute finds twelve: the first names what was taken long ago."""
    burst = [flow(now=60.0, n=n, next=1 if n < 10 else 3, limit=4) for n in range(3, 15)]
    state, _ = run(sent_two(0.0), *burst, Tick(60.0))
    assert may_send(state) == range(3, 4)


def test_what_was_not_sent_is_not_stuck():
    state, _ = run(TRAINING, flow(n=2, limit=4), flow(now=60.0, n=3, limit=4))
    assert may_send(state) == range(1, 4)


# Hellos


def test_an_unanswered_hello_is_said_again():
    state, done = run(JOINING, Tick(REHELLO_AFTER_S - 0.01))
    assert done == []
    state, done = run(state, Tick(REHELLO_AFTER_S), Tick(REHELLO_AFTER_S + 0.01))
    assert done == [SayHello("run1")]


def test_a_silent_coordinator_is_asked():
    state, _ = run(TRAINING, flow(now=10.0, n=2))
    assert run(state, Tick(10.0 + LEASE_S - 0.01))[1] == []
    after, done = run(state, Tick(10.0 + LEASE_S))
    assert (after.phase, done) == (P.JOINING, [SayHello("run1")])


def test_what_is_ignored_is_no_sign_of_life():
    state, _ = run(TRAINING, flow(now=10.0, n=2))
    assert run(state, flow(now=20.0, n=1))[0].heard_at == 10.0


def test_a_lost_assignment_is_asked_for():
    joined = STATES[P.JOINED]
    state, done = run(joined, flow(next=4, limit=7))
    assert (state.phase, done) == (P.JOINING, [SayHello("run1")])
    again, done = run(state, flow(n=2, next=4, limit=7))
    assert done == []  # one hello is open already
    trained, _ = run(again, welcome(), Got(ASSIGNMENT, 0.0))
    assert may_send(trained) == range(4, 7)  # never from 1: credit begins at next


def test_a_lost_assignment_of_a_job_held_before_is_asked_for():
    """Reconnected, welcomed, and its assignment lost: it stood there for ever."""
    state, done = run(
        TRAINING, LinkUp(), BridgeSeen("run1", 0.0), welcome(), flow(n=2, plan_version=TRAINING.plan_version)
    )
    assert (state.phase, done) == (P.JOINING, [SayHello("run1")] * 2)


def test_another_run_takes_a_device_that_has_no_job():
    state, done = run(JOINING, BridgeSeen("run2", 0.0))
    assert (state.run, done) == ("run2", [SayHello("run2")])


def test_a_device_with_a_job_stays_with_its_coordinator_whatever_run_another_one_serves():
    state, done = run(TRAINING, BridgeSeen("run2", 1.0), flow(2.0, n=2), Tick(40.0))
    assert (state.phase, done) == (P.JOINING, [SayHello("run1")])
    state, done = run(TRAINING, BridgeSeen("run2", 1.0), BridgeSeen("run2", 2.0, is_online=False))
    assert (state.phase, done) == (P.TRAINING, [])


@pytest.mark.parametrize(
    "gone", [(Tick(31.0),), (BridgeSeen("run1", 2.0, is_online=False),)], ids=["silent", "offline"]
)
def test_a_device_whose_coordinator_is_gone_leaves_its_job_to_another_run(gone):
    state, (stop,) = run(TRAINING, BridgeSeen("run2", 1.0), *gone)
    assert state.phase is P.FINISHED
    assert isinstance(stop, Stop)
    assert "now serves run 'run2'" in stop.detail


def test_a_device_whose_word_was_lost_asks_for_it_again_and_not_too_often():
    state, done = run(STATES[P.SEEKING], Tick(29.0), Tick(30.0), Tick(31.0), Tick(60.0))
    assert (state.phase, done) == (P.SEEKING, [Look(), Look()])


def test_a_device_that_missed_the_end_reads_it_in_the_word():
    state, (stop,) = run(
        TRAINING, LinkDown(), LinkUp(), BridgeSeen("run1", 9.0, is_online=False, ended="failed")
    )
    assert (state.phase, stop) == (P.FAILED, Stop(P.FAILED, "The run has failed."))
    other, done = run(TRAINING, BridgeSeen("run2", 9.0, is_online=False, ended="finished"))
    assert (other, done) == (TRAINING, [])


def test_the_states_used_here_are_what_the_coordinator_would_send():
    assert isinstance(STATE, State)
    assert (STATE.term, STATE.incarnation) == (WELCOME.term, WELCOME.incarnation)


def test_a_device_whose_run_never_began_joins_the_next_one_with_its_own_low_term():
    welcomed = replace(JOINING, phase=P.JOINED, term=7, incarnation=3)
    state, actions = run(welcomed, BridgeSeen("run2", 5.0))
    assert actions == [SayHello("run2")]
    state, _ = run(state, Got(msgspec.structs.replace(WELCOME, run="run2", term=1, incarnation=1), 6.0))
    assert (state.phase, state.run, state.term, state.incarnation) == (P.JOINED, "run2", 1, 1)


def test_a_coordinator_that_was_replaced_ends_nothing_with_its_last_word():
    """It may speak after its successor; what it says of the run is of a lower term."""
    state = replace(TRAINING, term=2)
    for ended in ("", "failed", "finished"):
        late = BridgeSeen("run1", 5.0, is_online=False, ended=ended, term=1)
        assert step(state, late) == (state, [])
    own = BridgeSeen("run1", 5.0, is_online=False, ended="failed", term=2)
    assert step(state, own)[0].phase is P.FAILED
