"""The quick tier as tests, so that a failure names its row. The same by hand: ``python -m tests.faults --tier quick``."""

import os

import pytest

from tests.faults.hostile import FUZZ_S
from tests.faults.rows import ROWS
from tests.faults.scene import SkippedRowError, scene

pytestmark = [pytest.mark.needs_mosquitto, pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", [row.name for row in ROWS.values() if row.quick and not row.in_suite])
def test_a_row_holds(name, monkeypatch):
    monkeypatch.setenv(
        FUZZ_S, "15"
    )  # the tier takes longer; the corpus of all before is played by tests/fuzz
    seed = int(os.environ.get("HSEE_FAULTS_SEED", "1"))
    try:
        with scene(seed, scale=1) as stage:
            seen = ROWS[name].play(stage)
    except SkippedRowError as exc:
        pytest.skip(str(exc))
    print(f"{name}: {seen} (again: python -m tests.faults --rows {name} --seed {seed})")  # noqa: T201
