"""The README's first screen: two commands, and CI runs the same two."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command_blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)


def test_the_first_two_blocks_install_and_test():
    first, second, *_ = command_blocks()
    assert first.startswith("python3 -m venv .venv")
    assert ".venv/bin/pip install -e '.[all]'" in first
    assert first.rstrip().endswith(".venv/bin/hsee demo")
    assert ".venv/bin/pip install -e '.[all,dev]'" in second
    assert second.rstrip().endswith(".venv/bin/python -m pytest -n 2 --dist loadfile")


def test_ci_runs_the_readme_s_own_commands():
    listed = subprocess.run(
        [ROOT / ".ci" / "run", "--list"], capture_output=True, text=True, check=True
    ).stdout
    assert listed == "".join(command_blocks()[:2])


def test_the_two_commands_stand_on_the_first_screen():
    lines = (ROOT / "README.md").read_text().splitlines()
    second = [n for n, line in enumerate(lines) if line == "```sh"][1]
    assert second < 45
