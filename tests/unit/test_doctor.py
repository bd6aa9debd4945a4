"""``hsee doctor``: each fault of a machine is found and has its fix; the support archive holds no secret."""

import json
import logging
import os
import signal
import tarfile

import numpy as np
import pytest

from coordinator.store.run_folder import RunFolder
from device_agent.identity import HeldIdentity
from tests.mosquitto import free_port
from toolkit.access import authority
from toolkit.cli.entry import main
from toolkit.config import load_config
from toolkit.doctor import local_data, machine, parts
from toolkit.doctor.support_archive import MASK, mask, write_archive
from toolkit.errors import MachineError
from toolkit.findings import Finding
from toolkit.link.broker import generate_password

pytestmark = pytest.mark.usefixtures("roomy_machine")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    log = logging.getLogger("toolkit.link")
    before = log.level
    yield
    log.setLevel(before)


NOW = 1_800_000_000.0
THROTTLED_NOW, THROTTLED_BEFORE = 0x5, 0x50000


@pytest.mark.parametrize(
    ("finding", "verdict", "said", "fix"),
    [
        (machine.judge_system("aarch64", 64, "Debian"), "ok", "64 bits", ""),
        (machine.judge_system("armv7l", 32, "Raspbian"), "failed", "32 bits", "64-bit image"),
        (machine.judge_system("aarch64", 32, "Raspbian"), "failed", "32 bits", "the programs are not"),
        (machine.judge_python((3, 11)), "ok", "3.11", ""),
        (machine.judge_python((3, 99)), "warning", "newer", "Python 3.11"),
        (machine.judge_environment(in_venv=True, managed=True), "ok", "virtual", ""),
        (machine.judge_environment(in_venv=False, managed=True), "warning", "PEP 668", "python3 -m venv"),
        (machine.judge_environment(in_venv=False, managed=False), "ok", "does not ask", ""),
        (machine.judge_disk("/x", 100), "failed", "100 MB", "Delete old runs"),
        (machine.judge_disk("/x", 900), "warning", "900 MB", "Delete old runs"),
        (machine.judge_disk("/x", 9000), "ok", "9000 MB", ""),
        (machine.judge_memory(512, 100), "failed", "100 of 512", "swap"),
        (machine.judge_memory(1024, 400), "warning", "400 of 1024", "inference only"),
        (machine.judge_memory(4096, 3000), "ok", "3000 of 4096", ""),
        (machine.judge_heat(None, None), "skipped", "no temperature", ""),
        (machine.judge_heat(50.0, 0), "ok", "50 C", ""),
        (machine.judge_heat(84.0, None), "warning", "84 C", "heat sink"),
        (machine.judge_heat(60.0, THROTTLED_NOW), "warning", "now: under-voltage, throttled", "power supply"),
        (
            machine.judge_heat(60.0, THROTTLED_BEFORE),
            "warning",
            "since the start: under-voltage",
            "power supply",
        ),
        (machine.judge_clock(NOW, NOW - 1e6, synchronised=True), "ok", "set by the network", ""),
        (machine.judge_clock(NOW, NOW - 1e6, synchronised=False), "warning", "has not set it", "timedatectl"),
        (machine.judge_storage("/dev/sda1", 10.0, 60.0), "ok", "10.0 MB every 60 s, 14400 MB a day", ""),
        (machine.judge_storage("/dev/mmcblk0p2", 0.0, 60.0), "ok", "an SD card or eMMC", ""),
        (machine.judge_storage("/dev/mmcblk0p2", 0.5, 60.0), "ok", "720 MB a day", ""),
        (machine.judge_storage("/dev/mmcblk0p2", 10.0, 60.0), "warning", "wears out", "checkpoint_every_s"),
        (machine.judge_clock(0.0, NOW, synchronised=None), "failed", "1970-01-01", "timedatectl"),
        (parts.judge_torch_build({"cuda": None}, has_gpu=False), "ok", "CPU", ""),
        (
            parts.judge_torch_build({"cuda": "12.8", "gpu": False}, has_gpu=False),
            "warning",
            "no GPU",
            "whl/cpu",
        ),
        (
            parts.judge_torch_build({"cuda": "12.8", "gpu": False}, has_gpu=True),
            "warning",
            "can't use it",
            "driver",
        ),
        (parts.judge_torch_build({"cuda": "12.8", "gpu": True}, has_gpu=True), "ok", "GPU is here", ""),
        (parts.judge_torch_build({"cuda": None}, has_gpu=True), "warning", "GPU is here", "Jetson"),
        (
            local_data.judge_counts("x", {"a": 50, "b": 3}, (3, 8, 8)),
            "warning",
            "53 samples of 3x8x8",
            "Add samples of b",
        ),
    ],
)
def test_a_judgement_and_its_fix(finding, verdict, said, fix):
    assert finding.verdict == verdict
    assert said in finding.detail
    assert fix in finding.fix
    assert bool(finding.fix) == (verdict in ("warning", "failed"))


