"""What split runs are compared with: each baseline learns, and is what its paper says."""

import copy

import msgspec
import pytest
import torch

from coordinator.model.aggregate import CrossLayerMean
from tests.integration.small_scenario import run, with_run
from tests.numerics.same import assert_same
from toolkit.errors import TrainingError
from toolkit.nn.steps import make_optimizer, server_step
from toolkit.simulate.baselines.harness import MAKERS, make_setup
from toolkit.simulate.baselines.splitfed import SplitFed
from toolkit.simulate.baselines.whole import FedAvg, Local, new_network
from toolkit.simulate.data import load_fleet_data
from toolkit.simulate.results import summarise


@pytest.mark.parametrize("name", MAKERS)
def test_every_baseline_learns_and_is_the_same_again(name, scenario, tmp_path):
    scenario = msgspec.structs.replace(scenario, baseline=name)
    first, again = (run(scenario, tmp_path / str(n)) for n in (1, 2))
    assert first == again
    (route,) = first.devices[0].accuracy
    assert route == ("server" if name.startswith("splitfed") else "whole")
    summary = summarise([first])
    assert summary.common[route].mean > 0.6
    assert (summary.up_bytes.mean == 0) == (name == "local")


@pytest.mark.parametrize("name", MAKERS)
def test_a_baselines_loss_that_is_not_finite_names_device_round_and_step(name, scenario):
    """A sample of the second device is damaged; only centralised training mixes the samples of all."""
    setup = make_setup(scenario, load_fleet_data(scenario))
    setup.learners["dev2"].x[3] = float("nan")
    with pytest.raises(TrainingError, match=r"is nan in round 1, step \d") as caught:
        MAKERS[name](setup).train_round(1)
    device = "" if name == "centralised" else "dev2"
    assert caught.value.facts["device"] == device
    assert f"device '{device}'" in str(caught.value) or not device
    batches = enumerate(setup.learners["dev2"].batches(1), start=1)
    in_step = next(step for step, (x, _, _) in batches if x.isnan().any())
    assert caught.value.facts["round"] == 1
    assert caught.value.facts["step"] == in_step or not device


DRIFTING = {"model": "python:tests.numerics.models:with_drift", "model_options": {}}


@pytest.mark.parametrize("changes", [{}, DRIFTING], ids=["mlp", "buffers outside the state_dict"])
def test_fedavg_is_the_mean_of_networks_that_each_begin_as_the_common_one(changes, scenario):
    setup = make_setup(
        msgspec.structs.replace(with_run(scenario, **changes), cuts=()), load_fleet_data(scenario)
    )
    baseline, common = FedAvg(setup), new_network(setup)
    for round_ in (1, 2):
        baseline.train_round(round_)
        mean = CrossLayerMean()
        for name in ("dev1", "dev2", "dev3"):
            own = copy.deepcopy(common)
            optimizer = make_optimizer(own, setup.job.optimizer)
            optimizer.lr = setup.lr(round_)
            for x, y, seed in setup.learners[name].batches(round_):
                server_step(own, optimizer, x, y, seed=seed)
            mean.add(own.state_dict(), len(setup.learners[name].y))
        common.load_state_dict(mean.result())
        assert_same(baseline.server_state(), common.state_dict())


def test_splitfed_of_one_device_is_the_whole_network_trained_alone(scenario):
    scenario = msgspec.structs.replace(scenario, names=("dev1",))
    data = load_fleet_data(scenario)
    for shared in (True, False):
        whole, split = Local(make_setup(scenario, data)), SplitFed(make_setup(scenario, data), shared=shared)
        for round_ in (1, 2):
            assert whole.train_round(round_) == split.train_round(round_)
        held = {f"stages.{n}": t for n, t in split.device_state("dev1").items()} | {
            n if n.startswith("classifier") else f"stages.{n}": t for n, t in split.server_state().items()
        }
        state = whole.device_state("dev1")
        assert held.keys() == state.keys()
        assert all(torch.equal(held[name], state[name]) for name in state)
