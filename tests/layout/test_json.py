"""``--json`` of every command: one envelope for mistakes, and a schema for what it answers.

A command whose answer takes a run, a broker or a board is held elsewhere; the table says where, so that none is forgotten.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from tests.e2e.test_help import leaves
from tests.tiny_bundles import manifest_of, scaling_onnx, scaling_segment
from toolkit.bundle.archive import write_archive
from toolkit.bundle.folder import open_bundle, write_bundle
from toolkit.cli.entry import main
from toolkit.findings import Finding

ROOT = Path(__file__).parents[2]
Objects = list[dict[str, object]]


def answer(**fields: object) -> type[msgspec.Struct]:
    """A schema: these keys, of these types, and no others; one that may be absent ends in an underscore."""
    typed = [
        (name.removesuffix("_"), kind, *([None] if name.endswith("_") else []))
        for name, kind in fields.items()
    ]
    return msgspec.defstruct("Answer", [("success", bool), *typed], forbid_unknown_fields=True, kw_only=True)


class Told(msgspec.Struct, forbid_unknown_fields=True):
    code: str
    message: str
    hint: str


Refusal = answer(error=Told)
SCHEMAS = {
    "init": ("", answer(file=str, template=str, next=str)),
    "config show": (
        "--origin",
        answer(settings=dict[str, dict[str, object]], origins=dict[str, dict[str, object]]),
    ),
    "config check": ("", answer(files=dict[str, bool], settings_given=int, has_password=bool)),
    "config schema": ("", answer(schema=dict[str, object])),
    "model show": (
        "mlp --input 10 --classes 3",
        answer(model=dict[str, object], stages=Objects, flop=int, n_parameters=int),
    ),
    "broker init": (
        "--host localhost --device dev1",
        answer(
            folder=str,
            address=str,
            authority_sha256=str,
            accounts=list[dict[str, str]],
            verified=bool,
            start=tuple[str, str],
        ),
    ),
    "broker renew": ("", answer(folder=str, hosts=list[str])),
    "agent install": (
        "--dry-run",
        answer(unit=str, file=str, text=str, commands=list[str], installed=bool),
    ),
    "agent status": (
        "ant",
        answer(
            device=str,
            runs=bool,
            by_hand=bool,
            unit=str,
            installed=bool,
            state=str,
            detail=str,
            boots=bool,
            pid=int,
            n_restarts=int,
            memory_bytes=int,
            since=str,
        ),
    ),
    "agent uninstall": ("ant --dry-run", answer(unit=str, file=str, removed=bool)),
    "bundle show": (
        "bundle",
        answer(
            bundle=str,
            digest=str,
            n_bytes=int,
            exits=list[str],
            provenance=dict[str, object],
            signature_=dict[str, object] | None,
        ),
    ),
    "bundle key": ("operator", answer(key=str, public_key=str, name=str)),
    "run list": ("", answer(home=str, runs=Objects)),
    "device list": ("", answer(devices=Objects)),
    "infer": ("bundle samples.csv", answer(samples=Objects, summary=dict[str, object])),
    "doctor": ("--data digits", answer(findings=list[Finding])),
}
"""Words of a command that answers at once, and what it answers."""
HELD_BY = {
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
    "run resume": "tests/e2e/test_faults.py",
    "run rewind": "tests/unit/test_run_folder.py",
    "run show": "tests/unit/test_plots.py",
    "simulate": "tests/integration/test_simulate.py",
    "status": "tests/e2e/test_watching.py",
}
"""Tests that read what a command answers in JSON."""


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
    refusal = msgspec.json.decode(said, type=Refusal)
    assert (status, refusal.success, refusal.error.code) == (2, False, "HSEE-E200")
    assert refusal.error.message
    assert refusal.error.hint


@pytest.mark.parametrize("command", SCHEMAS)
def test_an_answer_is_what_its_schema_says(command, capsys):
    words, schema = SCHEMAS[command]
    if command == "broker renew":
        assert main(["broker", "init", "--host", "localhost", "--json"]) == 0
        capsys.readouterr()
    behind = ["--", "--data", "digits", "--id", "ant"] if command == "agent install" else []
    status, said = told(capsys, [*command.split(), *words.split(), "--json", *behind])
    decoded = msgspec.json.decode(said, type=schema)
    assert decoded.success is True
    assert status == (1 if command == "agent status" else 0), said


def test_every_command_is_held_by_a_schema_or_a_test():
    commands = {" ".join(path) for path in leaves()}
    unheld = {
        "bundle install",
        "bundle receive",
        "bundle revert",
        "bundle send",
        "bundle sign",
        "bundle trust",
    }
    assert commands - unheld == set(SCHEMAS) | set(HELD_BY)
    assert set(SCHEMAS).isdisjoint(HELD_BY)


@pytest.mark.parametrize("command", HELD_BY)
def test_what_is_held_elsewhere_is_held_there(command):
    text = (ROOT / HELD_BY[command]).read_text()
    assert "json" in text


def test_a_bundle_from_its_key_to_its_place(tmp_path, capsys):
    """Signing, pinning, installing and going back answer objects that say what was done."""
    rows = [
        ("bundle key operator", answer(key=str, public_key=str, name=str)),
        ("bundle sign --key operator bundle", None),
        ("bundle trust operator.pub", None),
    ]
    for words, schema in rows:
        status, said = told(capsys, [*words.split(), "--json"])
        decoded = json.loads(said)
        assert (status, decoded["success"]) == (0, True), said
        if schema is not None:
            msgspec.convert(decoded, schema)
    write_archive(open_bundle(tmp_path / "bundle"), tmp_path / "one.hsee")
    status, said = told(
        capsys, ["bundle", "install", "one.hsee", "--into", "place", "--id", "dev1", "--json"]
    )
    assert (status, json.loads(said)["success"]) == (0, True), said
    status, said = told(capsys, ["bundle", "revert", "place", "--json"])
    assert json.loads(said)["success"] is (status == 0)
