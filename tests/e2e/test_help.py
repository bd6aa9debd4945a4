"""``-h`` of every command: what it does, and an example that begins with the command itself."""

import re

import pytest
import typer.main

from toolkit.cli.app import app
from toolkit.cli.entry import main


def leaves():
    """Words of every command that does something."""
    found, todo = [], [((), typer.main.get_command(app))]
    while todo:
        path, command = todo.pop()
        below = getattr(command, "commands", {})
        todo += [((*path, name), child) for name, child in below.items()]
        if not below:
            found.append(path)
    return sorted(found)


def help_of(path, capsys):
    try:
        status = main([*path, "-h"])
    except SystemExit as left:  # how argparse leaves
        status = left.code or 0
    assert status == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("path", leaves(), ids=" ".join)
def test_help_says_what_a_command_does_and_shows_it(path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = help_of(path, capsys)
    assert "--json" in text
    example = re.search(r"(?i)example:\s+(hsee [^\n]*)", text)
    assert example is not None, text
    assert example[1].split()[1 : 1 + len(path)] == list(path)


def test_the_agents_example_is_one_that_its_own_rules_allow(capsys):
    text = help_of(["agent", "start"], capsys)
    brokers = re.findall(r"--broker (\S+)", text.partition("example:")[2])
    assert brokers
    assert all(broker.startswith(("127.0.0.1", "mqtts://")) for broker in brokers)
