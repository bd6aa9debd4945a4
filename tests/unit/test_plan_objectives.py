"""Objectives, deadlines, exit accuracies and other batch sizes: what changes the plan, and what is said."""

import datetime as dt
import time

import msgspec
import pytest

from tests.unit.boards import FAST_SERVER, board, fleet, only, scaled
from toolkit.errors import PlanError, ProfileError
from toolkit.plan.choose import choose_cuts
from toolkit.plan.cost import CODECS, DeviceInput, ServerInput, cut_cost, upload_bytes
from toolkit.plan.estimate import for_batch_size
from toolkit.plan.schema import parse_plan, plan_text
from toolkit.profile.link import Transfer
from toolkit.profile.model_profile import CentralRun, ExitRow, ModelProfile
from toolkit.profile.schema import Profile
from toolkit.wire import tensors


def exits(
    *accuracies: float, exit_head: str = "pooled", compressed: dict[str, float] | None = None
) -> ModelProfile:
    profile = board()
    assert profile.model is not None
    return ModelProfile(
        schema=1,
        name="net-data",
        provenance=CentralRun(
            date=dt.date(2026, 1, 2),
            machine="a machine",
            command="a command",
            data="data",
            n_train=100,
            n_eval=20,
            epochs=2,
            batch_size=32,
            seeds=(0,),
        ),
        model=profile.model,
        exit_head=exit_head,
        exits=tuple(
            ExitRow(
                cut=f"layer{i + 1}",
                accuracy=a,
                accuracy_min=a,
                accuracy_max=a,
                server_accuracy=0.99,
                compressed=compressed or {},
            )
            for i, a in enumerate(accuracies)
        ),
    )


def test_each_objective_makes_its_own_thing_small():
    # Shallow computes least, deep sends least, and the link makes the middle the shortest round.
    boards = fleet(board(step_ms=(1.0, 4.0, 9.0), kb=(8, 4, 1), up_bytes_per_s=5e7))
    made = {
        aim: choose_cuts(boards, server=FAST_SERVER, objective=aim, slack=0)
        for aim in ("makespan", "device-time", "bytes")
    }
    assert {aim: plan.cuts["board"] for aim, plan in made.items()} == {
        "makespan": "layer2",
        "device-time": "layer1",
        "bytes": "layer3",
    }
    assert made["device-time"].device_time_ms < made["makespan"].device_time_ms
    assert made["bytes"].round_bytes < made["makespan"].round_bytes
    assert made["makespan"].round_ms < min(made["bytes"].round_ms, made["device-time"].round_ms)


def test_a_deadline_moves_bytes_to_a_faster_cut():
    boards = fleet(board(step_ms=(1.0, 4.0, 9.0), kb=(8, 4, 1)))
    free = choose_cuts(boards, server=FAST_SERVER, objective="bytes")
    bound = choose_cuts(boards, server=FAST_SERVER, objective="bytes", deadline_ms=50)
    assert (free.cuts["board"], bound.cuts["board"]) == ("layer3", "layer2")
    barred = only(bound).infeasible[0]
    assert (barred.cut, barred.constraint) == ("layer3", "deadline")
    assert "computing takes 90 ms for 10 batches, and the deadline is 50 ms" in barred.detail
    assert "--deadline 0.1 or --batches 5 or fewer" in barred.fix


def test_slack_is_not_spent_beyond_the_deadline():
    steady = board(step_ms=(10.0, 10.4, 12.0))
    plan = choose_cuts(fleet(steady), server=FAST_SERVER, slack=0.3, deadline_ms=105)
    assert plan.cuts["board"] == "layer2"


