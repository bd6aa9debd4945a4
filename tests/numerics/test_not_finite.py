"""A loss that is no number stops the run at its last good checkpoint, and says where it was."""

import pytest
import torch

from coordinator.store.run_folder import RunFolder
from tests.numerics.fleet import RUN, Fleet
from tests.numerics.test_run_equals_oracle import members_for, settings_for
from toolkit.errors import TrainingError


@pytest.mark.parametrize("strategy", ["sequential", "averaging", "consolidated"])
def test_it_stops_at_the_last_good_checkpoint(strategy, tmp_path):
    settings = settings_for(strategy=strategy, rounds=4, server_lr_factor=1e30)
    with Fleet(tmp_path, members_for(), settings) as fleet:
        fleet.start()
        with pytest.raises(
            TrainingError, match=r"The server's loss is (nan|inf) on .* in round \d"
        ) as caught:
            fleet.run_until(lambda: fleet.coordinator.over)
        assert caught.value.facts["round"] >= 1
        assert caught.value.facts["step"] >= 1
        assert "run.lr" in caught.value.hint
        assert fleet.coordinator.status == "failed"
        assert fleet.coordinator.detail == caught.value.message
        for _ in range(200):  # devices hear of it
            fleet.sweep()
        assert all(member.agent.over for member in fleet.members.values())
    folder = RunFolder(tmp_path / "run", RUN)
    newest = folder.checkpoints.kept()[-1]
    folder.close()
    assert newest.round < caught.value.facts["round"]
    assert all(torch.isfinite(t).all() for t in newest.tensors().values() if t.is_floating_point())
