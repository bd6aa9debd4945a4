"""``hsee broker init|renew|user`` as an operator meets them, and a whole training run over what they write."""

from __future__ import annotations

import csv
import json
import re
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Hsee, wait_until
from tests.mosquitto import find_mosquitto, free_port
from tests.served_broker import ServedBroker
from toolkit.access.broker_folder import BrokerFolder
from toolkit.access.probe import Probe
from toolkit.cli.entry import main
from toolkit.config import load_config
from toolkit.errors import BrokerError, BrokerLoginError

PAGE = Path(__file__).parents[2] / "docs" / "broker.md"
pytestmark = [
    pytest.mark.needs_mosquitto,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]


def hsee(line: str) -> int:
    """Type a command."""
    return main(line.split())


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.fixture
def served(tmp_path) -> Iterator[ServedBroker]:
    broker = ServedBroker(tmp_path / "broker", ["dev1"])
    broker.start()
    yield broker
    broker.stop()


def passwords_in(folder: Path) -> list[str]:
    return [path.read_text().strip() for path in folder.glob("accounts/*/password")]


def everything_with(secrets: list[str], *, under: list[Path]) -> set[str]:
    """Names of the files that hold a secret, archives looked into."""
    found = set()
    for path in (path for folder in under for path in folder.rglob("*") if path.is_file()):
        contents = [path.read_bytes()]
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                contents += [archive.extractfile(member).read() for member in archive.getmembers()]
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        if any(secret.encode() in content for secret in secrets for content in contents):
            found.add(path.name)
    return found


def test_init_writes_a_set_up_that_it_has_read_back(capsys):
    words = "broker init --host broker.test --host 192.0.2.9 --device dev1 --coordinator r1 --fleet yard"
    assert hsee(words) == 0
    told = capsys.readouterr().out
    assert "read back: 3 accounts" in told
    assert "cd dev1 && hsee agent start" in told
    assert "cd coord-r1 && hsee coordinator start --run r1" in told
    folder = BrokerFolder.open(Path("broker"))
    assert folder.record.address == "mqtts://broker.test"
    secrets = passwords_in(folder.path)
    assert len(secrets) == 3
    assert len(set(secrets)) == 3
    assert all(len(secret) >= 22 for secret in secrets)
    for secret in [*secrets, (folder.path / "ca.key").read_text().splitlines()[1]]:
        assert secret not in told
        assert [p for p in folder.path.rglob("*") if p.is_file() and secret in p.read_text()] == [
            p for p in folder.path.rglob("*") if p.name in ("password", "ca.key") and secret in p.read_text()
        ]
    for path in (folder.path, *folder.path.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_written_account_is_a_configuration_that_loads(monkeypatch, capsys):
    assert hsee("broker init --host broker.test --port 9000 --device dev1 --json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["success"], told["verified"], told["address"]) == (True, True, "mqtts://broker.test:9000")
    monkeypatch.chdir("broker/accounts/dev1")
    assert main(["config", "check"]) == 0
    settings = load_config()
    assert (settings.device.id, settings.broker.username) == ("dev1", "dev1")
    assert settings.broker.address == "mqtts://broker.test:9000"


def test_init_never_touches_a_folder_that_holds_something(capsys):
    Path("broker").mkdir()
    Path("broker/ca.key").write_text("precious")
    assert hsee("broker init --host broker.test") == 2
    assert "not empty" in capsys.readouterr().err
    assert Path("broker/ca.key").read_text() == "precious"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--host broker.test --device a/b", "not a name"),
        ("--host broker.test --device join-1", "join tokens"),
        ("--host user@broker", "no user name"),
        ("--host bad_host!", "neither a host name"),
        ("--host broker.test --fleet a/b", "expected"),
    ],
)
def test_names_that_can_not_be_are_refused_before_anything_is_written(words, said, capsys):
    assert main(["broker", "init", *words.split()]) in (2, 3)
    assert said in capsys.readouterr().err
    assert not Path("broker").exists()


def test_a_plugin_that_is_none_is_told_with_what_mosquitto_said(capsys):
    assert hsee("broker init --host broker.test --plugin /nowhere.so") == 4
    assert "does not start" in capsys.readouterr().err


def test_without_mosquitto_here_the_plugin_must_be_named_and_nothing_is_read_back(monkeypatch, capsys):
    monkeypatch.setattr("toolkit.access.mosquitto_setup.PLUGIN_FOLDERS", ())
    monkeypatch.setattr("toolkit.access.mosquitto_setup.find_mosquitto", lambda: None)
    assert hsee("broker init --host broker.test") == 6
    assert "sudo apt install mosquitto" in capsys.readouterr().err
    assert not Path("broker").exists()
    assert hsee("broker init --host broker.test --plugin /usr/lib/elsewhere.so") == 0
    assert "Nothing was read back" in capsys.readouterr().out
    assert "plugin /usr/lib/elsewhere.so" in Path("broker/mosquitto.conf").read_text()


