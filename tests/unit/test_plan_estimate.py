"""Cuts that nobody measured, put between those that somebody did."""

import msgspec
import pytest

from tests.unit.boards import FAST_SERVER, fleet, only
from toolkit.errors import PlanError
from toolkit.plan.choose import choose_cuts
from toolkit.plan.estimate import for_batch_size, with_every_cut
from toolkit.profile.locate import find_profile
from toolkit.profile.schema import CutRow, Profile, parse_profile, profile_text, read_profile

MIDDLE = read_profile(find_profile("middle"))
LAYERS = (4, 7, 12, 20)
"""Parameterised layers at each cut of a network that never was."""
MFLOP = (1, 10, 16, 24)


def lawful() -> Profile:
    """A board on which a layer costs 0.5 ms whatever the batch, and a MFLOP 0.1 ms for each sample."""

    def step_ms(depth: int, size: int) -> float:
        return 0.5 * LAYERS[depth] + 0.1 * MFLOP[depth] * size

    rows = tuple(
        CutRow(
            cut=f"layer{depth}",
            step_ms_mean=step_ms(depth, 32),
            step_ms_p50=step_ms(depth, 32),
            step_ms_p95=2 * step_ms(depth, 32),
            n_steps=20,
            peak_memory_mb=250.0 + depth,
            flop=MFLOP[depth] * 10**6 // 3,
            train_flop=MFLOP[depth] * 10**6,
            suffix_flop=100,
            n_parameters=100,
            n_layers=LAYERS[depth],
            activation_bytes=(4000, 4000, 2000, 1000)[depth],
            step_ms_at={str(size): step_ms(depth, size) for size in (16, 48)},
            hand_over_ms={"float32": 0.4},
            at_work_ms={"float32": step_ms(depth, 32) + 1.0},
        )
        for depth in range(len(LAYERS))
    )
    return msgspec.structs.replace(MIDDLE, name="board", cuts=rows, link=None)


def without(profile: Profile, *cuts: str) -> Profile:
    """The same profile as if these cuts had not been measured."""
    rows = tuple(
        CutRow(
            cut=row.cut,
            unmeasured=True,
            flop=row.flop,
            train_flop=row.train_flop,
            suffix_flop=row.suffix_flop,
            n_parameters=row.n_parameters,
            n_layers=row.n_layers,
            activation_bytes=row.activation_bytes,
        )
        if row.cut in cuts
        else row
        for row in profile.cuts
    )
    return msgspec.structs.replace(profile, cuts=rows)


@pytest.mark.parametrize("left_out", [("layer1",), ("layer2",), ("layer1", "layer2")])
@pytest.mark.parametrize("batch_size", [32, 40])
def test_where_the_law_holds_the_estimate_is_exact(left_out: tuple[str, ...], batch_size: int):
    whole = for_batch_size(lawful(), batch_size)
    estimated = with_every_cut(for_batch_size(without(lawful(), *left_out), batch_size))
    for row, wanted in zip(estimated.cuts, whole.cuts, strict=True):
        assert row.step_ms_mean == pytest.approx(wanted.step_ms_mean)
        assert row.unmeasured is (row.cut in left_out)
    assert with_every_cut(estimated) == estimated


def test_a_real_boards_middle_cut_is_met_within_a_quarter():
    """``middle`` counted no layers: FLOP alone are less than is to be had."""
    layers = {"stem": 4, "layer1": 8, "layer2": 14}
    rows = tuple(msgspec.structs.replace(row, n_layers=layers[row.cut]) for row in MIDDLE.cuts)
    counted = msgspec.structs.replace(MIDDLE, cuts=rows)
    estimated = with_every_cut(without(counted, "layer1")).cuts[1]
    assert estimated.step_ms_mean == pytest.approx(MIDDLE.cuts[1].step_ms_mean, rel=0.25)
    assert estimated.peak_memory_mb == pytest.approx(MIDDLE.cuts[1].peak_memory_mb, rel=0.05)


