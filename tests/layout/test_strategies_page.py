"""``docs/strategies.md``: its files are written as they stand there, and its commands are run."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.strategy.base import DeviceProgress, RoundView
from coordinator.strategy.catalogue import make_strategy
from toolkit.errors import StrategyError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "strategies.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE))
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]


def run(command, folder):
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "toolkit.cli.entry", *shlex.split(command)[1:]],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "XDG_CONFIG_HOME": str(folder)},
    )


def test_the_page_has_a_strategy_of_thirty_lines_a_model_and_data():
    assert list(FILES) == ["my_strategy.py", "my_model.py", "my_data.py"]
    assert len(FILES["my_strategy.py"].splitlines()) <= 32
    assert len(COMMANDS) == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_does_what_it_shows(command, tmp_path):
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_cap_holds(tmp_path, monkeypatch):
    (tmp_path / "my_strategy.py").write_text(FILES["my_strategy.py"])
    monkeypatch.syspath_prepend(tmp_path)
    devices = tuple(
        DeviceProgress(name, n_owed=4, n_applied=n > 0, n_ready=0, n_samples=n)
        for name, n in (("few", 8), ("many", 500), ("none", 0))
    )
    capped = make_strategy("python:my_strategy:Capped", {"cap": 32})
    assert capped.weights(RoundView(round=1, seed=0, devices=devices)) == {"few": 8, "many": 32}
    with pytest.raises(StrategyError, match="expected a whole number"):
        make_strategy("python:my_strategy:Capped", {"cap": "many"})
