"""What a batch is made of: a pure function, and over an epoch every sample once."""

import numpy as np
import pytest

from toolkit.nn.recipe import eval_batches_in_round, n_batches_of, steps_in_round, train_recipe
from toolkit.nn.seeds import derive_seed

GIVEN = {
    "seed": 1,
    "device": "dev1",
    "fingerprint": "f",
    "n_train": 21,
    "batch_size": 8,
    "round_steps": 0,
    "round_": 1,
    "seq": 1,
}


def recipe(**changes):
    return train_recipe(**(GIVEN | changes))


def sequence(n, *, round_steps, n_train=21):
    """The first n batches of a device, round after round."""
    per_round = steps_in_round(n_train, 8, round_steps)
    return [
        recipe(n_train=n_train, round_steps=round_steps, round_=1 + k // per_round, seq=1 + k % per_round)
        for k in range(n)
    ]


@pytest.mark.parametrize(
    ("n_samples", "expected"), [(0, 0), (1, 0), (2, 1), (7, 1), (8, 1), (9, 1), (10, 2), (16, 2), (17, 2)]
)
def test_a_last_batch_counts_from_two_samples(n_samples, expected):
    """Batch norm has no statistics over one."""
    assert n_batches_of(n_samples, 8) == expected


def test_held_out_batches_of_one_count_and_are_capped():
    assert [eval_batches_in_round(n, 8, 20) for n in (0, 1, 8, 9, 20, 500)] == [0, 1, 1, 2, 3, 3]


def test_it_is_made_again_the_same():
    first, again = recipe(round_=3, seq=2), recipe(round_=3, seq=2)
    assert np.array_equal(first.indices, again.indices)
    assert first.seed == again.seed


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"device": "dev2"}, {"fingerprint": "g"}, {"round_": 2}, {"seq": 2}], ids=str
)
def test_all_that_names_it_counts(change):
    assert not np.array_equal(recipe().indices, recipe(**change).indices)
    assert recipe().seed != recipe(**change).seed


@pytest.mark.parametrize("round_steps", [0, 1, 2, 5, 7])
def test_an_epoch_holds_every_sample_once_whatever_a_round_is(round_steps):
    batches = sequence(9, round_steps=round_steps)
    for epoch in range(3):
        indices = np.concatenate([b.indices for b in batches[3 * epoch : 3 * epoch + 3]])
        assert sorted(indices) == list(range(21))
    assert [len(b.indices) for b in batches[:3]] == [8, 8, 5]
    assert not np.array_equal(batches[0].indices, batches[3].indices)  # another order in each epoch


def test_rounds_of_few_steps_go_through_the_same_order_as_long_ones():
    for short, long in zip(sequence(9, round_steps=2), sequence(9, round_steps=0), strict=True):
        assert np.array_equal(short.indices, long.indices)


def test_one_sample_too_many_is_left_out_of_the_epoch():
    batches = sequence(2, round_steps=0, n_train=17)
    assert [len(b.indices) for b in batches] == [8, 8]
    assert len({*batches[0].indices, *batches[1].indices}) == 16


def test_seeds_are_the_same_on_every_machine_and_tell_their_parts_apart():
    assert derive_seed(0, "network") == 8_671_359_282_394_499_327
    assert derive_seed("a", "bc") != derive_seed("ab", "c")
    assert all(0 <= derive_seed(n) < 2**63 for n in range(100))