@pytest.mark.parametrize(
    ("server", "deadline_ms", "words"),
    [
        (FAST_SERVER, 5.0, "No cut fits device 'board': after 'layer1', computing takes 20 ms"),
        (
            ServerInput(step_ms={"layer1": 9.0, "layer2": 9.0, "layer3": 9.0}),
            50.0,
            "server's steps for all devices",
        ),
    ],
)
def test_a_deadline_that_nobody_can_keep_is_refused(server: ServerInput, deadline_ms: float, words: str):
    with pytest.raises(PlanError, match=words) as caught:
        choose_cuts(fleet(board()), server=server, deadline_ms=deadline_ms)
    assert "--deadline 0." in caught.value.hint


def test_an_exit_that_is_too_weak_is_ruled_out_and_the_next_good_one_named():
    plan = choose_cuts(
        fleet(board()), server=FAST_SERVER, min_exit_accuracy=0.9, exits=exits(0.7, 0.95, 0.97), slack=0
    )
    device = only(plan)
    assert (device.cut, device.exit_accuracy, plan.model_profile) == ("layer2", 0.95, "net-data")
    assert device.deeper is not None
    assert device.deeper.exit_accuracy == 0.97
    barred = device.infeasible[0]
    assert (barred.cut, barred.constraint) == ("layer1", "exit accuracy")
    assert "its exit answers 70.0% right in the central run, and 90.0% are asked for" in barred.detail
    assert barred.fix == "the cut layer2 (95.0%) or --min-exit-accuracy 0.7"
    assert parse_plan(plan_text(plan)) == plan


def test_an_accuracy_that_no_exit_reaches_is_refused_with_the_best_there_is():
    with pytest.raises(PlanError, match=r"70\.0%.*layer3: its exit answers 97\.0%") as caught:
        choose_cuts(fleet(board()), server=FAST_SERVER, min_exit_accuracy=0.99, exits=exits(0.7, 0.95, 0.97))
    assert caught.value.hint == "What would help: --min-exit-accuracy 0.97."


def test_a_board_between_two_constraints_is_told_what_would_help_against_each():
    """The deep cut has the exit that is asked for, and not the memory."""
    small = board(peak_mb=(300.0, 320.0, 500.0))
    with pytest.raises(PlanError, match="layer3: training there takes 500 MB") as caught:
        choose_cuts(fleet(small), server=FAST_SERVER, min_exit_accuracy=0.96, exits=exits(0.7, 0.95, 0.97))
    assert "a board with 625 MB" in caught.value.hint
    assert "--min-exit-accuracy 0.95" in caught.value.hint


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"min_exit_accuracy": 0.9}, "no model profile says"),
        ({"min_exit_accuracy": 95.0}, "a share from 0 to 1"),
        ({"deadline_ms": 0.0}, "above 0"),
        ({"deadline_ms": float("nan")}, "above 0"),
    ],
)
def test_constraints_out_of_range_are_refused(wrong: dict[str, float], words: str):
    with pytest.raises(PlanError, match=words):
        choose_cuts(fleet(board()), server=FAST_SERVER, **wrong)


def test_another_models_accuracies_are_refused():
    with pytest.raises(ProfileError, match="exit_head is 'conv', needed is 'pooled'"):
        choose_cuts(fleet(board()), server=FAST_SERVER, exits=exits(0.7, 0.8, 0.9, exit_head="conv"))


def test_what_an_agent_does_beside_the_step_is_counted_by_codec():
    profile = board(step_ms=(2.0,), kb=(1,), peak_mb=(300.0,))
    row = msgspec.structs.replace(profile.cuts[0], hand_over_ms={"float32": 0.5, "int8+zstd": 1.5})
    profile = msgspec.structs.replace(profile, cuts=(row,))

    def device_ms(codec: str) -> float:
        device = DeviceInput(name="board", profile=profile, n_batches=10, codec=codec)
        return only(choose_cuts([device], server=FAST_SERVER)).device_ms

    assert [device_ms(codec) for codec in ("float32", "int8+zstd", "float16")] == [25.0, 35.0, 20.0]


