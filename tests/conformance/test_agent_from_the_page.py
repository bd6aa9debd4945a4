"""PROTOCOL.md is enough to write an agent from: one of the standard library alone speaks to the real coordinator."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.agent_from_the_page import N_TRAIN
from tests.e2e.processes import Hsee
from toolkit.conformance.__main__ import check
from toolkit.wire.messages import Fenced, Refusal
from toolkit.wire.topics import Topics

pytestmark = pytest.mark.needs_mosquitto

AGENT = Path(__file__).with_name("agent_from_the_page.py")
PACE = 6.0


@pytest.fixture
def hsee(tmp_path):
    started = Hsee(tmp_path)
    yield started
    started.kill_all()


def start(address, *words):
    place = (address.host, str(address.port), "bare", "home")
    return subprocess.Popen([sys.executable, AGENT, *place, *words], stdout=subprocess.PIPE, text=True)


def test_it_takes_nothing_but_the_standard_library():
    imported = {
        alias.name.partition(".")[0]
        for node in ast.walk(ast.parse(AGENT.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in (node.names if isinstance(node, ast.Import) else [ast.alias(node.module)])
    }
    assert imported <= sys.stdlib_module_names


def test_it_trains_a_run_of_the_real_coordinator(hsee, mosquitto):
    words = ("--run", "r1", "--devices", 1, "--rounds", 3, "--model", "mlp")
    coordinator = hsee.coordinator(mosquitto.address.port, *words)
    agent = start(mosquitto.address)
    try:
        assert coordinator.end() == 0, coordinator.describe()
        assert agent.communicate(timeout=30)[0] == "finished\n"
    finally:
        agent.kill()
    (report,) = [event for event in coordinator.events if event.get("round") == 3]
    (device,) = report["devices"]
    assert (device["n_steps"], device["n_void"]) == (-(-N_TRAIN // 32), 0)
    # Activations and labels arrive as they were made: the rest of the network learns from them.
    assert device["server_accuracy"] > 0.5


@pytest.mark.parametrize("dismissal", [None, Fenced, Refusal])
def test_it_passes_the_conformance_check(mosquitto, dismissal):
    agent = start(mosquitto.address, str(PACE))
    try:
        findings = check(
            mosquitto.address,
            topics=Topics("home"),
            device="bare",
            model="mlp",
            cut="hidden1",
            codec="float32",
            batch_size=16,
            cap_s=20.0,
            pace=PACE,
            dismissal=dismissal,
        )
        assert [finding for finding in findings if finding.verdict == "failed"] == []
        assert findings
        ended = agent.communicate(timeout=30)[0]
    finally:
        agent.kill()
    assert ended == {None: "finished\n", Fenced: "fenced\n", Refusal: "refused\n"}[dismissal]
