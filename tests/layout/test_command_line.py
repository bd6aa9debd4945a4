"""The frame around every command: help, exit statuses, errors as text and as JSON, signals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from typing import IO

import pytest
import typer.main
from typer.testing import CliRunner

from toolkit import __version__
from toolkit.cli import output
from toolkit.cli.app import app
from toolkit.cli.entry import main

ROOT = Path(__file__).parents[2]


FULL = Path("/dev/full")
"""A disk that never has any room."""


@pytest.fixture
def hsee(tmp_path):
    """Run the console script in an empty folder, with no settings of this machine."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HSEE_")}

    def run(*words: str, output: int | IO[str] = PIPE, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "toolkit.cli.entry", *words],
            stdout=output,
            stderr=PIPE,
            text=True,
            check=False,
            cwd=tmp_path,
            env=clean | {"XDG_CONFIG_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)} | env,
        )

    return run


def every_command() -> list[tuple[str, ...]]:
    paths, todo = [], [((), typer.main.get_command(app))]
    while todo:
        path, command = todo.pop()
        paths.append(path)
        todo += [((*path, name), child) for name, child in getattr(command, "commands", {}).items()]
    return sorted(paths)


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_explains_itself(path, flag):
    answer = CliRunner().invoke(app, [*path, flag])
    assert answer.exit_code == 0, answer.output
    assert "usage" in answer.output.lower()


@pytest.mark.skipif(not FULL.exists(), reason=f"there is no {FULL}")
@pytest.mark.parametrize("words", [("--version",), ("run", "list"), ("run", "list", "--json")], ids=" ".join)
def test_output_that_a_full_disk_does_not_take(hsee, words):
    with FULL.open("w") as full:
        answer = hsee(*words, output=full)
    assert answer.returncode == 6
    assert answer.stderr.startswith(
        "error: What this command prints can't be written: No space left on device."
    )
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(hsee, flag):
    assert hsee(flag).stdout == f"hsee {__version__}\n"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["confg"], 2, "Did you mean 'config'? (HSEE-E200)\nfix:   hsee -h"),
        (["config", "show", "--orgin"], 2, "--orgin"),
        (["config", "show", "--set", "run.ronds=3"], 3, "Did you mean 'rounds'?"),
    ],
)
def test_a_mistake_is_told_with_its_fix_and_no_traceback(hsee, words, status, said):
    done = hsee(*words)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_brings_the_traceback(hsee):
    done = hsee("config", "show", "--set", "run.ronds=3", HSEE_DEBUG="1")
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert "error: " in done.stderr


@pytest.mark.parametrize(
    ("words", "code"), [(["config", "show", "--set", "x"], "HSEE-E300"), (["config", "shw"], "HSEE-E200")]
)
def test_with_json_an_error_is_json_on_stdout(hsee, words, code):
    done = hsee(*words, "--json")
    told = json.loads(done.stdout)
    assert told["success"] is False
    assert told["error"]["code"] == code
    assert set(told["error"]) == {"code", "message", "hint"}
    assert done.stderr == ""


def test_no_command_prints_help_and_is_a_usage_error(hsee):
    done = hsee()
    assert done.returncode == 2
    assert "Usage: hsee" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "terminate"]
)
def test_a_signal_unwinds_and_sets_the_status(number, status):
    code = (
        "import sys, time\nfrom toolkit.cli import entry\n"
        "def work(words):\n"
        "    try:\n        print('ready', flush=True); time.sleep(60)\n"
        "    finally:\n        print('cleaned', flush=True)\n"
        "entry._run = work\nsys.exit(entry.main([]))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        assert child.stdout.read() == "cleaned\n"
    assert child.returncode == status


def test_a_reader_that_goes_away_is_no_error():
    code = (
        "import sys\nfrom toolkit.cli import entry\n"
        "def work(words):\n    while True: print('line')\n"
        "entry._run = work\nsys.exit(entry.main([]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == ""


def test_config_show_tells_values_and_origins(hsee, tmp_path):
    (tmp_path / "hsee.toml").write_text("[run]\nrounds = 3\n")
    done = hsee("config", "show", "--origin", "--json", "--set", "run.seed=7", HSEE_FLEET_NAME="yard")
    told = json.loads(done.stdout)
    assert told["success"] is True
    assert told["settings"]["run"]["rounds"] == 3
    assert told["origins"]["run.rounds"] == {"kind": "file", "where": "hsee.toml", "line": 2}
    assert told["origins"]["fleet.name"]["where"] == "HSEE_FLEET_NAME"
    assert told["origins"]["run.seed"]["kind"] == "flag"
    plain = hsee("config", "show", "--origin").stdout.splitlines()
    assert ["run.rounds", "3", "hsee.toml:2"] in [line.split() for line in plain]


def test_config_check_and_schema(hsee):
    checked = json.loads(hsee("config", "check", "--json").stdout)
    assert checked["settings_given"] == 0
    assert hsee("config", "check").stdout.endswith("Settings given: 0.\n")
    schema = json.loads(hsee("config", "schema", "--json").stdout)["schema"]
    assert schema["$defs"]["Run"]["properties"]["rounds"]["minimum"] == 1
    assert "run.rounds" in hsee("config", "schema").stdout


def test_plain_tables_align_numbers_to_the_right(capsys):
    output.table(["name", "n", "note"], [["a", 5, None], ["long [name]", 1234, "x"]], title="Boards")
    assert capsys.readouterr().out == (
        "Boards\nname            n  note\na               5\nlong [name]  1234  x\n"
    )


def test_tables_on_a_terminal_keep_brackets_and_obey_no_color(capsys, monkeypatch):
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    output.table(["section"], [["[run]"]])
    printed = capsys.readouterr().out
    assert "[run]" in printed
    assert "\x1b[3" not in printed


def test_main_takes_its_words_as_an_argument(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hsee {__version__}\n"
