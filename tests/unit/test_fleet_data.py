"""What a simulated fleet is trained and tested on."""

import msgspec
import numpy as np
import pytest

from toolkit.config import Run
from toolkit.errors import DataError, ShapeError
from toolkit.nn.datasets import load_source
from toolkit.simulate.data import DIVISION_FILE, Division, keep_division, load_fleet_data
from toolkit.simulate.scenario import Scenario


def write(path, *, classes=("run", "sit", "walk"), n_people=10, width=4):
    """Each sample's first value is its row."""
    n = n_people * 12
    x = np.tile(np.arange(n, dtype=np.float32)[:, None], (1, width))
    np.savez(path, x=x, y=np.arange(n) % 3, user=np.arange(n) // 12, classes=np.array(classes))
    return f"npz:{path}"


@pytest.fixture
def scenario(tmp_path):
    return Scenario(run=Run(seed=3), names=("dev1", "dev2"), data=write(tmp_path / "people.npz"))


def change(scenario, **fields):
    return msgspec.structs.replace(scenario, **fields)


def test_the_folds_of_people_meet_everybody_once_and_nobody_is_trained_and_tested_on(scenario):
    met = []
    for k in range(1, 6):
        data = load_fleet_data(change(scenario, test_users=f"{k}/5"))
        trained = {
            u
            for own in data.devices.values()
            for part in (own.train, own.held_out)
            for u in part.user.tolist()
        }
        tested = set(data.test.user.tolist())
        assert len(tested) == 2
        assert not trained & tested
        assert len(trained | tested) == 10
        met += tested
    assert sorted(met) == list(range(10))


def test_the_folds_are_the_same_whatever_the_seed(scenario):
    first, second = (
        load_fleet_data(
            change(scenario, test_users="1/5", run=msgspec.structs.replace(scenario.run, seed=seed))
        )
        for seed in (0, 1)
    )
    assert (first.test.x == second.test.x).all()
    assert first.devices["dev1"].fingerprint != second.devices["dev1"].fingerprint


def test_a_source_of_its_own_is_the_test_set_and_all_else_is_trained_on(scenario, tmp_path):
    test = write(tmp_path / "test.npz", n_people=2)
    data = load_fleet_data(change(scenario, test=test))
    assert len(data.test) == 24
    assert sum(len(own.train) + len(own.held_out) for own in data.devices.values()) == 120
    assert data.division.test == test
    assert data.division.test_rows == []


@pytest.mark.parametrize(
    ("made", "error", "said"),
    [
        ({"classes": ("run", "sit", "jump")}, DataError, "a class 'jump'"),
        ({"classes": ("run", "sit", "walks")}, DataError, "Did you mean 'walk'"),
        ({"width": 5}, ShapeError, "shape (5,), one of"),
    ],
)
def test_a_test_set_that_does_not_fit_is_told(made, error, said, scenario, tmp_path):
    with pytest.raises(error) as caught:
        load_fleet_data(change(scenario, test=write(tmp_path / "test.npz", **made)))
    assert said in str(caught.value)


@pytest.mark.parametrize("group", ["6/5", "0/5", "1/1", "1/11", "1", "/", "one/5", "-1/5", "²/5"])
def test_groups_that_are_not_there_are_told(group, scenario):
    with pytest.raises(DataError, match="no group"):
        load_fleet_data(change(scenario, test_users=group))


def test_people_are_left_out_only_where_they_are_known(scenario):
    with pytest.raises(DataError, match="does not say who made each sample"):
        load_fleet_data(change(scenario, data="digits", test_users="1/5"))


def test_the_division_makes_the_same_fleet_again(scenario, tmp_path):
    scenario = change(scenario, partition="dirichlet:0.5", test_share=0.1)
    data = load_fleet_data(scenario)
    keep_division(tmp_path, data.division)
    kept = msgspec.json.decode((tmp_path / DIVISION_FILE).read_bytes(), type=Division)
    assert (kept.partition, kept.seed, kept.source) == ("dirichlet:0.5", 3, scenario.data)
    whole = load_source(kept.source)
    assert (whole.x[kept.test_rows] == data.test.x).all()
    rows = [*kept.test_rows]
    for name, own in data.devices.items():
        share = kept.devices[name]
        held = np.concatenate([own.train.x, own.held_out.x])[:, 0]
        assert sorted(held.tolist()) == whole.x[share.rows][:, 0].tolist()
        assert sum(share.class_counts.values()) == len(share.rows)
        rows += share.rows
    assert sorted(rows) == list(range(len(whole)))


def test_a_class_that_ran_out_is_said(scenario):
    scenario = change(scenario, data="digits", partition="shards:2", names=[f"dev{n}" for n in range(1, 11)])
    division = load_fleet_data(scenario).division
    name, share = next((n, s) for n, s in division.devices.items() if s.missing)
    assert all(share.class_counts[label] == 0 for label in share.missing)
    assert f"{name} has no {', '.join(share.missing)}" in division.warning
    assert "classes ran out for 10 of 10 devices" in division.warning
    assert "and 5 more" in division.warning
    assert load_fleet_data(change(scenario, partition="iid")).division.warning == ""
