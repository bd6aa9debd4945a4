"""What a run's settings wish of its plan, a plan file among them."""

from pathlib import Path

import pytest

from coordinator.wishes import wishes_of
from tests.unit.boards import FAST_SERVER, board, fleet
from toolkit.config import Run
from toolkit.errors import PlanError, ProfileError
from toolkit.plan.choose import choose_cuts
from toolkit.plan.schema import write_plan


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    made = choose_cuts(
        fleet(board("a"), board("b")),
        server=FAST_SERVER,
        objective="bytes",
        memory_share=0.9,
        slack=0.2,
        pins={"a": "layer2"},
    )
    write_plan(tmp_path / "plan.toml", made)
    return tmp_path / "plan.toml"


def run_with(**settings) -> Run:
    return Run(**{"model": "net", "exit_head": "pooled", **settings})


def test_settings_alone_wish_what_they_say():
    wishes = wishes_of(
        run_with(
            objective="device-time", slack=0.1, min_exit_accuracy=0.9, model_profile="resnet_small-digits"
        ),
        ["a"],
    )
    assert (wishes.objective, wishes.slack, wishes.min_exit_accuracy, wishes.pins) == (
        "device-time",
        0.1,
        0.9,
        {},
    )
    assert wishes.exits is not None
    assert wishes.exits.exits[0].cut == "stem"


def test_a_plan_pins_the_cuts_of_those_who_joined_and_guides_the_others(plan_file: Path):
    wishes = wishes_of(run_with(plan=str(plan_file)), ["a", "c"])
    assert wishes.pins == {"a": "layer2"}
    assert (wishes.objective, wishes.memory_share, wishes.slack) == ("bytes", 0.9, 0.2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "mlp"}, "model is 'net', the run's is 'mlp'"),
        ({"batch_size": 64}, "batch_size is 32, the run's is 64"),
        ({"exit_head": "auto"}, "exit_head is 'pooled', the run's is 'auto'"),
    ],
)
def test_a_plan_for_another_job_is_refused(plan_file: Path, settings: dict[str, object], words: str):
    with pytest.raises(PlanError, match=words):
        wishes_of(run_with(plan=str(plan_file), **settings), ["a"])


def test_files_that_are_not_there_are_named(tmp_path: Path):
    with pytest.raises(PlanError, match="no plan at"):
        wishes_of(run_with(plan=str(tmp_path / "none.toml")), [])
    with pytest.raises(ProfileError, match="Did you mean 'resnet_small-digits'"):
        wishes_of(run_with(model_profile="resnet_small-digit"), [])
