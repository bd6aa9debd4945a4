"""What a round costs beside its training batches: held-out ones that are sent, and the server's commit."""

from dataclasses import replace

import pytest

from coordinator.store.commit_time import time_commit_ms
from tests.unit.boards import FAST_SERVER, board, fleet, only
from toolkit.errors import PlanError
from toolkit.plan.choose import choose_cuts
from toolkit.plan.cost import ServerInput, cut_cost
from toolkit.plan.schema import parse_plan, plan_text
from toolkit.wire.job import ModelSpec

COMMIT = replace(FAST_SERVER, commit_ms=25.0)


def test_held_out_batches_that_are_sent_take_time_and_bytes_everywhere():
    [device] = fleet(board(), n_batches=10)
    row = device.profile.cuts[0]
    without = cut_cost(device, row, depth=0, batch_size=32, server_ms=3.0)
    sent = cut_cost(replace(device, n_eval_batches=4.0), row, depth=0, batch_size=32, server_ms=3.0)
    assert sent.round_bytes == without.round_bytes * 14 // 10
    # A forward pass is a third of a step, at both ends.
    assert sent.device_ms == pytest.approx(without.device_ms + 4 * 2.0 / 3)
    assert sent.round_compute_ms == pytest.approx(without.round_compute_ms + 4 * 2.0 / 3)
    assert sent.server_round_ms == pytest.approx(10 * 3.0 + 4 * 3.0 / 3)


def test_on_a_slow_link_they_take_as_long_as_they_are_under_way():
    [device] = fleet(board(up_bytes_per_s=1e5), n_batches=10)
    row = device.profile.cuts[0]
    without = cut_cost(device, row, depth=0, batch_size=32, server_ms=3.0)
    sent = cut_cost(replace(device, n_eval_batches=4.0), row, depth=0, batch_size=32, server_ms=3.0)
    assert sent.device_ms == pytest.approx(1.4 * without.device_ms)


def test_the_commit_is_a_part_of_every_round():
    plain, made = (choose_cuts(fleet(board()), server=server) for server in (FAST_SERVER, COMMIT))
    assert made.round_ms == pytest.approx(plain.round_ms + 25)
    assert made.shortest_round_ms == pytest.approx(plain.shortest_round_ms + 25)
    assert made.commit_ms == 25
    assert only(made).deeper is None or only(made).deeper.round_ms > made.round_ms
    assert parse_plan(plan_text(made)) == made


def test_a_deadline_is_for_the_commit_too():
    # Ten batches take 20, 40 and 80 ms.
    assert choose_cuts(fleet(board()), server=FAST_SERVER, deadline_ms=50, slack=2).cuts == {
        "board": "layer2"
    }
    made = only(choose_cuts(fleet(board()), server=COMMIT, deadline_ms=50, slack=2))
    assert made.cut == "layer1"
    late = next(i for i in made.infeasible if i.cut == "layer2")
    assert late.detail.endswith("and the deadline is 50 ms, of which the commit takes 25 ms")
    assert late.fix.startswith("--deadline 0.1")
    with pytest.raises(PlanError, match="of which the commit takes 25 ms"):
        choose_cuts(fleet(board()), server=COMMIT, deadline_ms=20)
    slow = ServerInput(flop_per_s=1e9, commit_ms=25.0)
    with pytest.raises(PlanError, match=r"No plan keeps the deadline of 60 ms.* takes 313 ms"):
        choose_cuts(fleet(board(), n_batches=10), server=slow, deadline_ms=60)


def test_a_commit_is_timed_on_the_runs_disk_and_leaves_nothing(tmp_path):
    model = ModelSpec(name="mlp", input_shape=[4], n_classes=2, options={"width": 8})
    folder = tmp_path / "run" / "scratch"
    assert 0 < time_commit_ms(folder, model) < 60_000
    assert list(folder.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert time_commit_ms(tmp_path / "file" / "below", model) == 0.0
