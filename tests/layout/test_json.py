"""``--json`` of every command: one envelope for mistakes, and a schema for what it answers.

A command whose answer takes a run, a broker or a board is held elsewhere; the table says where, so that none is forgotten.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from tests.e2e.test_help import leaves
from tests.layout.answers import ANSWERS, FOLDER, LINES, Failure, check_answer, schema_files
from tests.tiny_bundles import manifest_of, scaling_onnx, scaling_segment
from toolkit.bundle.archive import write_archive
from toolkit.bundle.folder import open_bundle, write_bundle
from toolkit.cli.entry import main

ROOT = Path(__file__).parents[2]
WORDS = {
    "init": "",
    "config show": "--origin",
    "config check": "",
    "config schema": "",
    "model show": "mlp --input 10 --classes 3",
    "broker init": "--host localhost --device dev1",
    "broker renew": "",
    "agent install": "--dry-run",
    "agent status": "ant",
    "agent uninstall": "ant --dry-run",
    "bundle show": "bundle",
    "bundle key": "operator",
    "run list": "",
    "device list": "",
    "infer": "bundle samples.csv",
    "doctor": "--data digits",
}
"""Words of a command that answers at once."""
HELD_BY = {
    "bundle install": "tests/layout/test_json.py",
    "bundle receive": "tests/integration/test_delivery.py",
    "bundle revert": "tests/layout/test_json.py",
    "bundle send": "tests/integration/test_delivery.py",
    "bundle sign": "tests/layout/test_json.py",
    "bundle trust": "tests/layout/test_json.py",
    "agent join": "tests/integration/test_join.py",
    "agent start": "tests/e2e/test_by_hand.py",
    "broker check": "tests/integration/test_broker_check.py",
    "broker invite": "tests/integration/test_join.py",
    "broker user add": "tests/integration/test_broker_init.py",
    "broker user list": "tests/integration/test_broker_init.py",
    "broker user remove": "tests/integration/test_broker_init.py",
    "broker user refresh": "tests/integration/test_broker_init.py",
    "calibrate": "tests/unit/test_calibrate.py",
    "coordinator serve": "tests/integration/test_offload.py",
    "coordinator start": "tests/e2e/test_by_hand.py",
    "demo": "tests/e2e/test_demo.py",
    "device group": "tests/e2e/test_watching.py",
    "device remove": "tests/e2e/test_watching.py",
    "device rename": "tests/e2e/test_watching.py",
    "device show": "tests/e2e/test_watching.py",
    "export": "tests/e2e/test_by_hand.py",
    "logs": "tests/e2e/test_watching.py",
    "plan": "tests/unit/test_profile_commands.py",
    "profile": "tests/unit/test_profile_commands.py",
    "run compare": "tests/unit/test_run_commands.py",
    "run export": "tests/unit/test_run_commands.py",
    "run resume": "tests/faults/replay.py",
    "run rewind": "tests/unit/test_run_folder.py",
    "run show": "tests/unit/test_plots.py",
    "simulate": "tests/integration/test_simulate.py",
    "status": "tests/e2e/test_watching.py",
}
"""Tests that read what a command answers in JSON."""


pytestmark = pytest.mark.usefixtures("roomy_machine")


@pytest.fixture(autouse=True)
def in_a_folder_with_a_bundle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr("toolkit.doctor.parts.check_parts", list)
    write_bundle(tmp_path / "bundle", manifest_of(scaling_segment(1)), {"segment1.onnx": scaling_onnx(1.0)})
    (tmp_path / "samples.csv").write_text("1,2,3\n")


def told(capsys, words):
    """What a command prints in JSON; nothing else stands on standard output."""
    try:
        status = main(words)
    except SystemExit as left:
        status = left.code
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return status, said.out


@pytest.mark.parametrize("path", leaves(), ids=" ".join)
def test_a_mistake_is_the_same_object_everywhere(path, capsys):
    status, said = told(capsys, [*path, "--json", "--no-such-option"])
    refusal = msgspec.json.decode(said, type=Failure)
    assert (status, refusal.success, refusal.error.code) == (2, False, "HSEE-E200")
    assert refusal.error.message
    assert refusal.error.hint


@pytest.mark.parametrize("command", WORDS)
def test_an_answer_is_what_its_schema_says(command, capsys):
    words = WORDS[command]
    if command == "broker renew":
        assert main(["broker", "init", "--host", "localhost", "--json"]) == 0
        capsys.readouterr()
    behind = ["--", "--data", "digits", "--id", "ant"] if command == "agent install" else []
    status, said = told(capsys, [*command.split(), *words.split(), "--json", *behind])
    decoded = msgspec.json.decode(said, type=ANSWERS[command])
    assert decoded.success is True
    assert status == (1 if command == "agent status" else 0), said


def test_every_command_has_a_schema_or_prints_lines_and_is_held_by_a_test():
    commands = {" ".join(path) for path in leaves()}
    assert commands == set(ANSWERS) | LINES
    assert set(ANSWERS).isdisjoint(LINES)
    assert commands == set(WORDS) | set(HELD_BY)


def test_the_published_schemas_are_these():
    """Again after a change: python -m tests.layout.answers."""
    published = {path.name: path.read_text() for path in FOLDER.iterdir()}
    assert published == schema_files()


def test_an_answer_with_one_key_more_or_less_is_found():
    said = {"success": True, "device": "ant", "label": "door"}
    words = ["device", "rename", "ant", "door", "--json"]
    check_answer(words, json.dumps(said))
    for wrong in ({**said, "more": 1}, {"success": True, "device": "ant"}, {**said, "label": 5}):
        with pytest.raises(msgspec.ValidationError):
            check_answer(words, json.dumps(wrong))


@pytest.mark.parametrize("command", HELD_BY)
def test_what_is_held_elsewhere_is_held_there(command):
    text = (ROOT / HELD_BY[command]).read_text()
    assert "json" in text


def test_a_bundle_from_its_key_to_its_place(tmp_path, capsys):
    """Signing, pinning, installing and going back answer objects that say what was done."""
    for words in ("bundle key operator", "bundle sign --key operator bundle", "bundle trust operator.pub"):
        hold(capsys, words)
    write_archive(open_bundle(tmp_path / "bundle"), tmp_path / "one.hsee")
    hold(capsys, "bundle install one.hsee --into place --id dev1")
    status, said = told(capsys, ["bundle", "revert", "place", "--json"])
    assert json.loads(said)["success"] is (status == 0)


def hold(capsys, line):
    """Run a command and hold its answer to its schema."""
    words = [*line.split(), "--json"]
    status, said = told(capsys, words)
    assert status == 0, said
    check_answer(words, said)
