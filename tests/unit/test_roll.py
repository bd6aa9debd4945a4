"""The roll: a device that measured itself in vain is told so, and not asked for ever; one that leaves is told of."""

import msgspec
import pytest

from coordinator.fleet.events import Notice
from coordinator.fleet.planning import ProfilePlanner
from coordinator.fleet.roll import Roll
from coordinator.store.run_folder import RunFolder
from tests.protocol.samples import JOB
from tests.unit.test_plan_wishes import SMALL, hello
from toolkit.config import Run
from toolkit.profile.schema import profile_text
from toolkit.wire import seats
from toolkit.wire.messages import Assignment, Refusal, Welcome


@pytest.fixture
def sent():
    return []


@pytest.fixture
def told():
    return []


@pytest.fixture
def roll(tmp_path, sent, told):
    folder = RunFolder(tmp_path / "run", "r1")
    yield Roll(
        folder,
        term=1,
        settings=Run(),
        planner=ProfilePlanner(),
        record=lambda _: None,
        send=lambda _, message: sent.append(message),
        observe=told.append,
        clock=lambda: 0.0,
    )
    folder.close()


def other_model(**changes):
    """A profile of a model that is built otherwise than here."""
    first, *others = SMALL.cuts
    row = msgspec.structs.replace(first, n_parameters=first.n_parameters + 1, **changes)
    return msgspec.structs.replace(SMALL, cuts=(row, *others))


def test_a_profile_that_is_measured_as_asked_is_taken(roll, sent):
    bare = msgspec.structs.replace(hello("a", SMALL), profile="")
    roll.hello("a", bare, None)
    roll.hello("a", msgspec.structs.replace(bare, profile=profile_text(SMALL)), None)
    asked, taken = sent
    assert isinstance(asked, Welcome)
    assert asked.measure is not None
    assert taken.measure is None
    assert list(roll.ready()) == ["a"]


def test_a_board_that_builds_the_model_otherwise_is_refused_after_it_measured(roll, sent):
    old = hello("a", other_model())
    roll.hello("a", old, None)
    roll.hello("a", old, None)  # the welcome was lost
    assert [message.measure is not None for message in sent] == [True, True]
    measured = msgspec.structs.replace(old, profile=profile_text(other_model(step_ms_mean=5.0)))
    assert roll.hello("a", measured, None) == (False, False)
    refusal = sent[-1]
    assert isinstance(refusal, Refusal)
    assert refusal.code == "model"
    assert "Install the same on both" in refusal.message


@pytest.mark.parametrize(
    ("why", "said"),
    [("", "Device a is offline."), ("Its disk is full.", "Device a is offline: Its disk is full.")],
)
def test_one_that_leaves_is_told_of_with_what_it_says_itself(roll, told, why, said):
    greeting = hello("a", SMALL)
    roll.hello("a", greeting, None)
    roll.advance("a", seats.Assigned(Assignment(term=1, plan_version=1, job=JOB)))
    roll.advance("a", seats.Gone(greeting.boot_nonce, on_purpose=True, why=why))
    roll.advance("a", seats.Gone(greeting.boot_nonce))
    assert told == [Notice(said)]
