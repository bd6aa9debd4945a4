"""``hsee demo`` whole, interrupted, and killed."""

import json
import signal

import pytest

from tests.e2e.processes import wait_until
from toolkit.plan.schema import read_plan

BOARDS = ["small", "middle", "strong"]
DEMO = """
import shutil, sys
from toolkit.cli import demo, entry

def measure(scene):
    for board in demo.BOARDS:
        scene._profile(board).parent.mkdir(exist_ok=True)
        shutil.copy(sys.argv[1], scene._profile(board))

demo.Scene.measure = measure
sys.exit(entry.main(["demo", *sys.argv[2:]]))
"""


def check_no_orphans(hsee):
    wait_until(lambda: not hsee.alive(), lambda: f"still there: {hsee.alive()}")


def the_run(hsee):
    (folder,) = (hsee.folder / "runs").glob("demo-*")
    return folder


def wait_for_a_round(demo, hsee):
    """Wait until a round is committed while every part of the demo runs."""

    def closed():
        assert demo.process.poll() is None, demo.describe()
        kept = hsee.folder.glob("runs/demo-*/checkpoints/*-round-*[0-9]")
        return [path for path in kept if not path.name.endswith("-round-0")]

    wait_until(closed, demo.describe, 120)


@pytest.mark.timeout(420)  # on a machine that does much else
def test_two_rounds_and_the_offline_answers_equal_the_trained_model(hsee):
    demo = hsee.run("demo", "--rounds", 2, "--json", cap_s=400)
    assert demo.end() == 0, demo.describe()
    told = json.loads(demo.out)
    assert told["success"] is True
    assert [board["board"] for board in told["boards"]] == BOARDS
    for board in told["boards"]:
        assert board["offline"] == board["trained"]
        assert board["n_samples"] > 0
        assert 0 < board["server"] <= 1
    run = the_run(hsee)
    # What the planner made of times that were measured here: which cuts these are is the machine's affair.
    plan = read_plan(run / "plan.toml")
    assert {board["board"]: board["cut"] for board in told["boards"]} == plan.cuts
    assert all(device.reason and device.known == "emulated" for device in plan.devices)
    assert told["run"] == f"runs/{run.name}"
    for name in (
        "config.toml",
        "plan.toml",
        "metrics.csv",
        *(f"export/{board}/manifest.json" for board in BOARDS),
    ):
        assert (run / name).is_file(), name
    check_no_orphans(hsee)


@pytest.fixture
def training_demo(hsee, profile):
    """A demo that trains for long, with this machine's profile for each board: measuring them would only take time."""
    demo = hsee.python("-c", DEMO, profile, "--rounds", 500)
    wait_for_a_round(demo, hsee)
    assert len(hsee.alive()) == 6  # itself, broker, coordinator, three agents
    return demo


def test_ctrl_c_stops_every_process_and_keeps_what_was_trained(hsee, training_demo):
    training_demo.signal(signal.SIGINT)
    assert training_demo.end() == 130, training_demo.describe()
    run = the_run(hsee)
    assert f"What was trained is in runs/{run.name}" in training_demo.out
    assert training_demo.err == ""
    assert not hsee.alive()
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    for board in BOARDS:
        assert (run / "devices" / board / "training.safetensors").is_file(), board
    assert len((run / "metrics.csv").read_text().splitlines()) > len(BOARDS)


def test_a_demo_killed_while_it_trains_leaves_no_process(hsee, training_demo):
    training_demo.kill()
    check_no_orphans(hsee)


def test_a_demo_killed_while_it_measures_leaves_no_process(hsee):
    demo = hsee.start("demo")
    wait_until(
        lambda: any("toolkit.profile.child" in command for command in hsee.alive().values()), demo.describe
    )
    demo.kill()
    check_no_orphans(hsee)