def test_how_a_wheel_dies_in_its_child_is_told_apart(monkeypatch):
    monkeypatch.setattr(parts, "TRY_S", 60.0)
    kill = "import os, signal; os.kill(os.getpid(), signal.{}); version = 0"
    results = dict(
        parts.try_in_children(
            {
                "good": "version = '1.2'",
                "old processor": kill.format("SIGILL"),
                "no memory": kill.format("SIGKILL"),
                "broken": kill.format("SIGSEGV"),
                "not whole": "import a_package_that_is_not_there as x; version = x",
            }
        )
    )
    monkeypatch.setattr(parts, "TRY_S", 0.3)
    results |= dict(parts.try_in_children({"slow": "import time; time.sleep(60); version = 0"}))
    found = {name: parts.judge_trial(name, *result) for name, result in results.items()}
    assert found["good"] == Finding("good", "ok", "1.2 runs here")
    assert "SIGILL" in found["old processor"].detail
    assert "older release" in found["old processor"].fix
    assert "memory" in found["no memory"].detail
    assert f"signal {int(signal.SIGSEGV)}" in found["broken"].detail
    assert "a_package_that_is_not_there" in found["not whole"].detail
    assert found["slow"].verdict == "warning"


def test_the_parts_of_this_machine_run(monkeypatch):
    monkeypatch.setattr(parts, "TRY_S", 120.0)
    found = {finding.check: finding.verdict for finding in parts.check_parts()}
    assert (found["numpy"], found["onnxruntime"], found["torch"]) == ("ok", "ok", "ok")


def test_a_package_of_the_base_that_is_missing_fails(monkeypatch):
    monkeypatch.setattr(parts, "_is_there", lambda name: name not in ("numpy", "torch", "onnxruntime"))
    found = {finding.check: finding for finding in parts.check_parts()}
    assert found["onnxruntime"].verdict == "failed"
    assert "pip install" in found["onnxruntime"].fix
    assert "torch" not in found, "an extra that is not installed is no fault"
    assert "not installed: agent" in found["parts"].detail


def test_data_are_counted_by_class(tmp_path):
    (found,) = local_data.check_data("digits")
    assert found.verdict == "ok"
    assert "1797 samples of 1x8x8: 0 178, 1 182" in found.detail
    (found,) = local_data.check_data("")
    assert found.verdict == "skipped"
    (found,) = local_data.check_data("folder:nowhere")
    assert (found.verdict, bool(found.fix)) == ("failed", True)
    (found,) = local_data.check_data("fodler:x")
    assert "Did you mean 'folder'" in found.fix
    (tmp_path / "r.csv").write_text("1,2,hot\n" * 12 + "3,4,cold\n" * 11)
    (found,) = local_data.check_data("csv:r.csv")
    assert "23 samples of 2: cold 11, hot 12" in found.detail


