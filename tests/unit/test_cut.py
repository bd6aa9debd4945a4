"""Cutting a network: which cuts there are, and that both sides are the network's own modules."""

import pytest
import torch
from torch import nn

from toolkit.errors import CutError, ModelError
from toolkit.nn.cut import activation_shape, cut_layers, depth_of, describe, take_segment, take_suffix
from toolkit.nn.network import StagedNetwork


def network_of(*widths):
    """Stages of linear layers, s1 from widths[0] to widths[1], and so on; three classes."""
    stages = {f"s{n}": nn.Linear(widths[n - 1], widths[n]) for n in range(1, len(widths))}
    return StagedNetwork(stages, nn.Linear(widths[-1], 3))


def test_the_last_stage_is_no_cut_layer_unless_it_is_the_only_one():
    assert cut_layers(network_of(5, 4, 3, 2)) == ("s1", "s2")
    assert cut_layers(network_of(5, 4)) == ("s1",)


def test_both_sides_share_the_networks_modules_and_leave_nothing_out():
    network = network_of(5, 4, 3, 2)
    for cut in cut_layers(network):
        segment, suffix = take_segment(network, cut), take_suffix(network, cut)
        assert len(segment) == depth_of(network, cut)
        held = [id(p) for p in (*segment.parameters(), *suffix.parameters())]
        assert held == [id(p) for p in network.parameters()]
        x = torch.randn(2, 5)
        assert torch.equal(suffix(segment(x)), network(x))


@pytest.mark.parametrize(("cut", "hint"), [("s3", "Did you mean"), ("classifier", "Known: s1, s2")])
def test_an_unknown_cut_names_those_there_are(cut, hint):
    with pytest.raises(CutError, match="its cut layers are s1, s2") as raised:
        take_segment(network_of(5, 4, 3, 2), cut)
    assert hint in raised.value.hint
    assert raised.value.facts["cut"] == cut


def test_activation_shape_leaves_the_segment_as_it_was():
    """In train mode batch norm would move, and could not take the one sample that is passed."""
    segment = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).train()
    before = segment[1].running_mean.clone()
    assert activation_shape(segment, [5]) == (4,)
    assert segment.training
    assert segment[1].training
    assert torch.equal(segment[1].running_mean, before)


def test_stages_that_do_not_chain_are_shown_with_their_shapes():
    network = StagedNetwork(
        {"a": nn.Linear(5, 4), "b": nn.Conv1d(4, 2, 3), "c": nn.Linear(2, 2)}, nn.Linear(2, 3)
    )
    with pytest.raises(ModelError, match=r"do not chain: input 5 -> a 4 -> b fails: ") as raised:
        describe(network, [5])
    assert raised.value.facts["stage"] == "b"


def test_facts_add_up():
    rows = describe(network_of(5, 4, 2), [5])
    assert [(r.name, r.shape, r.flop, r.n_parameters) for r in rows] == [
        ("s1", (4,), 2 * 5 * 4, 24),
        ("s2", (2,), 2 * 4 * 2, 10),
        ("classifier", (3,), 2 * 2 * 3, 9),
    ]
    assert [r.activation_bytes for r in rows] == [16, 8, 12]


@pytest.mark.parametrize("name", ["classifier", "a.b", "", "momentum/a", "ü"])
def test_names_that_would_clash_or_break_paths_are_refused(name):
    with pytest.raises(ModelError, match="can't be called"):
        StagedNetwork({name: nn.Linear(5, 4)}, nn.Linear(4, 3))


def test_a_network_needs_a_stage():
    with pytest.raises(ModelError, match="at least one stage"):
        StagedNetwork({}, nn.Linear(4, 3))
