"""An optional package that is not installed is one sentence and the command that installs it, never a traceback."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from toolkit.cli.entry import PARTS

ROOT = Path(__file__).parents[2]
DISTRIBUTION = {"PIL": "pillow", "cv2": "opencv-python-headless", "paho": "paho-mqtt"}


def run_without(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.modules[{module!r}] = None; from toolkit.cli.entry import main;"
        f" sys.exit(main({list(words)!r}))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )


@pytest.mark.parametrize(
    ("module", "words", "part"),
    [
        ("zstandard", ("agent", "start", "--data", "digits", "--id", "x"), "agent"),
        ("zstandard", ("profile", "--model", "mlp", "--input", "10", "--classes", "3"), "agent"),
        ("torch", ("model", "show", "mlp", "--input", "10", "--classes", "3"), "agent"),
    ],
)
def test_a_missing_package_names_its_part(module, words, part):
    done = run_without(module, *words)
    assert done.returncode == 6, done.stderr
    assert "Traceback" not in done.stderr
    assert f"hsee[{part}]" in done.stderr


@pytest.mark.parametrize("module", sorted(PARTS))
def test_the_parts_bring_what_they_are_named_for(module):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(need.startswith(DISTRIBUTION.get(module, module)) for need in extras[PARTS[module]])
