"""Our gradient descent is torch's, bit for bit, without what torch loads for its own."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from toolkit.nn.sgd import Sgd


def make_module() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_steps_equal_torch_s_bit_for_bit(momentum, weight_decay):
    ours, theirs = make_module(), make_module()
    mine = Sgd(ours.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay)
    reference = torch.optim.SGD(
        theirs.parameters(), lr=0.1, momentum=momentum, weight_decay=weight_decay, foreach=False
    )
    for number in range(6):
        x = torch.randn(8, 7, generator=torch.Generator().manual_seed(number))
        mine.lr = reference.param_groups[0]["lr"] = 0.1 / (number + 1)
        for module, optimizer in ((ours, mine), (theirs, reference)):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_parameter_without_a_gradient_keeps_its_place_and_its_momentum():
    module = make_module()
    optimizer = Sgd(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    module(torch.ones(4, 7)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    weights = [p.detach().clone() for p in module.parameters()]
    momentum = [optimizer.momentum_buffers[p].clone() for p in module.parameters()]
    optimizer.step()
    for p, w, v in zip(module.parameters(), weights, momentum, strict=True):
        assert torch.equal(p, w)
        assert torch.equal(optimizer.momentum_buffers[p], v)


def test_making_one_loads_no_compiler():
    code = (
        "import sys, torch; from toolkit.nn.sgd import Sgd;"
        "w = torch.nn.Linear(2, 2); s = Sgd(w.parameters(), lr=1, momentum=0.9, weight_decay=0);"
        "w(torch.ones(1, 2)).sum().backward(); s.step(); print('torch._dynamo' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )
