"""The agent as a service: what it tells its manager, its unit, and what systemd itself says of that unit."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from device_agent import unit
from device_agent.identity import HeldIdentity, is_held
from device_agent.service import LONG_WORK_S, ServiceManager
from device_agent.unit import AgentUnit, judge_state, quote
from toolkit.cli.entry import main
from toolkit.errors import FencedError, MachineError, RefusedError, UsageError


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Manager:
    """The other end of a service manager's socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        words = []
        while True:
            try:
                words.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return words

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def address(request, tmp_path):
    return str(tmp_path / "notify") if request.param == "path" else f"@hsee-test-{os.getpid()}"


def test_what_a_manager_hears(address):
    manager, clock = Manager(address), Clock()
    env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    service = ServiceManager.of_environment(env, clock=clock)
    assert env == {}, "children must not speak for this process"
    service.status("reading the data")
    service.ready()
    service.status("line\nbreak")
    service.status("line\nbreak")
    assert manager.heard() == ["STATUS=reading the data", "READY=1", "STATUS=line break"]
    for _ in range(30):
        service.alive()
        clock.now_s += 1.0
    assert manager.heard() == ["WATCHDOG=1"] * 3, "a third of the interval"
    with service.long_work():
        assert manager.heard() == [f"WATCHDOG=1\nWATCHDOG_USEC={int(LONG_WORK_S * 1e6)}"]
    assert manager.heard() == ["WATCHDOG=1\nWATCHDOG_USEC=30000000"]
    service.stopping()
    assert manager.heard() == ["STOPPING=1"]
    manager.close()
    service.ready()  # a manager that has gone costs nothing
    service.close()
    service.ready()


@pytest.mark.parametrize(
    "env",
    [{}, {"WATCHDOG_USEC": "30000000"}, {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "soon"}],
    ids=str,
)
def test_outside_of_a_service_every_word_goes_nowhere(env):
    service = ServiceManager.of_environment(dict(env), clock=Clock())
    service.ready()
    service.alive()
    with service.long_work():
        service.status("x")
    service.close()


def test_a_watchdog_of_another_process_is_not_fed(tmp_path):
    manager = Manager(str(tmp_path / "n"))
    env = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}
    service = ServiceManager.of_environment(env, clock=Clock())
    service.alive()
    service.close()
    assert manager.heard() == []
    manager.close()


def test_a_manager_that_does_not_read_holds_nothing_up(tmp_path):
    manager = Manager(str(tmp_path / "n"))
    service = ServiceManager.of_environment({"NOTIFY_SOCKET": str(tmp_path / "n")}, clock=Clock())
    for n in range(5000):
        service.status(f"{n} {'x' * 500}")
    service.close()
    manager.close()


