"""``hsee demo`` whole, interrupted, and killed."""

import json
import shutil
import signal

from tests.e2e.processes import wait_until

BOARDS = ["small", "middle", "strong"]
TRAIN = """
from pathlib import Path
from toolkit.cli.children import Children
from toolkit.cli.demo import Scene, Teller
with Children() as children:
    scene = Scene(children, Path("runs/demo-1"), "demo-1", Teller(quiet=True))
    scene.train(strategy="sequential", rounds=500, broker="", seed=0, as_json=True)
"""


def check_no_orphans(hsee):
    wait_until(lambda: not hsee.alive(), lambda: f"still there: {hsee.alive()}", 15)


def the_run(hsee):
    (folder,) = (hsee.folder / "runs").glob("demo-*")
    return folder


def wait_for_a_round(demo, hsee):
    """Wait until a round is committed while every part of the demo runs."""

    def closed():
        assert demo.process.poll() is None, demo.describe()
        return list(hsee.folder.glob("runs/demo-*/checkpoints/000001"))

    wait_until(closed, demo.describe, 90)


def test_two_rounds_and_the_offline_answers_equal_the_trained_model(hsee):
    demo = hsee.run("demo", "--rounds", 2, "--json", cap_s=110)
    assert demo.end() == 0, demo.describe()
    told = json.loads(demo.out)
    assert told["success"] is True
    assert [board["board"] for board in told["boards"]] == BOARDS
    for board in told["boards"]:
        assert board["offline"] == board["trained"]
        assert board["n_samples"] > 0
        assert 0 < board["server"] <= 1
    assert {board["cut"] for board in told["boards"]} > {"stem"}
    run = the_run(hsee)
    assert told["run"] == f"runs/{run.name}"
    for name in (
        "config.toml",
        "plan.toml",
        "metrics.csv",
        *(f"export/{board}/manifest.json" for board in BOARDS),
    ):
        assert (run / name).is_file(), name
    check_no_orphans(hsee)


def test_ctrl_c_stops_every_process_and_keeps_what_was_trained(hsee):
    demo = hsee.start("demo", "--rounds", 500)
    wait_for_a_round(demo, hsee)
    demo.signal(signal.SIGINT)
    assert demo.end() == 130, demo.describe()
    run = the_run(hsee)
    assert f"What was trained is in runs/{run.name}" in demo.out
    assert demo.err == ""
    assert not hsee.alive()
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    for board in BOARDS:
        assert (run / "devices" / board / "training.safetensors").is_file(), board
    assert "round" in (run / "metrics.csv").read_text()


def test_a_demo_killed_while_it_measures_leaves_no_process(hsee):
    demo = hsee.start("demo")
    wait_until(
        lambda: any("toolkit.profile.child" in command for command in hsee.alive().values()), demo.describe
    )
    demo.kill()
    check_no_orphans(hsee)


def test_a_demo_killed_while_it_trains_leaves_no_process(hsee, profile):
    # The demo's own scene, with this machine's profile for each board: measuring them again would only take time.
    profiles = hsee.folder / "runs/demo-1/profiles"
    profiles.mkdir(parents=True)
    for board in BOARDS:
        shutil.copy(profile, profiles / f"{board}.toml")
    demo = hsee.python("-c", TRAIN)
    wait_for_a_round(demo, hsee)
    assert len(hsee.alive()) == 6  # itself, broker, coordinator, three agents
    demo.kill()
    check_no_orphans(hsee)
