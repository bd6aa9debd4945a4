"""Every command of the mission on its own, as separate processes beside a Mosquitto, on pictures in class folders."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coordinator.store.ledger import Applied, Closed, Planned, read_ledger
from tests.e2e.processes import ROOT

pytestmark = pytest.mark.needs_mosquitto

FOLDERS = {"hall": ["class2", "class10"], "yard": ["class1", "class2"]}
ROUNDS = 12
N_PICTURES = 40
HOOK = """
import atexit, os, sys
def leave():
    with open(f"{os.environ['LOADED']}/{os.getpid()}", "w") as file:
        mapped = open("/proc/self/maps").read()
        print(*sys.modules, *["libtorch"] * ("libtorch" in mapped), file=file)
atexit.register(leave)
"""


def draw(folder, names):
    """Pictures of 8x8 that a small network tells apart: a bar that stands, one that lies, a dot; and noise."""
    generator = np.random.default_rng(7)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(N_PICTURES):
            picture = generator.integers(0, 60, (8, 8))
            place = generator.integers(1, 6)
            where = {"class1": np.s_[:, place], "class2": np.s_[place, :], "class10": np.s_[2:6, 2:6]}[name]
            picture[where] = 230
            Image.fromarray(picture.astype(np.uint8)).save(folder / name / f"{number}.png")


def maps(running):
    """Files that a process has mapped: its libraries of machine code among them."""
    return Path(f"/proc/{running.process.pid}/maps").read_text()


@pytest.fixture
def loaded(hsee):
    """Modules that each process had loaded when it ended, and torch's own library if it was, by process id."""
    (hsee.folder / "hook").mkdir()
    (hsee.folder / "hook/sitecustomize.py").write_text(HOOK)
    folder = hsee.folder / "loaded"
    folder.mkdir()
    hsee.env |= {"PYTHONPATH": f"{hsee.folder / 'hook'}:{ROOT}", "LOADED": str(folder)}
    return lambda: {
        int(path.name): {name.partition(".")[0] for name in path.read_text().split()}
        for path in folder.iterdir()
    }


def test_profile_coordinator_agents_export_infer(hsee, mosquitto, profile, loaded):
    port = mosquitto.address.port
    for device, names in FOLDERS.items():
        draw(hsee.folder / device, names)

    hall = hsee.agent(port, "hall", "--profile", profile, "--json", data="folder:hall")
    yard = hsee.agent(port, "yard", data="folder:yard")
    for agent in (hall, yard):
        agent.wait_for("what leaves")
        agent.wait_for("connected to the broker")
        assert "torch" not in maps(agent)
    coordinator = hsee.coordinator(port, "--devices", 2, "--run", "r1", "--rounds", ROUNDS)
    coordinator.wait_for_round(1)
    for process in (coordinator, hall, yard):
        assert process.end() == 0, process.describe()
        assert process.err == ""

    assert "measuring this board" in yard.out
    assert "measuring this board" not in hall.out
    assert json.loads(hall.out.splitlines()[-1]) == {
        "success": True,
        "detail": f"All {ROUNDS} rounds are done.",
    }
    check_events(coordinator)
    check_run_folder(hsee.folder / "runs/r1")
    check_answers(hsee)
    of_agents = {process.process.pid for process in (hall, yard)}
    modules = loaded()
    for pid in of_agents:
        assert {"torch", "libtorch"} <= modules[pid]
        assert modules[pid].isdisjoint({"typer", "rich", "click", "torchvision", "onnx", "onnxruntime"})


def check_events(coordinator):
    kinds = [event["event"] for event in coordinator.events]
    assert kinds[0] == "begin"
    assert kinds[-1] == "ended"
    assert coordinator.rounds() == list(range(1, ROUNDS + 1))
    plan = next(event for event in coordinator.events if event["event"] == "plan")
    # The union of both class lists, class 10 behind class 2.
    assert plan["classes"] == ["class1", "class2", "class10"]
    assert set(plan["cuts"]) == set(plan["reasons"]) == {"hall", "yard"}


def check_run_folder(run):
    files = ["config.toml", "plan.toml", "metrics.csv", "run.json", "ledger.jsonl", "env.json"]
    files += ["profiles/hall.toml", "profiles/yard.toml"]
    for name in files:
        assert (run / name).stat().st_size, name
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        f"{number:06d}-round-{number}" for number in (ROUNDS - 1, ROUNDS)
    ]
    entries = read_ledger(run / "ledger.jsonl")
    assert sum(isinstance(entry, Planned) for entry in entries) == 1
    assert [entry.round for entry in entries if isinstance(entry, Closed)] == list(range(1, ROUNDS + 1))
    for device in FOLDERS:
        cursors = [(e.round, e.seq) for e in entries if isinstance(e, Applied) and e.device == device]
        assert cursors == sorted(set(cursors))
    with (run / "metrics.csv").open(newline="") as file:
        last = [row for row in csv.DictReader(file) if int(row["round"]) == ROUNDS]
    # Wrong class numbers on either board would leave the server's one network guessing.
    assert {row["device"]: float(row["server_accuracy"]) >= 0.9 for row in last} == dict.fromkeys(
        FOLDERS, True
    )
    assert all(float(row["exit_accuracy"]) >= 0.9 for row in last)


def check_answers(hsee):
    exported = hsee.run("export", "runs/r1", "--json")
    assert exported.end() == 0, exported.describe()
    bundles = {bundle["device"]: bundle for bundle in json.loads(exported.out)["bundles"]}
    assert set(bundles) == set(FOLDERS)
    for device, names in FOLDERS.items():
        held = json.loads(
            hsee.run(
                "infer", f"runs/r1/export/{device}", f"runs/r1/devices/{device}/held_out.npz", "--json"
            ).out
        )
        assert held["summary"]["accuracy"] == bundles[device]["segments"][0]["torch_accuracy"]
        answered = hsee.run("infer", f"runs/r1/export/{device}", device, "--json", "--threshold", "1")
        assert answered.end() == 0, answered.describe()
        samples = json.loads(answered.out)["samples"]
        assert {sample["known"] for sample in samples} == set(names)
        assert np.mean([sample["label"] == sample["known"] for sample in samples]) >= 0.9
