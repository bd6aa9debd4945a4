"""A board that does not keep the pace of its profile, as its owner and the coordinator's are told."""

import pytest

from tests.e2e.processes import wait_until
from toolkit.plan.schema import read_plan
from toolkit.profile.drift import Drifted, at_pace
from toolkit.profile.schema import read_profile, write_profile


@pytest.mark.needs_mosquitto
def test_both_sides_say_that_a_board_left_its_profile(hsee, profile, mosquitto):
    measured = read_profile(profile)
    # As if it had been measured on a board a hundred times as fast.
    write_profile(
        hsee.folder / "boast.toml", at_pace(measured, [Drifted("step", measured_ms=0.01, expected_ms=1.0)])
    )
    port = mosquitto.address.port
    words = ("--devices", 1, "--rounds", 1, "--model", "resnet_small", "--set", "run.round_steps=700")
    coordinator = hsee.coordinator(port, *words)
    agent = hsee.agent(port, "kitchen", "--profile", hsee.folder / "boast.toml")
    assert coordinator.end() == 0, coordinator.describe()
    assert agent.end() == 0, agent.describe()
    wait_until(lambda: coordinator.events[-1]["event"] == "ended", coordinator.describe)
    said = [event["text"] for event in coordinator.events if event["event"] == "notice"]
    (who,) = [text for text in said if text.startswith("Left its profile: kitchen: a step takes")]
    (advice,) = [text for text in said if text.startswith("Advice: the plan would")]
    assert said.index(advice) == said.index(who) + 1
    assert "this board is slower than its profile: a step takes" in agent.out
    (plan,) = hsee.folder.glob("runs/*/plan.toml")
    assert read_plan(plan).server_step_ms.keys() == {row.cut for row in measured.cuts}
