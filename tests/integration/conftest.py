"""Fleets in memory."""

import pytest

from tests.integration.small_fleet import SETTINGS, member
from tests.numerics.fleet import Fleet
from toolkit.config import Run


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
