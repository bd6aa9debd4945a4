"""The roll: a device that measured itself in vain is told so, and not asked for ever."""

import msgspec
import pytest

from coordinator.fleet.planning import ProfilePlanner
from coordinator.fleet.roll import Roll
from coordinator.store.run_folder import RunFolder
from tests.unit.test_plan_wishes import SMALL, hello
from toolkit.config import Run
from toolkit.profile.schema import profile_text
from toolkit.wire.messages import Refusal, Welcome


@pytest.fixture
def sent():
    return []


@pytest.fixture
def roll(tmp_path, sent):
    folder = RunFolder(tmp_path / "run", "r1")
    yield Roll(
        folder,
        term=1,
        settings=Run(),
        planner=ProfilePlanner(),
        record=lambda _: None,
        send=lambda _, message: sent.append(message),
        observe=lambda _: None,
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