def test_a_folder_of_pictures_is_counted_without_decoding_all(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, size in (("cat", 8), ("dog", 8)):
        (tmp_path / "p" / name).mkdir(parents=True)
        for i in range(12):
            path = tmp_path / "p" / name / f"{i}.png"
            image.fromarray(np.zeros((size, size, 3), np.uint8)).save(path)
    (tmp_path / "p" / "dog" / "9.png").write_bytes(b"not decoded")
    (found,) = local_data.check_data("folder:p")
    assert found.verdict == "ok", found
    assert "24 samples of 3x8x8: cat 12, dog 12" in found.detail


def test_doctor_on_this_machine_in_time(capsys):
    start_s = sum(os.times()[:4])  # of processors, its children's included
    assert main(["doctor", "--data", "digits", "--json"]) == 0
    assert sum(os.times()[:4]) - start_s < 20
    told = json.loads(capsys.readouterr().out)
    assert told["success"] is True
    checks = [finding["check"] for finding in told["findings"]]
    assert checks[:7] == ["system", "python", "environment", "disk", "storage", "memory", "heat"]
    assert checks[-1] == "data"
    assert all(f["fix"] for f in told["findings"] if f["verdict"] in ("warning", "failed"))


@pytest.fixture
def no_parts(monkeypatch):
    """The trials of compiled packages take seconds and are tested above."""
    monkeypatch.setattr(parts, "check_parts", list)


@pytest.mark.usefixtures("no_parts")
def test_a_broker_alone_that_fails_is_told_by_the_status(capsys):
    broker = ["--broker", f"127.0.0.1:{free_port()}"]
    assert main(["doctor", "--data", "digits", *broker]) == 4
    told = capsys.readouterr().out
    assert "failed   broker: tcp" in told
    assert "fix: Start the broker" in told
    assert main(["doctor", "--data", "folder:nowhere", *broker, "--json"]) == 6
    told = json.loads(capsys.readouterr().out)
    assert (told["success"], told["error"]["code"]) == (False, "HSEE-E600")


@pytest.mark.usefixtures("no_parts")
@pytest.mark.needs_mosquitto
def test_the_broker_is_judged_by_stage_unless_an_agent_would_be_cut_off(
    mosquitto, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("toolkit.access.broker_check.STALL_S", 30.0)
    words = ["doctor", "--broker", f"127.0.0.1:{mosquitto.address.port}", "--json"]
    assert main(words) == 0
    checks = [finding["check"] for finding in json.loads(capsys.readouterr().out)["findings"]]
    assert {"broker: tcp", "broker: login", "broker: own topics", "broker: packet size"} <= set(checks)
    (tmp_path / "hsee.toml").write_text('[device]\nid = "ant"\n')
    (tmp_path / "runs").mkdir()
    held = HeldIdentity(tmp_path / "runs", fleet="home", device="ant")
    assert main(words) == 0
    held.close()
    found = {f["check"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert "an agent runs with this account now" in found["broker: login"]["detail"]
    assert found["broker: tcp"]["verdict"] == "ok"
    assert "broker: own topics" not in found
    (tmp_path / "hsee.toml").write_text('[broker]\nusername = "coord-r1"\n')
    run = RunFolder(tmp_path / "runs" / "r1", "r1")
    assert main(words) == 0
    run.close()
    found = {f["check"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert "a coordinator runs with this account now" in found["broker: login"]["detail"]


LINES_TO_MASK = """\
password = "correct horse"
broker_password: 'battery staple'
{"token": "abcdef123456", "n": 1}
api_key=KEY0123456789
mqtt://joe:opensesame@192.0.2.1:1883
"""
SECRETS = ("correct horse", "battery staple", "abcdef123456", "KEY0123456789", "opensesame")


def test_masks_cover_what_is_named_like_a_secret_and_leave_the_rest():
    key = authority.make_authority("home").key.decode()
    masked = mask(LINES_TO_MASK + key + 'password_file = "password"\nlr = 0.05\n', [])
    for secret in (*SECRETS, key.splitlines()[1]):
        assert secret not in masked
    assert masked.endswith('password_file = "password"\nlr = 0.05\n')
    assert json.loads(masked.splitlines()[2]) == {"token": MASK, "n": 1}


@pytest.mark.usefixtures("no_parts")
def test_the_archive_holds_no_secret(tmp_path, monkeypatch, capsys):
    from_variable, from_file = generate_password(), generate_password()
    monkeypatch.setenv("HSEE_BROKER_PASSWORD", from_variable)
    (tmp_path / "password").write_text(f"{from_file}\n")
    (tmp_path / "password").chmod(0o600)
    (tmp_path / "hsee.toml").write_text(f'[broker]\npassword_file = "password"\n# old: {from_file}\n')
    run = tmp_path / "runs" / "r1"
    (run / "devices/ant").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "metrics.csv").write_text("round,loss\n1,2.3\n")
    (run / "coordinator.log").write_text(f"logged in with {from_variable}\n{LINES_TO_MASK}")
    (run / "devices/ant/agent.log").write_text("x" * 300_000 + f"\npassword={from_file}\n")
    assert main(["doctor", "--data", "digits", "--bundle", "support.tar.gz"]) == 0
    with tarfile.open("support.tar.gz") as archive:
        texts = {m.name: archive.extractfile(m).read().decode() for m in archive.getmembers()}
    for secret in (from_variable, from_file, *SECRETS):
        assert [name for name, text in texts.items() if secret in text] == []
    assert texts["hsee-support/run/r1/metrics.csv"] == "round,loss\n1,2.3\n"
    assert 'password_file = "password"' in texts["hsee-support/hsee.toml"]
    assert len(texts["hsee-support/run/r1/devices/ant/agent.log"]) < 300_000
    assert json.loads(texts["hsee-support/findings.json"])[0]["check"] == "system"
    assert "numpy" in texts["hsee-support/packages.txt"]
    assert (tmp_path / "support.tar.gz").stat().st_mode & 0o077 == 0
    assert "look through it" in capsys.readouterr().out
    assert main(["doctor", "--bundle", "support.tar.gz"]) == 2


def test_an_archive_that_would_hold_a_secret_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("toolkit.doctor.support_archive.mask", lambda text, _: text)
    env = {"HSEE_BROKER_PASSWORD": generate_password()}
    with pytest.raises(MachineError, match="would hold a password"):
        write_archive(tmp_path / "a.tar.gz", load_config(env={}), [], env=env)
    assert not (tmp_path / "a.tar.gz").exists()
