"""What the coordinator says when devices leave their profiles: who, by how much, and what the plan would be now."""

from pathlib import Path

import msgspec
import pytest

from coordinator.fleet.advice import MOST_NAMED, Advisor
from tests.unit.boards import board, fleet
from toolkit.config import Run
from toolkit.plan.choose import choose_cuts
from toolkit.plan.cost import ServerInput
from toolkit.plan.schema import Plan, write_plan
from toolkit.profile.schema import Profile, write_profile
from toolkit.wire.messages import Pace

SERVER = ServerInput(step_ms={"layer1": 30.0, "layer2": 20.0, "layer3": 2.0})
"""For two boards of 10 ms a step at most, the deepest cut is best; for a slow one it is not."""
SETTINGS = Run(model="net", exit_head="pooled")


def planned(folder: Path, *boards: Profile, **wishes: object) -> Plan:
    """Plan as a coordinator does, and leave what it leaves in the run's folder."""
    made = choose_cuts(fleet(*boards), server=SERVER, **wishes)
    write_plan(folder / "plan.toml", made)
    (folder / "profiles").mkdir()
    for profile in boards:
        write_profile(folder / "profiles" / f"{profile.name}.toml", profile)
    return made


def two_boards() -> tuple[Profile, Profile]:
    return board("a", step_ms=(2.0, 4.0, 8.0)), board("b", step_ms=(2.0, 4.0, 8.0))


def at(advisor: Advisor, device: str, step_ms: float, *, upload_ms: float = 0.0) -> None:
    advisor.hear(
        device,
        Pace(
            device=device,
            round=1,
            n_steps=10_000,
            step_ms=step_ms,
            n_sent=1 if upload_ms else 0,
            sent_bytes=1 if upload_ms else 0,
            upload_ms=upload_ms,
        ),
    )


def test_a_board_at_the_pace_of_its_profile_is_no_news(tmp_path: Path):
    planned(tmp_path, *two_boards())
    advisor = Advisor(tmp_path, SETTINGS)
    at(advisor, "a", 9.0)
    at(advisor, "b", 8.0)
    assert advisor.round_over() == []


def test_a_slow_board_is_named_with_the_plan_as_it_would_be_now(tmp_path: Path):
    made = planned(tmp_path, *two_boards())
    assert made.cuts == {"a": "layer3", "b": "layer3"}
    advisor = Advisor(tmp_path, SETTINGS)
    at(advisor, "a", 120.0)
    at(advisor, "b", 8.0)
    who, plan = advisor.round_over()
    assert who == "Left its profile: a: a step takes 120 ms, and its profile says 8 ms."
    # 15 times as slow: 30 ms at layer1 beside 300 + 20 ms of the server, 60 ms at layer2, 120 ms at layer3.
    assert "the plan would now cut a after layer1 (now layer3)" in plan
    assert "a round of about 320 ms instead of 1.2 s" in plan
    assert "Cuts stay for this run" in plan
    # And what was said once is not said again, until it is another fact.
    at(advisor, "a", 130.0)
    assert advisor.round_over() == []
    at(advisor, "a", 250.0)
    assert "250 ms" in advisor.round_over()[0]


def test_a_drift_that_changes_no_cut_is_told_as_that(tmp_path: Path):
    made = planned(tmp_path, *two_boards())
    advisor = Advisor(tmp_path, SETTINGS)
    at(advisor, "a", 13.0)
    _, plan = advisor.round_over()
    assert made.round_ms == 80.0
    assert "the plan would be the same; a round takes about 130 ms, and 80 ms were planned" in plan


def test_a_link_that_got_slow_draws_the_cut_to_where_less_is_sent(tmp_path: Path):
    slow_server = ServerInput(step_ms={"layer1": 0.2, "layer2": 0.2, "layer3": 0.1})
    measured = board("a", step_ms=(1.0, 2.0, 40.0), kb=(64, 128, 4), up_bytes_per_s=1e9)
    made = choose_cuts(fleet(measured), server=slow_server)
    write_plan(tmp_path / "plan.toml", made)
    (tmp_path / "profiles").mkdir()
    write_profile(tmp_path / "profiles/a.toml", measured)
    assert made.cuts == {"a": "layer1"}
    advisor = Advisor(tmp_path, SETTINGS)
    advisor.hear(
        "a",
        Pace(
            device="a", round=1, n_steps=10_000, step_ms=1.0, n_sent=1, sent_bytes=2_000_000, upload_ms=400.0
        ),
    )
    who, plan = advisor.round_over()
    assert who == "Left its profile: a: an upload takes 400 ms, and its profile says 2 ms."
    assert "a after layer3 (now layer1)" in plan


def test_a_cut_that_was_given_stays_given(tmp_path: Path):
    planned(tmp_path, *two_boards(), pins={"a": "layer3"})
    advisor = Advisor(tmp_path, SETTINGS)
    at(advisor, "a", 120.0)
    assert "the plan would be the same" in advisor.round_over()[1]


def test_a_fleet_that_slows_down_is_one_piece_of_advice(tmp_path: Path):
    boards = [board(f"board{i}", step_ms=(2.0, 4.0, 8.0)) for i in range(MOST_NAMED + 3)]
    planned(tmp_path, *boards)
    advisor = Advisor(tmp_path, SETTINGS)
    for profile in boards:
        at(advisor, profile.name, 80.0)
    who, _ = advisor.round_over()
    assert who.endswith("; and 3 more.")
    assert "board3:" in who
    assert "board4:" not in who


@pytest.mark.parametrize("text", ["", "[cuts]\na = 'layer3'\n", "no toml"])
def test_where_no_times_were_weighed_there_is_nothing_to_say(tmp_path: Path, text: str):
    (tmp_path / "plan.toml").write_text(text)
    advisor = Advisor(tmp_path, SETTINGS)
    at(advisor, "a", 1e9)
    assert advisor.round_over() == []


def test_a_profile_that_is_gone_costs_the_plan_and_not_the_news(tmp_path: Path):
    planned(tmp_path, *two_boards())
    (tmp_path / "profiles/b.toml").unlink()
    advisor = Advisor(tmp_path, SETTINGS)
    at(advisor, "a", 120.0)
    at(advisor, "b", 120.0)
    at(advisor, "stranger", 120.0)
    who, plan = advisor.round_over()
    assert who.startswith("Left its profile: a:")
    assert "no plan can be made" in plan


def test_a_liar_gets_advice_and_no_more(tmp_path: Path):
    planned(tmp_path, *two_boards())
    advisor = Advisor(tmp_path, SETTINGS)
    at(advisor, "a", 1e9, upload_ms=1e9)
    assert len(advisor.round_over()) == 2
    at(advisor, "a", 1e-300)  # no work at all, which is no pace to judge
    assert advisor.round_over() == []
    assert msgspec.structs.asdict(Pace(device="a", round=1, n_steps=1, step_ms=0.0))["step_ms"] == 0.0
    at(advisor, "a", 0.0)
    assert advisor.round_over() == []
