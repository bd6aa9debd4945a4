"""The cross-layer mean against cases computed by hand."""

import pytest
import torch

from coordinator.model.aggregate import CrossLayerMean


def mean_of(*copies, bn="mean"):
    mean = CrossLayerMean(bn=bn)
    for tensors, weight in copies:
        mean.add({name: torch.tensor(value) for name, value in tensors.items()}, weight)
    return mean.result()


def test_a_layer_is_averaged_over_the_copies_that_hold_it():
    made = mean_of(
        ({"layer2.w": [1.0, 2.0], "layer3.w": [10.0], "classifier.w": [1.0]}, 1),
        ({"layer3.w": [20.0], "classifier.w": [2.0]}, 1),
        ({"classifier.w": [6.0]}, 1),
    )
    assert {name: t.tolist() for name, t in made.items()} == {
        "layer2.w": [1.0, 2.0],
        "layer3.w": [15.0],
        "classifier.w": [3.0],
    }


def test_weights_count():
    made = mean_of(({"w": [1.0]}, 30), ({"w": [4.0]}, 10))
    assert made["w"].tolist() == [1.75]


@pytest.mark.parametrize("bn", ["mean", "pooled"])
def test_a_layer_with_one_holder_is_copied_bit_for_bit(bn):
    state = {"bn.running_mean": [1e4 / 3], "bn.running_var": [1e-7 / 3], "w": [0.1]}
    made = mean_of((state, 7), ({"other": [1.0]}, 3), bn=bn)
    for name, value in state.items():
        assert torch.equal(made[name], torch.tensor(value))


def test_equal_copies_come_back_as_they_are():
    value = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    mean = CrossLayerMean()
    for _ in range(7):
        mean.add({"w": value}, 1)
    assert torch.equal(mean.result()["w"], value)


def test_a_copy_may_change_after_it_was_added():
    value, mean = torch.ones(3), CrossLayerMean()
    mean.add({"w": value}, 1)
    value.zero_()
    assert mean.result()["w"].tolist() == [1.0, 1.0, 1.0]


def test_counters_take_the_maximum():
    made = mean_of(({"n": 3}, 5), ({"n": 9}, 1), ({"n": 4}, 1))
    assert made["n"].item() == 9


def test_running_variances_are_averaged_or_those_of_the_pooled_samples():
    copies = (
        ({"bn.running_mean": [0.0], "bn.running_var": [1.0]}, 1),
        ({"bn.running_mean": [4.0], "bn.running_var": [3.0]}, 3),
    )
    assert mean_of(*copies)["bn.running_var"].tolist() == [2.5]
    expected = (1 * (1 + 0**2) + 3 * (3 + 4**2)) / 4 - 3**2
    assert mean_of(*copies, bn="pooled")["bn.running_var"].tolist() == [expected]
    assert mean_of(*copies, bn="pooled")["bn.running_mean"].tolist() == [3.0]


def test_a_pooled_variance_is_never_negative():
    same = {"bn.running_mean": [1 / 3], "bn.running_var": [0.0]}
    assert mean_of((same, 1), (same, 2), bn="pooled")["bn.running_var"].item() >= 0
