"""Shell completion as a user sets it up, in a real bash, zsh and fish: the printed script, and what hsee installs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASH = """\
source ./script
COMP_WORDS=({words}) COMP_CWORD={at}
_hsee_completion hsee
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
# zsh fills in only at a prompt, so this one types into a terminal of its own and presses the tab key.
ZSH = """\
zmodload zsh/zpty
zpty shell zsh {options} -i
zpty -w shell 'PS1= ; {setup}; setopt no_always_to_end; print READY'
zpty -r -m shell line '*READY*READY*' || true
zpty -w -n shell $'{typed}\\t'
sleep 0.1
for i in {{1..200}}; do
  zpty -r -t shell more && said+=$more
  [[ $said == *{expected}* ]] && break
  sleep 0.1
done
print -r -- "$said"
zpty -d shell
"""


@pytest.fixture
def shell(tmp_path):
    """Run a script in a shell whose ``hsee`` is this tree's; the completion script lies beside it."""
    (tmp_path / "bin").mkdir()
    hsee = tmp_path / "bin/hsee"
    hsee.write_text(f'#!/bin/sh\nexec {sys.executable} -m toolkit.cli.entry "$@"\n')
    hsee.chmod(0o755)

    def run(program: str, script: str) -> str:
        env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
        asked = env | {"_HSEE_COMPLETE": f"source_{program}"}
        shown = subprocess.run(["hsee"], env=asked, capture_output=True, text=True, check=True)
        (tmp_path / "script").write_text(shown.stdout)
        done = subprocess.run(
            [program, "-c", script],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("hsee bro", {"broker"}),
        ("hsee broker u", {"user"}),
        ("hsee agent in", {"install"}),
        ("hsee broker init --ho", {"--host"}),
        ("hsee broker user ''", {"add", "remove", "list", "refresh"}),
    ],
)
def test_bash_completes_commands_and_options(shell, words, found):
    said = shell("bash", BASH.format(words=words, at=len(words.split()) - 1))
    assert set(said.split()) == found


def test_zsh_completes_a_command(shell):
    setup = "autoload -Uz compinit && compinit -u -d dump; source ./script"
    said = shell("zsh", ZSH.format(typed="hsee broker inv", expected="invite", options="-f", setup=setup))
    assert "invite" in said


def test_fish_completes_a_command(shell):
    said = shell("fish", "source ./script; complete -C 'hsee broker inv'")
    assert said.split()[0] == "invite"


INSTALLED = {
    "bash": "source .bashrc; " + BASH.format(words="hsee broker inv", at=2).replace("source ./script\n", ""),
    # Not by a tab: the first in a new zsh only loads the function, because typer's file defines it and does not call it.
    "zsh": """zsh -ic 'print $_comps[hsee]; autoload +X _hsee; functions _hsee' | tr '\n' ' '; hsee broker -h""",
    "fish": "complete -C 'hsee broker inv'",
}
"""What a new shell does that starts in the home where completion was installed."""


@pytest.mark.parametrize("program", INSTALLED)
def test_what_is_installed_completes_in_a_new_shell(shell, tmp_path, monkeypatch, program):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ZDOTDIR", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    # Two commands: a shell that runs one alone becomes it, and nobody could tell which shell it was.
    told = shell(program, "hsee --install-completion; true")
    assert f"{program} completion installed in {tmp_path}" in told
    shown = shell(program, "hsee --show-completion; true")
    assert "_HSEE_COMPLETE" in shown
    said = shell(program, INSTALLED[program])
    assert "invite" in said
    assert program != "zsh" or (said.startswith("_hsee ") and "complete_zsh" in said)