def test_what_is_sent_is_scaled_by_its_bytes():
    row = with_every_cut(without(lawful(), "layer2")).cuts[2]
    # 2,000 bytes between 4,000 and 1,000.
    assert row.hand_over_ms["float32"] == pytest.approx(0.4 * 2000 / 2500)
    assert row.at_work_ms["float32"] == pytest.approx(row.step_ms_mean + 1.0 * 2000 / 2500)


def test_one_side_that_was_disturbed_does_not_double_its_disturbance():
    """Found by the bench: layer2 sends half of what layer1 does, and what it took beside the step counted twice."""
    rows = list(lawful().cuts)
    rows[3] = msgspec.structs.replace(rows[3], at_work_ms={"float32": rows[3].step_ms_mean + 20.0})
    row = with_every_cut(without(msgspec.structs.replace(lawful(), cuts=tuple(rows)), "layer2")).cuts[2]
    assert row.at_work_ms["float32"] == pytest.approx(row.step_ms_mean + 10.5 * 2000 / 2500)


def test_memory_grows_by_parameters_and_by_outputs_of_layers():
    """Five layers of 2,000 bytes a sample on one side, eight of 1,000 on the other."""
    row = with_every_cut(without(lawful(), "layer2")).cuts[2]
    assert row.peak_memory_mb == pytest.approx(251 + 2 * 10 / 18)
    heavy = [
        msgspec.structs.replace(r, n_parameters=10**6 * n)
        for r, n in zip(lawful().cuts, (1, 1, 1, 9), strict=True)
    ]
    row = with_every_cut(without(msgspec.structs.replace(lawful(), cuts=tuple(heavy)), "layer2")).cuts[2]
    assert row.peak_memory_mb == pytest.approx(251, abs=0.02)


def test_a_line_is_not_drawn_beyond_its_ends():
    profile = with_every_cut(without(lawful(), "layer0", "layer3"))
    assert [bool(row.step_ms_mean) for row in profile.cuts] == [False, True, True, False]
    made = only(choose_cuts(fleet(profile), server=FAST_SERVER))
    assert [(i.cut, i.constraint) for i in made.infeasible] == [
        ("layer0", "measurement"),
        ("layer3", "measurement"),
    ]
    assert "does not lie between cuts that were measured" in made.infeasible[0].detail
    assert "--cuts" in made.infeasible[0].fix
    with pytest.raises(PlanError, match="nobody measured it"):
        choose_cuts(fleet(profile), server=FAST_SERVER, pins={"board": "layer3"})


def test_a_plan_says_that_its_cut_was_estimated():
    made = only(choose_cuts(fleet(without(lawful(), "layer2")), server=FAST_SERVER, pins={"board": "layer2"}))
    assert made.estimated
    assert made.reason.startswith("pinned; estimated, not measured; ")
    assert not only(choose_cuts(fleet(lawful()), server=FAST_SERVER)).estimated


def test_a_stopped_measurement_is_no_shallow_model():
    stopped = msgspec.structs.replace(lawful(), cuts=lawful().cuts[:2], partial=True)
    made = only(choose_cuts(fleet(stopped), server=FAST_SERVER))
    assert "the profile is partial: a deeper cut, if the model has one, was not measured" in made.reason
    whole = only(choose_cuts(fleet(lawful()), server=FAST_SERVER, pins={"board": "layer3"}))
    assert "the model has no deeper cut" in whole.reason


def test_a_failed_row_is_no_end_of_a_line():
    first, second, third, last = without(lawful(), "layer1").cuts
    broken = msgspec.structs.replace(
        lawful(), cuts=(first, second, CutRow(cut=third.cut, failed="oom"), last)
    )
    assert with_every_cut(broken).cuts[1].step_ms_mean == pytest.approx(lawful().cuts[1].step_ms_mean)


def test_an_unmeasured_row_is_written_and_read_as_it_was():
    profile = without(lawful(), "layer1")
    assert parse_profile(profile_text(profile)) == profile
    assert "unmeasured = true" in profile_text(profile)
