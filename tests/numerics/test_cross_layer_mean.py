"""The cross-layer mean against cases worked out by hand."""

import pytest
import torch

from coordinator.model.aggregate import CrossLayerMean
from coordinator.model.segments import Segments
from tests.numerics import oracle
from tests.numerics.same import assert_same
from toolkit.nn.steps import build_device_model
from toolkit.wire.job import Job, ModelSpec, SyncSpec


def one(value, dtype=torch.float32):
    return torch.tensor([float(value)], dtype=dtype) if dtype.is_floating_point else torch.tensor(value)


def mean_over(*copies):
    """Of (tensors, weight), in order."""
    mean = CrossLayerMean()
    for tensors, weight in copies:
        mean.add(tensors, weight)
    return mean.result()


def test_unequal_cuts_and_weights():
    """Layer 2 is held by the first, layer 3 by two, layer 4 by all three; weights 1, 2, 3."""
    made = mean_over(
        ({"l2": one(10), "l3": one(4), "l4": one(6)}, 1),
        ({"l3": one(1), "l4": one(0)}, 2),
        ({"l4": one(-4)}, 3),
    )
    # Layer 3 is 4 once and 1 twice, by 3; layer 4 is 6 once, 0 twice and -4 three times, by 6.
    assert_same(made, {"l2": one(10), "l3": one(2), "l4": one(-1)})


def test_a_layer_that_nobody_present_holds_stays_away():
    assert mean_over(({"l4": one(1)}, 1)).keys() == {"l4"}
    assert CrossLayerMean().result() == {}


def test_batch_norm_buffers():
    """Means and variances are averaged like parameters, the counter takes the maximum, whatever the weights."""
    made = mean_over(
        (
            {
                "bn.running_mean": one(1),
                "bn.running_var": one(2),
                "bn.num_batches_tracked": one(7, torch.int64),
            },
            3,
        ),
        (
            {
                "bn.running_mean": one(5),
                "bn.running_var": one(6),
                "bn.num_batches_tracked": one(4, torch.int64),
            },
            1,
        ),
    )
    assert_same(
        made,
        {
            "bn.running_mean": one(2),
            "bn.running_var": one(3),
            "bn.num_batches_tracked": one(7, torch.int64),
        },
    )


def test_pooled_batch_norm_remembers_the_variance_of_means():
    copies = [
        ({"bn.running_mean": one(1), "bn.running_var": one(2)}, 3),
        ({"bn.running_mean": one(5), "bn.running_var": one(6)}, 1),
    ]
    mean = CrossLayerMean(bn="pooled")
    for tensors, weight in copies:
        mean.add(tensors, weight)
    # The mean of squares is three times 2 + 1 and once 6 + 25, by 4: that is 10, less the square of the mean 2.
    assert_same(mean.result(), {"bn.running_mean": one(2), "bn.running_var": one(6)})


def test_a_layer_of_one_holder_comes_back_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    awkward = torch.randn(1000, generator=generator) * torch.logspace(-44, 37, 1000)
    held = {"w": torch.cat([awkward, torch.tensor([-0.0, 1e-45, 3.4e38])])}
    for weight in (1, 3, 7, 1_000_003):
        assert_same(mean_over((held, weight)), held)
    assert torch.signbit(mean_over((held, 7))["w"][-3])


@pytest.mark.parametrize("n_copies", [2, 3, 7, 30])
def test_the_mean_of_equal_copies_is_that_copy(n_copies):
    """In float32 the mean of seven equal copies is another."""
    held = {"w": torch.randn(5000, generator=torch.Generator().manual_seed(1))}
    assert_same(mean_over(*[(held, 1)] * n_copies), held)
    if n_copies == 7:
        assert not torch.equal(sum([held["w"]] * 7) / 7, held["w"])


def test_adding_does_not_hold_on_to_a_copy():
    """A copy that trains on after it was added, or is dropped, changes nothing."""
    tensors = {"w": one(2), "n": one(3, torch.int64)}
    mean = CrossLayerMean()
    mean.add(tensors, 1)
    for tensor in tensors.values():
        tensor.zero_()
    assert_same(mean.result(), {"w": one(2), "n": one(3, torch.int64)})


def test_the_oracles_mean_is_the_one_worked_out_by_hand():
    def learner(**layers):
        rows = [(name, torch.nn.Linear(1, 1, bias=False)) for name in layers]
        for (_, module), value in zip(rows, layers.values(), strict=True):
            module.weight.data.fill_(value)
        return oracle.Learner(rows)

    copies = {
        "a": learner(l2=10, l3=4, l4=6),
        "b": learner(l3=1, l4=0),
        "c": learner(l4=-4),
        "absent": learner(l2=7, l3=7, l4=7),
    }
    oracle.average(copies, {"a": 1, "b": 2, "c": 3}, "average")
    made = {name: {n: float(t) for n, t in copy.tensors().items()} for name, copy in copies.items()}
    mean = {"l2.weight": 10, "l3.weight": 2, "l4.weight": -1}
    assert made["a"] == made["absent"] == mean
    assert made["b"] == {"l3.weight": 2, "l4.weight": -1}
    assert made["c"] == {"l4.weight": -1}


@pytest.mark.parametrize(("bn", "variance"), [("mean", 4.0), ("pooled", 13.0)])
def test_segments_are_made_one_by_the_runs_rule_for_batch_norm(bn, variance, tmp_path):
    """Two hold the stem's statistics: means 1 and 7, variances 2 and 6; (2 + 1 + 6 + 49) / 2 - 4 squared is 13."""
    jobs = {
        device: Job(
            run="r1",
            model=ModelSpec(name="resnet_small", input_shape=[1, 8, 8], n_classes=3, options={"width": 4}),
            cut=cut,
            classes=["a", "b", "c"],
            mean=[0.0],
            std=[1.0],
            seed=3,
            batch_size=8,
            rounds=2,
            exit_head="pooled",
            sync=SyncSpec(mode="prefix"),
        )
        for device, cut in (("a", "stem"), ("b", "layer1"))
    }
    segments = Segments(jobs, bn=bn, scratch=tmp_path)
    gathered = {}
    for device, mean, var in (("a", 1.0, 2.0), ("b", 7.0, 6.0)):
        job = jobs[device]
        model = build_device_model(
            job.model, cut=job.cut, exit_head=job.exit_head, optimizer=job.optimizer, seed=3
        )
        model.segment.stem.bn1.running_mean.fill_(mean)
        model.segment.stem.bn1.running_var.fill_(var)
        gathered[device] = model.modules.state_dict()
        segments.gather(device, gathered[device])
    segments.make_one(["b", "a"], round_=1)
    made = {device: segments.layout_of(device).named(segments.of(device)) for device in jobs}
    for device in jobs:
        assert made[device]["segment.stem.bn1.running_mean"].unique().tolist() == [4.0]
        assert made[device]["segment.stem.bn1.running_var"].unique().tolist() == [variance]
        head = "exit_head.fc.weight"  # at another stage than the other's
        assert torch.equal(made[device][head], gathered[device][head])
