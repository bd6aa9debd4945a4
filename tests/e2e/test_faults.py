"""Processes that meet one another, or come too early; those that are killed are rows of tests/faults."""

import csv
import signal

import pytest

from tests.mosquitto import Mosquitto
from toolkit.cli.entry import main
from toolkit.errors import FencedError

pytestmark = pytest.mark.needs_mosquitto

PARTS = {"ant": "1/24", "bee": "2/24"}
ROUNDS = 96
RUN = ("--devices", 2, "--run", "r1")
TOLD_TO_STOP_AS_IT_COMMITS = """
import os, sys
from coordinator.commits import Commits
from toolkit.cli import entry
commit = Commits.commit

def commit_as_a_signal_comes(self, underway, now):
    commit(self, underway, now)
    if underway.state.round == 2:
        os.kill(os.getpid(), int(sys.argv[1]))

Commits.commit = commit_as_a_signal_comes
sys.exit(entry.main(sys.argv[2:]))
"""


@pytest.fixture
def start_agent(hsee, profile):
    """Start one of two small, quick devices."""

    def start(port, device, home=""):
        own = ("--home", home or device, "--part", PARTS[device], "--profile", profile)
        return hsee.agent(port, device, *own)

    return start


def check_finished(hsee, *processes, rounds):
    """Everybody ended well, and every round stands once in metrics.csv for each device, with nothing void."""
    for process in processes:
        assert process.end() == 0, process.describe()
    with (hsee.folder / "runs/r1/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["round"]), row["device"]) for row in rows] == [
        (round_, device) for round_ in range(1, rounds + 1) for device in ("ant", "bee")
    ]
    assert {row["n_void"] for row in rows} == {"0"}


def test_of_two_agents_with_one_id_the_newer_one_goes_on(hsee, mosquitto, start_agent):
    port = mosquitto.address.port
    bee = start_agent(port, "bee")
    older = start_agent(port, "ant", home="here")
    coordinator = hsee.coordinator(port, *RUN, "--rounds", ROUNDS)
    coordinator.wait_for_round(1)
    bee.stand_still()  # no round closes without it, so that the run is not over first
    newer = start_agent(port, "ant", home="elsewhere")
    assert older.end() == FencedError.exit_status == 7, older.describe()
    assert "Another process took over the device id 'ant'; this one stops." in older.err
    assert "give each its own --id" in older.err
    assert "Traceback" not in older.err
    assert "took over" in (hsee.folder / "here/r1/devices/ant/fenced").read_text()
    bee.signal(signal.SIGCONT)
    check_finished(hsee, coordinator, bee, newer, rounds=ROUNDS)


def test_a_second_agent_of_one_id_in_one_home_is_refused_and_the_first_goes_on(mosquitto, start_agent):
    port = mosquitto.address.port
    first = start_agent(port, "ant")
    first.wait_for("connected to the broker")
    second = start_agent(port, "ant")
    assert second.end() == 1, second.describe()
    assert second.err.splitlines() == [
        "error: An agent of device 'ant' runs already in ant. (HSEE-E150)",
        "fix:   One device id is one process: stop the other, or give this one another --id.",
    ]
    assert first.process.poll() is None, first.describe()
    first.signal(signal.SIGTERM)
    assert first.end() == 0, first.describe()
    assert first.out.splitlines()[-1] == "Stopped; what was trained is saved."


def test_whatever_starts_first_waits_for_the_others(hsee, tmp_path, start_agent, monkeypatch, capsys):
    mosquitto = Mosquitto(tmp_path)
    port = mosquitto.address.port
    early = start_agent(port, "ant")
    early.wait_for("Trying again for")
    try:
        mosquitto.start()
        early.wait_for("no coordinator yet in fleet home; start one with: hsee coordinator start")
        coordinator = hsee.coordinator(port, *RUN, "--rounds", 2)
        coordinator.wait_for('"ready":["ant"]')
        monkeypatch.chdir(tmp_path)
        assert main(["coordinator", "start", "--run", "r1"]) == 1
        assert capsys.readouterr().err.splitlines() == [
            "error: Another coordinator is at work in runs/r1. (HSEE-E150)",
            "fix:   Stop it first, or start a run of another name.",
        ]
        late = start_agent(port, "bee")
        check_finished(hsee, coordinator, early, late, rounds=2)
    finally:
        mosquitto.kill()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_coordinator_that_is_told_to_stop_ends_what_it_does_and_tells_it(
    hsee, mosquitto, start_agent, number, status
):
    port = mosquitto.address.port
    agents = [start_agent(port, device) for device in PARTS]
    words = ("coordinator", "start", "--broker", f"127.0.0.1:{port}", "--json", *RUN, "--rounds", 4)
    first = hsee.python("-c", TOLD_TO_STOP_AS_IT_COMMITS, int(number), *words)
    assert first.end() == status, first.describe()
    assert first.rounds() == [1, 2]  # each that is committed
    assert first.events[-1]["status"] == "stopped"
    second = hsee.start("run", "resume", "runs/r1", "--json")
    check_finished(hsee, second, *agents, rounds=4)
    assert second.rounds() == [3, 4]