def test_sending_takes_the_core_of_a_board_that_has_only_one():
    profile = board(step_ms=(2.0,), kb=(1,), peak_mb=(300.0,))
    assert profile.link is not None
    sent = Transfer(payload_bytes=33_000, n_chunks=1, up_bytes_per_s=1e9, send_ms=0.7)
    profile = msgspec.structs.replace(profile, link=msgspec.structs.replace(profile.link, transfers=(sent,)))
    single = msgspec.structs.replace(profile, board=msgspec.structs.replace(profile.board, n_cores=1))

    def compute_ms(of: Profile) -> float:
        device = DeviceInput(name="board", profile=of, n_batches=1)
        return cut_cost(device, of.cuts[0], depth=0, batch_size=32, server_ms=0.0).compute_ms

    assert (compute_ms(profile), compute_ms(single)) == (2.0, 2.7)


def test_judging_the_exit_at_a_rounds_end_takes_time_too():
    row = msgspec.structs.replace(board().cuts[0], flop=100, train_flop=400)
    profile = msgspec.structs.replace(board(), cuts=(row,))
    device = DeviceInput(name="board", profile=profile, n_batches=10, n_held_out_batches=8)
    assert cut_cost(device, row, depth=0, batch_size=32, server_ms=0.0).device_ms == 10 * 2.0 + 8 * 2.0 / 4


def test_a_compressing_codec_counts_only_what_the_models_profile_knows():
    row = board(kb=(1, 1, 1)).cuts[0]
    known = exits(0.7, 0.8, 0.9, compressed={"int8+zstd": 0.5})
    assert upload_bytes(row, batch_size=32, codec="int8+zstd") == upload_bytes(
        row, batch_size=32, codec="int8"
    )
    assert upload_bytes(row, batch_size=32, codec="int8+zstd", exits=known) == 32 * 128 + 32 * 8 + 512


def test_the_planner_knows_the_codecs_of_the_wire():
    assert set(CODECS) == set(tensors.CODECS)


def test_another_batch_size_is_estimated_along_a_line():
    row = msgspec.structs.replace(
        board().cuts[0], step_ms_mean=4.0, step_ms_at={"16": 2.5, "48": 6.0}, hand_over_ms={"int8": 2.0}
    )
    profile = msgspec.structs.replace(board(), cuts=(row,))
    bigger = for_batch_size(profile, 64)
    assert bigger.training is not None
    assert bigger.training.batch_size == 64
    assert (bigger.cuts[0].step_ms_mean, bigger.cuts[0].hand_over_ms) == (8.0, {"int8": 4.0})
    assert for_batch_size(profile, 40).cuts[0].step_ms_mean == 5.0
    assert for_batch_size(profile, 8).cuts[0].step_ms_mean == 1.75
    assert bigger.cuts[0].peak_memory_mb > row.peak_memory_mb
    assert for_batch_size(profile, 32) is profile
    with pytest.raises(ProfileError, match="says too little"):
        for_batch_size(profile, 1024)


@pytest.mark.parametrize("aim", ["makespan", "device-time", "bytes"])
def test_a_thousand_devices_under_a_deadline_take_less_than_a_second_to_plan_and_write(aim: str):
    ten = board(step_ms=tuple(range(1, 11)), kb=(64,) * 10, peak_mb=(300.0,) * 10)
    devices = [
        DeviceInput(name=f"d{i}", profile=scaled(ten, 1 + i % 37 / 10), n_batches=5 + i % 11)
        for i in range(1000)
    ]
    server = ServerInput(step_ms={row.cut: 12.0 - i for i, row in enumerate(ten.cuts)})
    began = time.thread_time()
    plan = choose_cuts(devices, server=server, objective=aim, deadline_ms=60_000)
    text = plan_text(plan)
    assert time.thread_time() - began < 1.0
    assert len(text) > 100_000
    assert plan.round_ms <= 60_000
    assert plan.gap < 0.01
