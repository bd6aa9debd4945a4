"""Plans: what a change of limits changes, what is said, and what is refused."""

import time
from pathlib import Path

import msgspec
import pytest

from tests.unit.boards import FAST_SERVER, board, fleet, only, scaled
from toolkit.errors import PlanError, ProfileError
from toolkit.plan.choose import choose_cuts
from toolkit.plan.cost import DeviceInput, ServerInput, upload_bytes
from toolkit.plan.reason import duration
from toolkit.plan.schema import parse_plan, plan_text, read_plan, write_plan
from toolkit.profile.locate import find_profile
from toolkit.profile.schema import CutRow, read_profile


def test_a_slower_board_gets_a_shallower_cut():
    steady = board("steady", step_ms=(8.0, 8.0, 8.0))
    cuts = [
        choose_cuts(fleet(steady, scaled(board(), factor)), server=FAST_SERVER, slack=0).cuts["board"]
        for factor in (1.0, 2.0, 4.0)
    ]
    assert cuts == ["layer3", "layer2", "layer1"]


def test_a_slower_link_gets_a_cut_with_smaller_activations():
    wide, narrow = (board(up_bytes_per_s=up) for up in (1e9, 1e6))
    assert choose_cuts(fleet(wide), server=FAST_SERVER).cuts == {"board": "layer1"}
    plan = choose_cuts(fleet(narrow), server=FAST_SERVER)
    assert plan.cuts == {"board": "layer3"}
    assert only(plan).limited_by == "uplink"
    assert "limited by the uplink" in only(plan).reason


def test_a_smaller_codec_moves_the_bottleneck_back_to_compute():
    profile = board(kb=(4, 4, 4), up_bytes_per_s=5e7)
    limits = {
        codec: only(
            choose_cuts(
                [DeviceInput(name="board", profile=profile, n_batches=1, codec=codec)], server=FAST_SERVER
            )
        ).limited_by
        for codec in ("float32", "int8")
    }
    assert limits == {"float32": "uplink", "int8": "compute"}


def test_less_memory_rules_deeper_cuts_out_and_says_what_would_help():
    steady = board("steady", step_ms=(8.0, 8.0, 8.0), memory_mb=4096)
    plan = choose_cuts(fleet(steady, board(memory_mb=450)), server=FAST_SERVER)
    device = only(plan)
    assert device.cut == "layer2"
    assert device.limited_by == "memory"
    assert [(i.cut, i.constraint) for i in device.infeasible] == [("layer3", "memory")]
    assert "takes 400 MB of memory, and 360 MB may be used (80% of 450)" in device.infeasible[0].detail
    assert "--memory-share 0.89" in device.infeasible[0].fix
    assert (
        choose_cuts(fleet(steady, board(memory_mb=450)), server=FAST_SERVER, memory_share=0.89).cuts["board"]
        == "layer3"
    )


def test_a_board_of_256_mb_is_told_that_it_is_for_inference():
    with pytest.raises(PlanError, match="inference only") as caught:
        choose_cuts(fleet(board(memory_mb=256)), server=FAST_SERVER)
    assert "'board'" in caught.value.message
    assert "300 MB of memory, and 205 MB may be used" in caught.value.message
    assert caught.value.facts["constraint"] == "memory"


def test_a_slow_server_gives_devices_more_to_do():
    def cut(flop_per_s: float):
        plan = choose_cuts(fleet(board("a"), board("b")), server=ServerInput(flop_per_s=flop_per_s), slack=0)
        return plan.cuts["a"], plan.bottleneck

    assert cut(1e15) == ("layer1", "a")
    assert cut(1e9) == ("layer3", "server")


def test_the_server_is_shared_by_all_devices():
    server = ServerInput(step_ms={"layer1": 3.0, "layer2": 2.0, "layer3": 1.0})
    one = choose_cuts(fleet(board()), server=server, slack=0)
    four = choose_cuts(fleet(*(board(f"b{i}") for i in range(4))), server=server, slack=0)
    assert (one.cuts["board"], one.round_ms, one.bottleneck) == ("layer1", 30.0, "server")
    assert set(four.cuts.values()) == {"layer3"}
    assert (four.server_ms, four.round_ms) == (40.0, 80.0)


def test_slack_is_spent_on_depth():
    steady = board(step_ms=(10.0, 10.4, 12.0))
    cuts = {
        slack: choose_cuts(fleet(steady), server=FAST_SERVER, slack=slack).cuts["board"]
        for slack in (0, 0.05, 0.3)
    }
    assert cuts == {0: "layer1", 0.05: "layer2", 0.3: "layer3"}


def test_a_pin_is_kept_and_its_price_is_named():
    plan = choose_cuts(fleet(board()), server=FAST_SERVER, pins={"board": "layer2"})
    device = only(plan)
    assert (device.cut, device.pinned, device.reason[:6]) == ("layer2", True, "pinned")
    assert device.shallower is not None
    assert device.deeper is not None
    assert (device.shallower.cut, device.shallower.round_ms) == ("layer1", 20.0)
    assert (device.deeper.cut, device.deeper.round_ms) == ("layer3", 80.0)


