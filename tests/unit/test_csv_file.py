"""Samples and windows from csv files."""

import numpy as np
import pytest

from toolkit.errors import DataError, DataNotFoundError
from toolkit.nn.datasets import load_source

WALKS = """time,ax,ay,activity,person,trial
{rows}
"""


@pytest.fixture
def walks(tmp_path):
    """Two people; ann walks 7 rows and sits 4, in two trials; bob walks 5."""
    stretches = [("walk", "ann", 1, 4), ("walk", "ann", 2, 3), ("sit", "ann", 2, 4), ("walk", "bob", 2, 5)]
    rows = [(activity, person, trial) for activity, person, trial, length in stretches for _ in range(length)]
    path = tmp_path / "walks.csv"
    lines = [f"{n},{n}.5,{-n},{','.join(map(str, row))}" for n, row in enumerate(rows)]
    path.write_text(WALKS.format(rows="\n".join(lines)))
    return path


def test_windows_lie_within_one_recording_and_one_label(walks):
    data = load_source(f"csv:{walks}?window=3&stride=2&label=activity&user=person&group=trial&columns=ax,ay")
    # stretches begin at rows 0, 4, 7, 11 and have 4, 3, 4, 5 rows: one, one, one and two windows
    assert data.x.shape == (5, 2, 3)
    assert data.x[:, 0, 0].tolist() == [0.5, 4.5, 7.5, 11.5, 13.5]
    assert data.x[0].tolist() == [[0.5, 1.5, 2.5], [0, -1, -2]]
    assert [data.classes[label] for label in data.y] == ["walk", "walk", "sit", "walk", "walk"]
    assert data.user is not None
    assert data.user.tolist() == [0, 0, 0, 1, 1]


def test_windows_touch_unless_told_otherwise_and_may_cross_trials_that_nobody_names(walks):
    data = load_source(f"csv:{walks}?window=3&label=activity&user=person&columns=ax")
    assert data.x[:, 0, 0].tolist() == [0.5, 3.5, 7.5, 11.5]


def test_a_sample_a_row_takes_the_named_columns_in_their_order(walks):
    data = load_source(f"csv:{walks}?label=activity&columns=ay,time")
    assert data.x[2].tolist() == [-2, 2]
    assert data.user is None


def test_all_columns_but_label_user_and_group_are_features(walks):
    data = load_source(f"csv:{walks}?window=2&label=activity&user=person&group=trial")
    assert data.shape == (3, 2)


def test_windows_feed_the_network_for_windows(walks):
    torch = pytest.importorskip("torch")
    from toolkit.nn.zoo import build_network
    from toolkit.wire.job import ModelSpec

    data = load_source(f"csv:{walks}?window=3&label=activity&columns=ax,ay")
    spec = ModelSpec(
        name="cnn1d", input_shape=list(data.shape), n_classes=2, options={"width": 4, "depth": 2}
    )
    assert build_network(spec, seed=0)(torch.from_numpy(data.x)).shape == (len(data), 2)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("windw=3", "Did you mean 'window'"),
        ("window=three", "which is no number of rows"),
        ("window=1", "at least 2 rows"),
        ("window=-4", "at least 2 rows"),
        ("window=3&stride=0", "stride at least 1"),
        ("stride=2", "Give a window too"),
        ("group=trial", "Give a window too"),
        ("window=6&label=activity", "could not convert string to float: 'ann'"),
        ("window=3&label=activty", "Did you mean 'activity'"),
        ("window=3&label=activity&user=persn", "Did you mean 'person'"),
        ("label=activity&columns=ax,az", "no column 'az'"),
        ("label=activity&columns=person", "could not convert string to float: 'ann'"),
        ("window=8&label=activity&user=person&columns=ax", "longest stretch of one label has 7"),
        ("window=3", "?label=NAME names another column"),
        ("label=None", "no column is called 'None'"),
    ],
)
def test_what_can_not_be_read_is_told(walks, query, said):
    with pytest.raises(DataError) as caught:
        load_source(f"csv:{walks}?{query}")
    assert said in str(caught.value)


def test_rows_that_do_not_fit_are_named(tmp_path):
    (tmp_path / "d.csv").write_text("a,label\n1,x\n2,y\n3,4,x\n")
    with pytest.raises(DataError, match="row 3 of the data has 3 values"):
        load_source(f"csv:{tmp_path / 'd.csv'}")
    with pytest.raises(DataNotFoundError, match=r"no\.csv"):
        load_source(f"csv:{tmp_path / 'no.csv'}?window=3")
    (tmp_path / "e.csv").write_text("")
    with pytest.raises(DataError, match="no samples"):
        load_source(f"csv:{tmp_path / 'e.csv'}")


def test_numbers_of_users_stay_numbers(tmp_path):
    rows = [f"{n},{n % 2},{7 + n // 4}" for n in range(8)]
    (tmp_path / "d.csv").write_text("\n".join(["f,label,user", *rows]))
    data = load_source(f"csv:{tmp_path / 'd.csv'}")
    assert data.user is not None
    assert np.unique(data.user).tolist() == [7, 8]
