"""A board that no longer keeps the pace of its profile: what is found, and what its owner hears of it."""

import msgspec
import pytest

from device_agent.drift import PaceWatch
from tests.unit.boards import board
from toolkit.profile.drift import Drifted, at_pace, find_drift
from toolkit.profile.link import Link
from toolkit.profile.schema import Emulation, profile_text
from toolkit.wire.job import Job
from toolkit.wire.messages import Pace

BOARD = board(step_ms=(10.0, 20.0, 40.0), up_bytes_per_s=1e6)
assert BOARD.model is not None
JOB = Job(
    run="r1",
    model=BOARD.model,
    cut="layer2",
    classes=[str(i) for i in range(10)],
    mean=[0.0],
    std=[1.0],
    seed=0,
    rounds=3,
    batch_size=32,
    exit_head="pooled",
)


def watch(profile=BOARD, job=JOB) -> PaceWatch:
    return PaceWatch(profile_text(profile), device="kitchen", job=job)


def advice(pace_watch: PaceWatch) -> list[str]:
    pace = pace_watch.round_over(1)
    assert pace is not None
    return pace_watch.advice(pace)


def train(pace_watch: PaceWatch, *, step_ms: float, n: int = 300) -> list[str]:
    for _ in range(n):
        pace_watch.stepped(step_ms / 1e3)
    return advice(pace_watch)


def test_a_slower_step_is_told_once():
    board_watch = watch()
    assert train(board_watch, step_ms=29.0) == []
    (said,) = train(board_watch, step_ms=35.0)
    assert "slower than its profile: a step takes 35 ms, and its profile says 20 ms" in said
    assert "hsee profile" in said
    assert train(board_watch, step_ms=50.0) == []


def test_a_quicker_step_is_told_too():
    assert train(watch(), step_ms=14.0) == []
    (said,) = train(watch(), step_ms=10.0)
    assert "quicker than its profile" in said


def test_rounds_with_enough_work_are_judged_by_themselves():
    board_watch = watch()
    train(board_watch, step_ms=20.0, n=1000)
    assert train(board_watch, step_ms=35.0) != []
    assert board_watch.round_over(3) is None


def test_short_rounds_are_judged_together():
    board_watch = watch()
    # A second at twice the profile's time, and a second at its own: under a quota means of a few steps jump so.
    assert train(board_watch, step_ms=40.0, n=25) == []
    assert train(board_watch, step_ms=20.0, n=50) == []
    assert train(board_watch, step_ms=40.0, n=25) == []
    assert train(board_watch, step_ms=40.0, n=25) != []


def upload(pace_watch: PaceWatch, *, ms_a_batch: float) -> list[str]:
    now = 0.0
    for _ in range(110):
        pace_watch.stepped(0.02)
        pace_watch.sent(100_000)
        pace_watch.looked(now, 100_000)
        now += ms_a_batch / 1e3
    pace_watch.looked(now, 0)
    return advice(pace_watch)


def test_a_slower_link_is_told_and_an_assumed_one_is_not_judged():
    assert upload(watch(), ms_a_batch=120.0) == []
    (said,) = upload(watch(), ms_a_batch=200.0)
    assert "an upload takes 200 ms, and its profile says 100 ms" in said
    assumed = Link(name="wifi", provenance="assumed", up_bytes_per_s=1e6, down_bytes_per_s=1e6, rtt_ms=1.0)
    assert upload(watch(msgspec.structs.replace(BOARD, link=assumed)), ms_a_batch=200.0) == []


def test_a_link_that_is_only_seen_between_steps_is_not_blamed():
    # Ten times the profile's upload, but no longer than a step: it may have been done at once.
    fast = msgspec.structs.replace(BOARD, link=msgspec.structs.replace(BOARD.link, up_bytes_per_s=1e9))
    assert upload(watch(fast), ms_a_batch=20.0) == []


@pytest.mark.parametrize(
    ("text", "job"),
    [
        ("", JOB),
        ("profile", JOB),
        (profile_text(BOARD), msgspec.structs.replace(JOB, batch_size=64)),
        (profile_text(BOARD), msgspec.structs.replace(JOB, cut="layer9")),
    ],
)
def test_a_profile_of_something_else_is_compared_with_nothing(text: str, job: Job):
    assert train(PaceWatch(text, device="kitchen", job=job), step_ms=1e6) == []


def pace(step_ms: float) -> Pace:
    return Pace(device="kitchen", round=1, n_steps=5, step_ms=step_ms)


def test_what_the_rest_of_an_agent_costs_a_step_is_no_drift():
    rows = tuple(
        msgspec.structs.replace(row, at_work_ms={"float32": 2 * row.step_ms_mean}) for row in BOARD.cuts
    )
    board_at_work = msgspec.structs.replace(BOARD, cuts=rows)

    def found(step_ms: float) -> tuple[Drifted, ...]:
        return find_drift(board_at_work, cut="layer2", codec="float32", pace=pace(step_ms))

    assert found(20.0) == found(38.0) == found(59.0) == ()
    assert found(80.0) == (Drifted("step", 80.0, 40.0),)


def test_times_that_were_multiplied_are_not_compared_with_a_board_at_full_speed():
    limits = Emulation(cpu_percent=20, memory_mb=512, mechanism="factor")
    provenance = msgspec.structs.replace(BOARD.provenance, kind="emulated", limits=limits)
    multiplied = msgspec.structs.replace(BOARD, provenance=provenance)
    assert find_drift(multiplied, cut="layer2", codec="float32", pace=pace(4.0)) == ()


def test_a_board_at_its_pace_is_slower_in_every_cut_and_upload():
    slow = at_pace(BOARD, [Drifted("step", 30.0, 20.0), Drifted("upload", 400.0, 100.0)])
    assert [row.step_ms_mean for row in slow.cuts] == [15.0, 30.0, 60.0]
    assert slow.link is not None
    assert slow.link.upload_ms(1_000_000) == pytest.approx(4000.0)