def lines_of(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An account's folder on a board, and no settings of this machine."""
    place = tmp_path / "hall camera 100%"
    place.mkdir()
    (place / "hsee.toml").write_text(
        '[fleet]\nname = "yard"\n[broker]\naddress = "mqtts://broker.local"\nusername = "hall"\n'
        'password_file = "password"\n[device]\nid = "hall"\n'
    )
    (place / "password").write_text("x" * 32)
    (place / "password").chmod(0o600)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("HSEE_BROKER_PASSWORD", raising=False)
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("scope", ["user", "system"])
def test_the_unit_says_what_it_should(folder, scope):
    made = AgentUnit("hall", "yard", scope, folder, ("--data", "folder:/my $data/50%"))
    lines = lines_of(made.text())
    assert lines["Type"] == "notify"
    assert lines["Restart"] == "always"
    assert lines["WatchdogSec"] == "300"
    assert (lines["Nice"], lines["MemoryMax"]) == ("5", "80%")
    assert lines["ExecStart"].endswith('-m device_agent --data "folder:/my $$data/50%%"')
    assert lines["WorkingDirectory"] == f"{folder}%", "a specifier stands for itself"
    assert ("User" in lines) == (scope == "system")
    stays_down = {int(status) for status in lines["RestartPreventExitStatus"].split()}
    assert {FencedError.exit_status, RefusedError.exit_status} <= stays_down
    assert stays_down.isdisjoint({0, 1, 4, 5, 6, 130, 143})


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("scope", ["user", "system"])
def test_systemd_itself_takes_the_unit(folder, tmp_path, scope):
    made = AgentUnit("hall", "yard", scope, folder, ("--data", 'folder:/my "data"/50%', "--set", "run.lr=1"))
    file = tmp_path / made.name
    file.write_text(made.text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(["--user"] if scope == "user" else []), str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = (done.stdout + done.stderr).splitlines()
    ours = [line for line in said if made.name in line and "Special user nobody" not in line]
    assert ours == []
    # It would say so: a mistake in the same file is found.
    file.write_text(made.text().replace("WatchdogSec=300", "WatchdogSec=often"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, check=False
    )
    assert "ignoring: often" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("two words", '"two words"'),
        ("50%", "50%%"),
        ("$HOME", "$$HOME"),
        ('say "x"', '"say \\"x\\""'),
        ("back\\slash", '"back\\\\slash"'),
        (";", '";"'),
    ],
)
def test_a_word_stands_for_itself(word, quoted):
    assert quote(word) == quoted


def test_a_word_that_no_unit_can_hold():
    with pytest.raises(UsageError, match="line break"):
        quote("a\nb")


@pytest.mark.usefixtures("folder")
def test_dry_run_prints_the_unit_and_writes_nothing(tmp_path, capsys):
    assert main(["agent", "install", "--dry-run", "--", "--data", "digits"]) == 0
    told = capsys.readouterr().out
    assert "Type=notify" in told
    assert "systemctl --user enable --now hsee-agent-hall.service; loginctl enable-linger" in told
    assert not (tmp_path / "config").exists()
    assert main(["agent", "install", "--dry-run", "--json", "--system", "--", "--data", "digits"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["unit"], told["installed"]) == ("hsee-agent-hall.service", False)
    assert "WantedBy=multi-user.target" in told["text"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, "which data"),
        (["--memory", "lots", "--", "--data", "digits"], 2, "is no size"),
        (["--folder", "nowhere", "--", "--data", "digits"], 2, "is no folder"),
        (["--", "--data", "digits", "--set", "device.held_out=2"], 3, "device.held_out"),
        (["--", "--data", "digits", "--broker", "192.0.2.1"], 4, "without TLS"),
        (["--", "--data", "digits", "--password-file", "other"], 3, "can't be read"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_service_that_could_not_run_is_not_installed(words, status, said, capsys, monkeypatch):
    # A variable of this shell does not help: the service has none.
    monkeypatch.setenv("HSEE_BROKER_PASSWORD", "x" * 32)
    assert main(["agent", "install", "--dry-run", *words]) == status
    assert said in capsys.readouterr().err


SHOWN = {
    "ActiveState": "active",
    "MainPID": "77",
    "NRestarts": "3",
    "Result": "success",
    "ExecMainStatus": "0",
    "StatusText": "round 2",
    "UnitFileState": "enabled",
    "MemoryCurrent": "250000000",
}


@pytest.mark.parametrize(
    ("changed", "detail", "memory"),
    [
        ({}, "round 2", 250_000_000),
        ({"MemoryCurrent": "18446744073709551615"}, "round 2", 0),
        (
            {"ActiveState": "failed", "ExecMainStatus": "7", "Result": "exit-code"},
            "stopped for good: another",
            250_000_000,
        ),
        ({"ActiveState": "failed", "ExecMainStatus": "3"}, "stopped for good by a mistake", 250_000_000),
        (
            {"ActiveState": "failed", "Result": "watchdog", "ExecMainStatus": "6"},
            "ended: watchdog",
            250_000_000,
        ),
        ({"ActiveState": "inactive", "MainPID": "0"}, "stopped", 250_000_000),
    ],
)
def test_what_systemd_shows_is_told_in_words(changed, detail, memory):
    state = judge_state("u", {**SHOWN, **changed})
    assert state.detail.startswith(detail)
    assert (state.n_restarts, state.boots, state.memory_bytes) == (3, True, memory)


@pytest.fixture
def systemctl(tmp_path, monkeypatch):
    """Commands named as systemd's, which write down how they were called: no service manager runs under the tests."""
    (tmp_path / "bin").mkdir()
    for name in ("systemctl", "loginctl"):
        script = tmp_path / "bin" / name
        script.write_text(
            f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/called\n'
            'case "$*" in *show*) echo ActiveState=active; echo MainPID=0; echo StatusText=round 2;; esac\n'
            f"[ ! -e {tmp_path}/refuse ] || {{ echo 'Failed to connect to bus' >&2; exit 1; }}\n"
        )
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return lambda: (tmp_path / "called").read_text().splitlines()


def test_install_status_uninstall(folder, systemctl, tmp_path, capsys):
    assert main(["agent", "status"]) == 1
    assert "hsee agent install" in capsys.readouterr().out
    assert main(["agent", "install", "--", "--data", "digits"]) == 0
    file = tmp_path / "config/systemd/user/hsee-agent-hall.service"
    assert f"WorkingDirectory={folder}" in file.read_text()
    assert systemctl() == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --now hsee-agent-hall.service",
        "loginctl enable-linger",
    ]
    assert "journalctl --user-unit hsee-agent-hall.service" in capsys.readouterr().out
    assert main(["agent", "status", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["runs"], told["detail"]) == (True, "round 2")
    assert main(["agent", "uninstall"]) == 2  # nobody is there to be asked
    assert main(["agent", "uninstall", "--dry-run"]) == 0
    assert file.exists()
    assert main(["agent", "uninstall", "--yes"]) == 0
    assert not file.exists()
    assert systemctl()[-2:] == [
        "systemctl --user disable --now hsee-agent-hall.service",
        "systemctl --user daemon-reload",
    ]
    assert main(["agent", "uninstall", "--yes"]) == 2
    (tmp_path / "refuse").touch()
    capsys.readouterr()
    assert main(["agent", "install", "--", "--data", "digits"]) == 6
    assert "Failed to connect to bus" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_an_agent_that_runs_by_hand_is_told(capsys):
    held = HeldIdentity(Path("runs"), fleet="yard", device="hall")
    assert main(["agent", "status"]) == 0
    held.close()
    assert "runs by hand" in capsys.readouterr().out


def test_looking_for_a_held_identity_makes_nothing(tmp_path):
    assert not is_held(tmp_path / "runs", fleet="home", device="ant")
    assert not (tmp_path / "runs").exists()


def test_a_machine_without_systemd_is_told_what_helps(monkeypatch):
    monkeypatch.setattr(unit.shutil, "which", lambda _: None)
    with pytest.raises(MachineError, match="no systemd") as caught:
        unit.require_systemd()
    assert "--dry-run" in caught.value.hint


@pytest.mark.usefixtures("folder")
def test_a_service_of_the_system_is_root_s_to_write(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["agent", "install", "--system", "--", "--data", "digits"]) == 6
    assert "sudo" in capsys.readouterr().err