@pytest.mark.parametrize(
    ("pins", "words"),
    [
        ({"bord": "layer1"}, "Did you mean 'board'"),
        ({"board": "layr1"}, "Did you mean 'layer1'"),
        ({"board": "layer3"}, "takes 400 MB"),
    ],
)
def test_a_pin_that_cant_be_kept_is_refused(pins: dict[str, str], words: str):
    with pytest.raises(PlanError, match=words):
        choose_cuts(fleet(board(memory_mb=450)), server=FAST_SERVER, pins=pins)


def test_another_models_profile_is_refused():
    with pytest.raises(ProfileError, match="n_classes is 12, needed is 10") as caught:
        choose_cuts(fleet(board("a"), board("b", n_classes=12)), server=FAST_SERVER)
    assert "hsee profile --model net --input 1x8x8 --classes 10 --batch 32" in caught.value.hint


def test_a_datasheet_is_refused_with_the_command_that_measures():
    sheet = read_profile(find_profile("raspberry-pi-4"))
    with pytest.raises(ProfileError, match=r"datasheet.*no measured step times.*hsee profile"):
        choose_cuts(fleet(sheet), server=FAST_SERVER)


def test_a_cut_whose_measurement_died_is_infeasible_and_the_rest_goes_on():
    profile = board()
    rows = (*profile.cuts[:2], CutRow(cut="layer3", failed="killed"))
    device = only(
        choose_cuts(fleet(msgspec.structs.replace(profile, cuts=rows)), server=FAST_SERVER, slack=9)
    )
    assert device.cut == "layer2"
    assert (device.infeasible[0].cut, device.infeasible[0].constraint) == ("layer3", "measurement")


def test_links_that_nobody_measured_are_named():
    plan = choose_cuts(fleet(board("wired"), board("unknown", up_bytes_per_s=None)), server=FAST_SERVER)
    assert plan.links_assumed == ("unknown",)
    assert only(plan, "unknown").upload_ms > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_share": 0.0},
        {"memory_share": 1.5},
        {"memory_share": float("nan")},
        {"slack": -0.1},
        {"slack": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]):
    with pytest.raises(PlanError):
        choose_cuts(fleet(board()), server=FAST_SERVER, **wrong)


def test_an_empty_fleet_and_a_name_given_twice_are_refused():
    with pytest.raises(PlanError, match="at least one device"):
        choose_cuts([], server=FAST_SERVER)
    with pytest.raises(PlanError, match="twice"):
        choose_cuts(fleet(board(), board()), server=FAST_SERVER)


def test_a_server_is_given_in_one_way_only():
    with pytest.raises(PlanError):
        ServerInput()
    with pytest.raises(PlanError):
        ServerInput(step_ms={"layer1": 1.0}, flop_per_s=1.0)
    assert "backward costs about twice" in ServerInput(flop_per_s=1e9).basis


def test_upload_counts_activations_in_their_codec_and_labels():
    row = board(kb=(1, 1, 1)).cuts[0]
    assert upload_bytes(row, batch_size=32, codec="float32") == 32 * 1024 + 32 * 8 + 512
    assert upload_bytes(row, batch_size=32, codec="int8") == 32 * 256 + 32 * 8 + 512


def test_a_plan_is_written_and_read_back(tmp_path: Path):
    plan = choose_cuts(fleet(board("a"), board("b", memory_mb=450)), server=FAST_SERVER, pins={"a": "layer2"})
    assert parse_plan(plan_text(plan)) == plan
    write_plan(tmp_path / "plan.toml", plan)
    assert read_plan(tmp_path / "plan.toml") == plan


def test_a_plan_edited_into_nonsense_is_refused():
    text = plan_text(choose_cuts(fleet(board()), server=FAST_SERVER))
    with pytest.raises(PlanError, match="Did you mean 'cut'"):
        parse_plan(text.replace('cut = "layer1"', 'cutt = "layer1"'))


def test_a_thousand_devices_of_ten_cuts_take_less_than_a_second():
    ten = board(step_ms=tuple(range(1, 11)), kb=(64,) * 10, peak_mb=(300.0,) * 10)
    devices = [
        DeviceInput(name=f"d{i}", profile=scaled(ten, 1 + i % 37 / 10), n_batches=5 + i % 11)
        for i in range(1000)
    ]
    began = time.thread_time()
    plan = choose_cuts(devices, server=ServerInput(flop_per_s=1e11))
    assert time.thread_time() - began < 1.0
    assert plan.shortest_round_ms <= plan.round_ms <= plan.shortest_round_ms * 1.05 + 0.001


@pytest.mark.parametrize(
    ("ms", "text"), [(0.42, "0.42 ms"), (9.97, "10 ms"), (48.3, "48 ms"), (1300, "1.3 s"), (2.5e6, "2,500 s")]
)
def test_durations_are_written_for_people(ms: float, text: str):
    assert duration(ms) == text
