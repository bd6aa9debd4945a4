"""Logits that are handed down outlive the process, those of the open round too."""

import numpy as np
import torch

from coordinator.model.server_logits import ServerLogits
from coordinator.strategy.base import PooledBatch, SubBatch


def batch(first, n=2):
    return torch.arange(3.0 * n).reshape(n, 3) + 100 * first


def test_what_was_said_is_kept_by_device_in_the_order_of_its_list():
    said = ServerLogits()
    for first, device in ((1, "ant"), (2, "bee"), (3, "ant")):
        said.add(device, batch(first))
    assert said.of("ant") is None
    said.close(1)
    assert torch.equal(said.of("ant"), torch.cat([batch(1), batch(3)]))
    assert (said.round, said.of("cat")) == (1, None)


def test_it_goes_on_in_the_middle_of_a_round_as_if_it_had_never_stopped():
    first, second = ServerLogits(), ServerLogits()
    first.add("ant", batch(1))
    first.close(1)
    first.add("ant", batch(2))
    first.add("bee", batch(3))
    for device, kept in first.kept():
        second.load(device, kept)
    assert (second.round, second.of("bee")) == (1, None)
    assert torch.equal(second.of("ant"), batch(1))
    second.add("ant", batch(4))
    second.close(2)
    assert torch.equal(second.of("ant"), torch.cat([batch(2), batch(4)]))
    assert torch.equal(second.of("bee"), batch(3))


def test_mixed_steps_put_every_row_where_its_batch_has_it():
    said = ServerLogits()
    said.begin_mixing([PooledBatch("ant", 1, "stem", 2), PooledBatch("bee", 1, "stem", 2)], n_classes=3)
    said.put(SubBatch("stem", np.array([1, 0]), np.array([0, 1])), batch(1))
    said.put(SubBatch("stem", np.array([0, 1]), np.array([0, 1])), batch(2))
    said.close(1)
    assert torch.equal(said.of("ant"), torch.stack([batch(2)[0], batch(1)[1]]))
    assert torch.equal(said.of("bee"), torch.stack([batch(1)[0], batch(2)[1]]))
