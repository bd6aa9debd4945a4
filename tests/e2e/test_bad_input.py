"""What users get wrong: one sentence, what to do, a stable exit status, never a traceback.

The commands run in this process, so that they are many and quick: an error that is no ``HseeError`` fails the test
by itself. What needs several processes at once is in ``test_faults.py``.
"""

import json
import os
import resource
import signal

import numpy as np
import pytest
from PIL import Image

from coordinator.server import Coordinator
from device_agent.agent import Agent
from tests.e2e.processes import ROOT
from tests.mosquitto import Mosquitto, free_port
from toolkit.cli.entry import main

AGENT = ["agent", "start", "--id", "ant", "--home", "runs"]
START = ["coordinator", "start", "--run", "r1"]
INSECURE = "192.0.2.7:1883"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder, with no settings of this machine."""
    for name in os.environ:
        if name.startswith("HSEE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def refused(capsys):
    """Run a command that must fail; returns (status, message, hint)."""

    def run(*words):
        status = main([str(word) for word in words])
        told = capsys.readouterr()
        lines = told.err.splitlines()
        assert lines[0].startswith("error: "), told
        assert all(line.startswith(("error: ", "fix:   ")) for line in lines), told.err
        return status, lines[0].removeprefix("error: "), "".join(line[7:] for line in lines[1:])

    return run


@pytest.fixture
def impatient(monkeypatch):
    """Whoever is started gives a broker no time."""
    for part in (Agent, Coordinator):
        monkeypatch.setitem(part.__init__.__kwdefaults__, "connect_s", 0.0)


def picture_folder(folder, names, size=(8, 8), n=4):
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(n):
            Image.new("L", size, 40 * number).save(folder / name / f"{number}.png")
    return folder


# The broker


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("words", [[*AGENT, "--data", "digits"], START])
def test_no_broker_or_a_wrong_port(refused, words):
    port = free_port()
    status, message, hint = refused(*words, "--broker", f"127.0.0.1:{port}")
    assert status == 4
    assert message == f"Nobody listens at mqtt://127.0.0.1:{port}. (HSEE-E401)"
    assert hint.startswith("Start the broker, or check host and port")


@pytest.mark.needs_mosquitto
@pytest.mark.parametrize("words", [[*AGENT, "--data", "digits"], START])
def test_a_wrong_password(refused, tmp_path, monkeypatch, words):
    monkeypatch.setenv("HSEE_BROKER_PASSWORD", "wrong")
    mosquitto = Mosquitto(tmp_path, accounts={"ant": "right", "coord-r1": "right"})
    mosquitto.start()
    try:
        status, message, hint = refused(*words, "--broker", f"127.0.0.1:{mosquitto.address.port}")
    finally:
        mosquitto.kill()
    assert status == 4
    assert "refused user" in message
    assert "HSEE-E402" in message
    assert "wrong" not in message + hint
    assert hint.startswith("Check the user name, and its password in HSEE_BROKER_PASSWORD")


def test_the_demo_looks_for_its_broker_before_it_measures(refused, tmp_path):
    port = free_port()
    status, message, hint = refused("demo", "--broker", f"127.0.0.1:{port}")
    assert status == 4
    assert message == f"Nobody listens at mqtt://127.0.0.1:{port}. (HSEE-E401)"
    assert hint
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", [[*AGENT, "--data", "digits"], START, ["demo"]])
def test_a_broker_elsewhere_without_tls_is_refused_before_anything_is_written(refused, tmp_path, words):
    status, message, hint = refused(*words, "--broker", INSECURE)
    assert status == 4
    assert message.startswith("The broker mqtt://192.0.2.7:1883 is not on this machine")
    assert "HSEE-E403" in message
    assert "Write mqtts://192.0.2.7" in hint
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("words", [[*AGENT, "--data", "digits"], START])
def test_insecure_is_said_in_plain_words(monkeypatch, capsys, words):
    # The address is unroutable: what counts is that the connection is tried.
    monkeypatch.setattr("toolkit.link.mqtt.CONNECT_TIMEOUT_S", 0.05)
    assert main([*words, "--broker", INSECURE, "--insecure"]) == 4
    assert "is not on this machine" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("http://127.0.0.1:1883", "has the scheme 'http'"),
        ("127.0.0.1:123456", "is not an address"),
        ("me:secret@127.0.0.1", "holds no user name or password"),
    ],
)
def test_an_address_that_is_none(refused, address, text):
    for words in ([*AGENT, "--data", "digits"], START, ["demo"]):
        status, message, hint = refused(*words, "--broker", address)
        assert status == 2
        assert text in message
        assert hint
        assert "secret" not in message + hint


# The data


@pytest.mark.parametrize(
    ("data", "status", "text", "hint"),
    [
        (None, 2, "No data source is named.", "--data folder:PATH"),
        ("folder:nowhere", 1, "nowhere", ""),
        ("folder:empty", 1, "empty", ""),
        ("folder:single", 1, "holds one class only: 'cat'", "Add samples of another class."),
        ("folder:mixed", 1, "differ in size", "Bring all to one size"),
        ("npz:nowhere.npz", 1, "nowhere.npz", ""),
        ("photos:x", 1, "There is no data source 'photos:x'.", "A source is one of"),
    ],
)
def test_data_that_can_not_be_used(refused, tmp_path, data, status, text, hint):
    (tmp_path / "empty").mkdir()
    picture_folder(tmp_path / "single", ["cat"])
    picture_folder(tmp_path / "mixed", ["ant"])
    picture_folder(tmp_path / "mixed", ["bee"], size=(9, 9))
    words = [] if data is None else ["--data", data]
    got = refused(*AGENT, *words)
    assert got[0] == status
    assert text in got[1]
    assert hint in got[2]
    assert got[2]


def test_a_folder_that_may_not_be_read(refused, tmp_path, monkeypatch):
    folder = picture_folder(tmp_path / "secret", ["ant", "bee"])

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(folder), "iterdir", refuse)  # root may read everything
    status, message, hint = refused(*AGENT, "--data", f"folder:{folder}")
    assert status == 1
    assert message == f"{folder} can't be read as a folder: Permission denied. (HSEE-E111)"
    assert hint == "It must be a folder that this user may list."


# Names


@pytest.mark.parametrize(
    ("words", "status", "text", "hint"),
    [
        ([*START, "--model", "resnet"], 1, "There is no model 'resnet'.", "Did you mean 'resnet"),
        ([*START, "--set", "run.model_options.widht=3"], 1, "has no option 'widht'", "Did you mean 'width'?"),
        (
            [*START, "--strategy", "averagin"],
            1,
            "There is no strategy 'averagin'.",
            "Did you mean 'averaging'?",
        ),
        (
            ["demo", "--strategy", "averagin"],
            1,
            "There is no strategy 'averagin'.",
            "Did you mean 'averaging'?",
        ),
        (
            [*START, "--set", "run.server_exits=layer2,layer9"],
            1,
            "no stage 'layer9' to put an exit at; behind 'stem' stand layer1, layer2, layer3",
            "Did you mean 'layer3'?",
        ),
        (
            [*START, "--set", "run.exit_head=poled"],
            1,
            "There is no exit head 'poled'.",
            "Did you mean 'pooled'?",
        ),
        ([*START, "--codec", "int9"], 3, "int9", "int8"),
        ([*START, "--rounds", "0"], 2, "--rounds", "hsee coordinator start -h"),
        ([*START, "--rouns", "3"], 2, "No such option: --rouns", "hsee coordinator start -h"),
        (["coordinator", "strat"], 2, "Did you mean 'start'?", "hsee coordinator -h"),
        ([*START, "--classes", "ant"], 2, "'ant' is not a list of classes.", "--classes ant,bee,cat"),
        ([*START, "--classes", "ant,ant"], 2, "is not a list of classes.", "each once"),
        ([*START, "--classes", "ant,,bee"], 2, "is not a list of classes.", ""),
        (["coordinator", "start", "--run", "a/b"], 2, "The run's name 'a/b' is not a name", "Use 1 to 64"),
        (["coordinator", "start", "--fleet", "a b"], 3, "fleet.name", ""),
        ([*START, "--compute", "gpu"], 3, "gpu", "Did you mean 'cpu'?"),
        (["agent", "start", "--id", "a/b", "--data", "digits"], 3, "device.id", ""),
        ([*AGENT, "--data", "digits", "--part", "5/3"], 1, "There is no part 5 of 3.", "1/3, 2/3, 3/3"),
        ([*AGENT, "--data", "digits", "--emulate", "fast"], 2, "fast", "25%,512"),
        ([*AGENT, "--data", "digits", "--profile", "none.toml"], 3, "none.toml", ""),
        (["run", "resume", "nowhere"], 2, "There is no run 'nowhere' in runs.", "hsee run list"),
        (["export", "."], 2, ". holds no trained segment.", "on a copy of that folder"),
        (["export", "nowhere"], 2, "There is no run 'nowhere' in runs.", "hsee run list"),
    ],
)
def test_a_word_that_is_not_known(refused, tmp_path, words, status, text, hint):
    got = refused(*words)
    assert got[0] == status, got
    assert text in got[1]
    assert hint in got[2]
    assert not (tmp_path / "runs").exists()


def test_a_cut_layer_that_the_model_does_not_have(refused, tmp_path):
    board = ROOT / "profiles" / "emulated" / "small.toml"
    status, message, hint = refused("plan", f"hall={board}", "--pin", "hall=layer9")
    assert status == 3
    assert message == "Device 'hall' can't be pinned to 'layer9': its profile has no such cut. (HSEE-E320)"
    assert hint.startswith("Did you mean 'layer")
    assert not (tmp_path / "plan.toml").exists()


@pytest.mark.parametrize("flag", ["--dat", "--no-such"])
def test_an_unknown_flag_of_the_agent(capsys, flag):
    try:
        status = main([*AGENT, flag, "digits"])
    except SystemExit as left:  # how argparse leaves
        status = left.code
    told = capsys.readouterr().err
    assert status == 2
    assert flag in told
    assert "Traceback" not in told


def test_with_json_a_failure_is_one_line_of_json(capsys):
    assert main([*START, "--model", "resnet", "--json"]) == 1
    told = capsys.readouterr()
    assert told.err == ""
    (line,) = told.out.splitlines()
    error = json.loads(line)["error"]
    assert error["code"] == "HSEE-E120"
    assert error["message"] == "There is no model 'resnet'."


# Runs and disks


@pytest.mark.needs_mosquitto
def test_too_few_devices(refused, mosquitto, capsys):
    words = ["--broker", f"127.0.0.1:{mosquitto.address.port}", "--devices", "3", "--wait", "0.1"]
    assert main([*START, *words]) == 5
    told = capsys.readouterr()
    assert "waiting: 0 of 3 devices, 0 s left" in told.out
    assert "failed: Only 0 of 3 devices joined within 0.1 s." in told.out
    assert told.err.splitlines() == [
        "error: Only 0 of 3 devices joined within 0.1 s. (HSEE-E500)",
        "fix:   Start the missing agents, or lower --devices.",
    ]
    # Nothing was trained: the name is free for the next try.
    assert refused(*START, *words)[0] == 5


def test_a_run_name_in_use(refused, tmp_path):
    (tmp_path / "runs/r1/checkpoints/000003-round-3").mkdir(parents=True)
    status, message, hint = refused(*START)
    assert status == 1
    assert message.startswith("There is a run in runs/r1 already.")
    assert hint == "Go on with it: hsee run resume runs/r1  Or choose another --run."


@pytest.mark.parametrize("words", [START, [*AGENT, "--data", "digits"], ["demo"]])
def test_a_home_that_can_not_be_written_to(refused, tmp_path, words):
    (tmp_path / "file").write_text("")
    status, message, hint = refused(*words, "--home", "file")
    assert status == 6
    assert "can't be written: Not a directory. (HSEE-E600)" in message
    assert "--home" in hint


def test_a_full_disk(refused):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # every byte is refused, as by a full disk
    try:
        status, message, hint = refused(*START)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 6
    assert message == "runs/r1/config.toml can't be written: File too large. (HSEE-E600)"
    assert hint == "Free some space on that disk. What was saved before is whole."


def test_a_bundle_is_made_of_what_is_whole(refused, tmp_path):
    folder = tmp_path / "runs/r1/devices/ant"
    folder.mkdir(parents=True)
    (folder / "segment.json").write_text("{")
    status, message, _ = refused("export", "runs/r1")
    assert status == 1
    assert "segment.json can't be read" in message
    np.savez(folder / "held_out.npz", x=np.zeros((1, 1)), y=[0])
    status, message, hint = refused("export", "runs/r1", "--device", "bee")
    assert status == 2
    assert "holds no segment of device 'bee'" in message
    assert "ant" in hint
