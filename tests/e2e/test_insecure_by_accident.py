"""Row T5: off this machine nothing starts without TLS and a login unless a flag says so, whichever command it is."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from coordinator.store.run_folder import RunFolder
from tests.tiny_bundles import manifest_of, scaling_onnx, scaling_segment
from toolkit.access.broker_folder import BrokerFolder
from toolkit.bundle.folder import write_bundle
from toolkit.cli.app import app
from toolkit.cli.entry import main

ROOT = Path(__file__).parents[2]
PLAIN, ENCRYPTED = "192.0.2.1:1883", "mqtts://192.0.2.1"
ELSEWHERE = "it needs a trained run or a signed bundle first; its link is made like all others (below)"
CLASSES = "--model resnet_small --input 1x8x8 --classes 10"
COMMANDS = {
    "agent start": "--id x --data digits",
    "agent install": "--dry-run -- --id x --data digits --broker",
    "agent join": f"x --token {'0' * 16} --authority {'0' * 64}",
    "infer": "bundle samples.csv",
    "bundle receive": "--into place --id x --allow-unsigned",
    "bundle send": ELSEWHERE,
    "coordinator start": "--run r2",
    "coordinator serve": ELSEWHERE,
    "run resume": "runs/r1",
    "profile": f"{CLASSES} --quick",
    "doctor": "",
    "demo": "",
    "simulate": "--transport mqtt --devices 1 --cuts stem",
    "broker check": "",
    "broker invite": "x",
    "device remove": "dev1 --yes",
    "broker user add": "x",
    "broker user remove": "dev1 --yes",
    "broker user list": "",
    "broker user refresh": "",
}
"""Words of every command that can be told of a broker, without the broker."""
HAVE_A_LOGIN = ("agent join", "broker invite", "broker user", "device remove")
"""Over TLS there is nothing to refuse: they have a login of their own, and prove the broker before they use it."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder that holds whatever the commands ask for before they would connect."""
    place = tmp_path_factory.mktemp("made")
    write_bundle(place / "bundle", manifest_of(scaling_segment(1)), {"segment1.onnx": scaling_onnx(1.0)})
    (place / "samples.csv").write_text("1,2,3\n")
    run = RunFolder(place / "runs/r1", "r1")
    run.take_up()
    run.close()
    (place / "runs/r1/config.toml").touch()
    BrokerFolder.create(
        place / "broker", fleet="home", hosts=["localhost"], accounts=["dev1"], plugin=Path("/nowhere.so")
    )
    return place


@pytest.fixture
def dialled(made, monkeypatch):
    """Where this process tried to connect to, beyond this machine; it is never let through."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(made))
    monkeypatch.delenv("HSEE_BROKER_PASSWORD", raising=False)
    monkeypatch.setattr("toolkit.doctor.parts.check_parts", list)
    places = []

    def connect(address, *_args, **_kwargs):
        places.append(address)
        raise OSError("a test let nobody out")

    monkeypatch.setattr(socket, "create_connection", connect)
    return places


def with_broker() -> set[str]:
    """Commands that take --broker, by their own help."""
    found, todo = set(), [((), typer.main.get_command(app))]
    while todo:
        path, command = todo.pop()
        below = getattr(command, "commands", {})
        todo += [((*path, name), child) for name, child in below.items()]
        options = {option for parameter in command.params for option in parameter.opts}
        if "--broker" in options:
            found.add(" ".join(path))
    return found | {"agent start", "agent install", "infer"}


def test_no_command_is_forgotten():
    assert set(COMMANDS) == with_broker()


CASES = [
    (command, broker)
    for command, words in sorted(COMMANDS.items())
    for broker in (PLAIN, ENCRYPTED)
    if words != ELSEWHERE and not (broker == ENCRYPTED and command.startswith(HAVE_A_LOGIN))
]


@pytest.mark.parametrize(("command", "broker"), CASES)
def test_a_command_refuses_before_it_dials(command, broker, dialled, capsys):
    words = [*command.split(), *COMMANDS[command].split()]
    words += [broker] if words[-1] == "--broker" else ["--broker", broker]
    try:
        status = main(words)
    except SystemExit as left:
        status = left.code
    said = "".join(capsys.readouterr())
    assert status not in (0, None), said
    assert re.search(r"without (TLS|a user name)|over TLS", said), said
    assert dialled == []
    assert "Traceback" not in said


def test_a_link_can_be_made_in_three_places_only():
    """Each of them asks the same question first: MqttLink refuses what is not secure when it is made."""
    makers = {
        path.relative_to(ROOT).as_posix()
        for room in ("toolkit", "coordinator", "device_agent")
        for path in (ROOT / room).rglob("*.py")
        if re.search(r"\bMqttLink\(", path.read_text()) and path.name != "mqtt.py"
    }
    assert makers == {"toolkit/link/connect.py", "toolkit/access/probe.py"}
    source = (ROOT / "toolkit/link/mqtt.py").read_text()
    assert source.index("address.require_secure()") < source.index("def start(")


def test_the_embedded_broker_takes_no_address_to_bind():
    done = subprocess.run(
        [sys.executable, "-m", "toolkit.link.broker", "-h"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "--bind" not in done.stdout
    assert "--host" not in done.stdout
