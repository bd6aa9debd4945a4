import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.errors import DataError
from toolkit.nn.datasets import load_source, make_dataset
from toolkit.nn.partition import partition, split_held_out, take_part

LABELS = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.integers(0, n - 1), min_size=40, max_size=200).map(
        lambda y: np.array([*range(n), *y], np.int64)
    )
)


@settings(max_examples=60, deadline=None)
@given(
    y=LABELS,
    spec=st.sampled_from(["iid", "dirichlet:0.3", "dirichlet:5", "shards:2", "shards:4"]),
    n_parts=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_sample_lands_in_exactly_one_usable_part(y, spec, n_parts, seed):
    try:
        parts = partition(spec, y, n_parts, seed, min_samples=3)
    except DataError as exc:
        assert len(y) < 3 * n_parts or exc.facts["n_samples"] < 3 or exc.facts["n_classes"] < 2  # noqa: PT017 - refusing is allowed, with a reason
        return
    assert np.sort(np.concatenate(parts)).tolist() == list(range(len(y)))
    assert all(len(part) >= 3 and len(np.unique(y[part])) >= min(2, len(np.unique(y))) for part in parts)
    again = partition(spec, y, n_parts, seed, min_samples=3)
    assert all((a == b).all() for a, b in zip(parts, again, strict=True))


def counts(spec, seed):
    digits = load_source("digits")
    return np.stack(
        [np.bincount(digits.y[part], minlength=10) for part in partition(spec, digits.y, 6, seed)]
    )


def test_seeds_differ_and_dirichlet_skews():
    even, skewed, other = counts("iid", 0), counts("dirichlet:0.1", 0), counts("dirichlet:0.1", 1)
    assert skewed.std(axis=0).mean() > 3 * even.std(axis=0).mean()
    assert (skewed != other).any()


def test_by_user_keeps_people_whole():
    y = np.tile([0, 1], 30)
    user = np.repeat(np.arange(6), 10)
    parts = partition("user", y, 3, 0, user)
    people = [set(user[part].tolist()) for part in parts]
    assert [len(p) for p in people] == [2, 2, 2]
    assert set.union(*people) == set(range(6))


def test_take_part_names_only_its_own_classes():
    digits = load_source("digits")
    parts = [take_part(digits, "shards:3", (i, 5), seed=1) for i in (1, 2, 3, 4, 5)]
    assert sum(map(len, parts)) == len(digits)
    for part in parts:
        assert set(part.class_counts.values()).isdisjoint({0})
        assert set(part.classes) < set(digits.classes)
    # The pictures still carry their own digit after renumbering.
    first = parts[0]
    by_bytes = {x.tobytes(): digits.classes[y] for x, y in zip(digits.x, digits.y, strict=True)}
    assert [by_bytes[x.tobytes()] for x in first.x] == [first.classes[i] for i in first.y]


@pytest.mark.parametrize(
    ("spec", "n_parts", "said"),
    [
        ("dirichlet", 2, "from 0.001 to 1e+06"),
        ("dirichlet:-1", 2, "from 0.001"),
        ("dirichlet:nan", 2, "from 0.001"),
        ("shards:0.5", 2, "whole number"),
        ("dirichlt:0.5", 2, "Did you mean 'dirichlet:0.5'"),
        ("iid", 0, "0 parts"),
        ("iid", 1000, "1797 samples are too few for 1000 parts of at least 10"),
        ("shards:1", 10, "of 1 class; a part needs at least 10 samples and two classes"),
        ("user", 2, "who made each sample"),
    ],
)
def test_divisions_that_cannot_be_are_refused(spec, n_parts, said):
    with pytest.raises(DataError) as caught:
        partition(spec, load_source("digits").y, n_parts, 0)
    assert said in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("part", [(0, 3), (4, 3), (1, 0)])
def test_parts_count_from_one(part):
    with pytest.raises(DataError, match="There is no part"):
        take_part(load_source("digits"), "iid", part)


def test_held_out_is_stratified_disjoint_and_seeded():
    digits = load_source("digits")
    train, held_out = split_held_out(digits, 0.2, seed=3)
    assert len(train) + len(held_out) == len(digits)
    assert train.classes == held_out.classes == digits.classes
    for name, n in digits.class_counts.items():
        assert abs(held_out.class_counts[name] - 0.2 * n) <= 0.5
    rows = {x.tobytes() for x in train.x}
    assert not any(x.tobytes() in rows for x in held_out.x)
    assert (split_held_out(digits, 0.2, seed=3)[1].x == held_out.x).all()
    assert (split_held_out(digits, 0.2, seed=4)[1].x[:50] != held_out.x[:50]).any()


def test_a_class_of_one_sample_stays_in_training():
    data = make_dataset(np.arange(22).reshape(11, 2), [0] * 10 + [1], name="it")
    train, held_out = split_held_out(data, 0.5)
    assert train.class_counts == {"0": 5, "1": 1}
    assert held_out.class_counts == {"0": 5, "1": 0}


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1, float("nan")])
def test_a_share_out_of_range_is_refused(fraction):
    with pytest.raises(DataError, match="not between 0 and 1"):
        split_held_out(load_source("digits"), fraction)


def test_too_few_samples_to_hold_any_out():
    data = make_dataset(np.zeros((4, 1)), [0, 0, 1, 1], name="it")
    with pytest.raises(DataError, match="too few"):
        split_held_out(data, 0.2)
