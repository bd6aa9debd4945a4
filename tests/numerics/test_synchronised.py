"""Segments made one between rounds: the run equals an oracle of its own bit for bit, whatever is lost on the way."""

import pytest

from tests.numerics import oracle_beyond
from tests.numerics.fleet import Fleet
from tests.numerics.same import assert_same
from tests.numerics.test_run_equals_oracle import CUTS, members_for, settings_for

MODES = ("same_cut", "prefix")


def fleet_for(folder, *, cuts=CUTS, shape=(1, 8, 8), order=0, **changes) -> Fleet:
    members = members_for(cuts, shape=shape)
    for member in members:
        member.accepts = "coordinator"
    given = {"client_sync": "prefix", "round_steps": 2, "rounds": 5} | changes
    return Fleet(folder, members, settings_for(**given), order=order)


def run_fleet(folder, **how) -> Fleet:
    with fleet_for(folder, **how) as fleet:
        fleet.start()
        fleet.run_until(lambda: fleet.coordinator.over)
    return fleet


def assert_equals_oracle(fleet: Fleet, **how) -> None:
    devices, server = oracle_beyond.play(
        fleet.jobs(), fleet.data(), fleet.rounds(), fleet.made_one(), strategy=fleet.settings.strategy, **how
    )
    for name in fleet.members:
        assert_same(fleet.device(name), devices[name])
    assert_same(fleet.server(), server)


@pytest.mark.parametrize("strategy", ["sequential", "averaging"])
@pytest.mark.parametrize("mode", MODES)
def test_a_synchronised_run_equals_the_oracle(mode, strategy, tmp_path):
    fleet = run_fleet(tmp_path, client_sync=mode, strategy=strategy)
    assert fleet.made_one() == dict.fromkeys((1, 2, 3, 4), sorted(CUTS))
    assert_equals_oracle(fleet)
