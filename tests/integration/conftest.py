"""Fleets in memory, and a scenario to simulate."""

import numpy as np
import pytest

from tests.integration.small_fleet import SETTINGS, member
from tests.numerics.fleet import Fleet
from toolkit.config import Run
from toolkit.simulate.scenario import Scenario


@pytest.fixture
def make_fleet(tmp_path):
    opened = []

    def make(*members, **changes):
        settings = Run(**{name: getattr(SETTINGS, name) for name in Run.__struct_fields__} | changes)
        fleet = Fleet(tmp_path, members or (member("ant"), member("bee", cut="hidden2")), settings)
        opened.append(fleet)
        return fleet

    yield make
    for fleet in opened:
        fleet.__exit__()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Three classes of noisy patterns in two channels of sixteen positions."""
    rng = np.random.default_rng(0)
    y = np.arange(180) % 3
    x = rng.normal(size=(3, 12))[y] + 0.7 * rng.normal(size=(180, 12))
    path = tmp_path_factory.mktemp("data") / "made.npz"
    np.savez(path, x=x.astype(np.float32), y=y)
    return f"npz:{path}"


@pytest.fixture
def scenario(source):
    return Scenario(
        run=Run(
            model="mlp", model_options={"width": 12, "depth": 3}, rounds=3, batch_size=8, exit_head="pooled"
        ),
        names=("dev1", "dev2", "dev3"),
        data=source,
        cuts=("hidden1", "hidden2"),
    )
