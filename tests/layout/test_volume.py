"""-q and -v: the same two letters wherever a command tells what happens, and what they do."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.e2e.processes import Hsee, wait_until
from tests.e2e.test_help import leaves
from tests.mosquitto import free_port
from toolkit.cli.entry import main

TALKERS = {
    "agent start": "qv",
    "broker invite": "q",
    "bundle receive": "qv",
    "bundle send": "qv",
    "coordinator serve": "qv",
    "coordinator start": "qv",
    "demo": "q",
    "infer": "q",
    "profile": "q",
    "run resume": "qv",
    "simulate": "qv",
}
"""Commands that tell what happens while they work; -v where they hold a connection."""
LONG = {"q": "--quiet", "v": "--verbose"}


def help_of(path: tuple[str, ...], capsys) -> str:
    with suppress(SystemExit):
        main([*path, "-h"])
    return capsys.readouterr().out


@pytest.mark.parametrize("path", leaves(), ids=" ".join)
def test_a_command_takes_them_if_it_tells_what_happens(path, capsys):
    text = help_of(path, capsys)
    taken = "".join(letter for letter, word in LONG.items() if word in text)
    assert taken == TALKERS.get(" ".join(path), "")
    assert all(f"-{letter}" in text for letter in taken)


@pytest.mark.parametrize("command", [name for name, letters in TALKERS.items() if letters == "qv"])
def test_less_and_more_at_once_is_a_mistake(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = {
        "bundle send": ["none.hsee", "--to", "dev1"],
        "bundle receive": ["--into", "place", "--allow-unsigned"],
        "run resume": ["none"],
        "coordinator serve": ["none"],
    }.get(command, [])
    for letters in (["-q", "-v"], ["-v", "-q"]):
        assert main([*command.split(), *words, *letters]) == 2
        said = capsys.readouterr().err
        assert "less" in said or "not allowed with" in said


@pytest.fixture
def hsee(tmp_path):
    started = Hsee(tmp_path)
    yield started
    started.kill_all()


def test_quiet_is_the_result_alone(hsee):
    words = [
        "simulate",
        "--devices",
        "2",
        "--model",
        "mlp",
        "--data",
        "digits",
        "--cuts",
        "hidden1",
        "--rounds",
        "1",
    ]
    quiet = hsee.run(*words, "-q", "-o", "quiet")
    assert quiet.end() == 0, quiet.describe()
    assert "round 1/1" not in quiet.out
    assert "device" in quiet.out


def test_verbose_shows_the_connections(hsee):
    nobody = f"127.0.0.1:{free_port()}"
    words = ["bundle", "receive", "--into", "place", "--allow-unsigned", "--broker", nobody, "--id", "dev1"]
    told = hsee.start(*words, "-v")
    plain = hsee.start(*words)
    wait_until(lambda: f"connecting to mqtt://{nobody}" in told.err, told.describe)
    wait_until(lambda: "Trying again in" in told.err, told.describe)
    wait_until(lambda: plain.err or plain.out, plain.describe)
    assert "connecting to" not in plain.err
