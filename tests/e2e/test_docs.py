"""Every command block of the documents is run by a test, or says why not; the tutorial is run here, whole."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.mosquitto import find_mosquitto, free_port

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"(?P<mark><!-- not run: (?P<why>[^\n]+?) -->\n\s*)?^ *```(?P<kind>sh|console)\n(?P<text>.*?)^ *```",
    re.DOTALL | re.MULTILINE,
)
RUN_BY = {
    "README.md": {"sh": "tests/layout/test_readme.py and CI run the first two"},
    "docs/broker.md": {"sh": "tests/integration/test_broker_init.py"},
    "docs/strategies.md": {"sh": "tests/layout/test_strategies_page.py"},
    "docs/tutorial.md": {"sh": "this file"},
}
"""Documents whose blocks of a kind are run as they stand."""
TUTORIAL_CAP_S = 400
AWHILE = "sleep 1\n"


def pages() -> list[Path]:
    made = {"decisions", "results"}  # figures and reasons, each with its own rules
    return [
        ROOT / "README.md",
        *(page for page in sorted((ROOT / "docs").rglob("*.md")) if made.isdisjoint(page.parts)),
    ]


def blocks(page: Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(page.read_text()))


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_command_block_is_run_or_says_why_not(page):
    kinds = RUN_BY.get(page.relative_to(ROOT).as_posix(), {})
    unsaid = [b["text"] for b in blocks(page) if not b["why"] and b["kind"] not in kinds]
    assert unsaid == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_link_between_documents_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_every_command_that_is_named_exists(page):
    """``hsee noun verb`` in a document is a command of this version."""
    import typer.main

    from toolkit.cli.app import app

    tree = typer.main.get_command(app)
    for words in re.findall(r"`hsee ((?:[a-z]+ ?)+)", page.read_text()):
        here, names = tree, words.split()
        while names and hasattr(here, "commands"):
            assert names[0] in here.commands, f"hsee {words}"
            here = here.commands[names.pop(0)]


@pytest.mark.needs_mosquitto
@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
@pytest.mark.timeout(TUTORIAL_CAP_S + 20)
def test_the_tutorial_works_as_it_stands(tmp_path):
    script = "".join(b["text"] for b in blocks(ROOT / "docs/tutorial.md") if not b["why"])
    port = free_port()
    script = script.replace("--port 18883", f"--port {port}")
    assert AWHILE in script  # enough for whoever types; a machine that does much else waits for the broker
    script = script.replace(AWHILE, f"until (: < /dev/tcp/localhost/{port}) 2>&-; do sleep 0.1; done\n")
    (tmp_path / "bin").mkdir()
    for name, words in (("hsee", "-m toolkit.cli.entry "), ("python3", "")):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}:$PYTHONPATH" exec {sys.executable} {words}"$@"\n')
        program.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HSEE_")}
    env = clean | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(tmp_path),
        "PYTHONPATH": "",
    }
    log = tmp_path / "log"
    with log.open("wb") as out:
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            stdout=out,
            stderr=out,
            cwd=work,
            env=env,
            start_new_session=True,
        )
        try:
            status = shell.wait(TUTORIAL_CAP_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    said = log.read_text()
    agents = "\n".join(path.read_text() for path in work.glob("broker/accounts/*/agent.log"))
    assert status == 0, said + agents
    assert "Traceback" not in said + agents
    assert re.search(r"^.*0\.png .*\b(stands|dot|lies)\b", said, re.MULTILINE), said
