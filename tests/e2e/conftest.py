"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Hsee


@pytest.fixture
def hsee(tmp_path) -> Iterator[Hsee]:
    """Commands as processes in an empty folder; all are killed at the end."""
    started = Hsee(tmp_path)
    yield started
    started.kill_all()


@pytest.fixture(scope="session")
def profile(tmp_path_factory) -> Path:
    """This machine's profile for the runs of these tests; agents that bring it measure nothing."""
    started = Hsee(tmp_path_factory.mktemp("profile"))
    try:
        words = ("--model", "resnet_small", "--input", "1x8x8", "--classes", 10)
        done = started.run("profile", *words, "--quick", "-o", "board.toml")
        assert done.end() == 0, done.describe()
    finally:
        started.kill_all()
    return started.folder / "board.toml"