def test_users_are_added_listed_and_removed_while_it_runs(served, capsys):
    assert hsee("broker user add dev2 dev3 --json") == 0
    added = capsys.readouterr().out
    folder = served.folder
    for secret in passwords_in(folder.path):
        assert secret not in added
    with Probe(folder.login("dev2")) as probe:
        assert hsee("broker user remove dev2 dev3 --dry-run") == 0
        assert probe.is_connected
        assert hsee("broker user remove dev2") == 2  # nobody is there to be asked
        assert probe.is_connected
        login = folder.login("dev2")
        assert hsee("broker user remove dev2 --yes") == 0
        assert probe.wait_until(lambda: not probe.is_connected, 10.0)
    with pytest.raises(BrokerLoginError):
        Probe(login)
    assert not folder.account_folder("dev2").exists()
    capsys.readouterr()
    assert hsee("broker user list --json") == 0
    listed = {entry["account"]: entry for entry in json.loads(capsys.readouterr().out)["accounts"]}
    assert set(listed) == {"dev1", "dev3", "op-admin"}
    assert {entry["grants"] for entry in listed.values()} == {"as it should be"}
    assert hsee("broker user refresh") == 0
    assert hsee("broker user remove op-admin --yes") == 2
    assert "remove itself" in capsys.readouterr().err


def test_a_password_is_printed_only_when_asked(served, capsys):
    assert hsee("broker user add dev2 --show-password") == 0
    assert (served.folder.account_folder("dev2") / "password").read_text().strip() in capsys.readouterr().out


def test_a_renewed_certificate_is_trusted_by_those_who_trusted_the_old(served):
    before = (served.folder.path / "server.pem").read_bytes()
    assert main(["broker", "renew"]) == 0
    assert (served.folder.path / "server.pem").read_bytes() != before
    served.stop()
    with pytest.raises(BrokerError):
        served.probe("dev1")
    served.start()
    served.probe("dev1").close()


def test_a_folder_that_is_none_is_told_with_the_command_that_makes_one(capsys):
    assert hsee("broker user list --folder nothing") == 2
    assert "hsee broker init --host NAME" in capsys.readouterr().err


def test_every_command_of_the_page_works_in_its_order(tmp_path, capsys):
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    # The page's host is nobody's; the port is free here.
    port = free_port()
    lines = "".join(blocks).replace("--broker mqtts://broker.local", f"--broker mqtts://localhost:{port}")
    first, *rest = lines.replace("--host broker.local", f"--host localhost --port {port}").splitlines()
    assert hsee(first.removeprefix("hsee ")) == 0
    served = ServedBroker(tmp_path / "broker")
    served.start()
    try:
        for line in rest:
            assert hsee(line.removeprefix("hsee ")) == 0, f"{line}: {capsys.readouterr().err}"
    finally:
        served.stop()
    assert len(rest) == 6


def test_a_coordinator_of_another_run_than_its_account_is_told_before_it_waits(capsys):
    Path("hsee.toml").write_text('[broker]\nusername = "coord-r1"\n')
    assert hsee("coordinator start --run r2") == 2
    told = capsys.readouterr().err
    assert "--run r1" in told
    assert "hsee broker user add coord-r2" in told
    assert not Path("runs").exists()


def test_a_whole_run_over_tls_with_an_account_a_process(tmp_path):
    """The pasted lines, each in a copy of its account's folder; nobody ever evicts another."""
    served = ServedBroker(tmp_path / "broker", ["ant", "bee", "ant.infer", "coord-r1"])
    served.start()
    crew: dict[str, Hsee] = {}
    try:
        for account in ("ant", "bee", "coord-r1"):
            shutil.copytree(served.folder.account_folder(account), tmp_path / account)
            crew[account] = Hsee(tmp_path / account)
        measured = ("profile", "--model", "resnet_small", "--input", "1x8x8", "--classes", 10, "--quick")
        done = crew["ant"].run(*measured, "-o", tmp_path / "board.toml")
        assert done.end() == 0, done.describe()
        agents = [
            crew[name].start(
                *("agent", "start", "--data", "digits", "--part", part), "--profile", tmp_path / "board.toml"
            )
            for name, part in (("ant", "1/24"), ("bee", "2/24"))
        ]
        words = ("coordinator", "start", "--run", "r1", "--devices", 2, "--rounds", 2, "--json")
        with served.probe("ant.infer") as beside, served.probe("op-admin") as operator:
            coordinator = crew["coord-r1"].start(*words)
            for process in (coordinator, *agents):
                assert process.end() == 0, process.describe()
            assert (beside.n_connections, operator.n_connections) == (1, 1)
        with (tmp_path / "coord-r1/runs/r1/metrics.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == 4
        assert "already connected" not in served.log, "somebody was evicted"
        wait_until(lambda: "Client ant disconnected" in served.log, lambda: served.log)
        secrets = passwords_in(served.folder.path)
        said = "".join(p.out + p.err for p in (coordinator, *agents)) + served.log
        assert [secret for secret in secrets if secret in said] == []
        exported = crew["ant"].run("export", "runs/r1", "--archive")
        assert exported.end() == 0, exported.describe()
        supported = crew["ant"].run("doctor", "--bundle", "support.tar.gz")
        assert (tmp_path / "ant/support.tar.gz").exists(), supported.describe()
        assert everything_with(secrets, under=[tmp_path / name for name in crew]) == {"password"}
    finally:
        for crewman in crew.values():
            crewman.kill_all()
        served.stop()
