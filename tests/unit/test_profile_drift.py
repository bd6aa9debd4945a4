"""What an agent says when its board no longer keeps the pace of its profile."""

import msgspec
import pytest

from device_agent.drift import Drift
from tests.unit.boards import board
from toolkit.profile.link import Link
from toolkit.profile.schema import profile_text
from toolkit.wire.job import Job

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


def drift(profile=BOARD, job=JOB) -> Drift:
    return Drift(profile_text(profile), job)


def train(watch: Drift, *, step_ms: float, n: int = 10) -> list[str]:
    for _ in range(n):
        watch.stepped(step_ms / 1e3)
    return watch.round_over()


def test_a_slower_step_is_told_once():
    watch = drift()
    assert train(watch, step_ms=29.0) == []
    (advice,) = train(watch, step_ms=35.0)
    assert "35 ms a step, and the plan counted on 20 ms" in advice
    assert "hsee profile" in advice
    assert train(watch, step_ms=50.0) == []


def test_every_round_is_judged_by_itself():
    watch = drift()
    train(watch, step_ms=5.0, n=1000)
    assert train(watch, step_ms=35.0) != []


def upload(watch: Drift, *, ms_a_batch: float) -> list[str]:
    now = 0.0
    for _ in range(10):
        watch.stepped(0.02)
        watch.sent(100_000)
        watch.looked(now, 100_000)
        now += ms_a_batch / 1e3
    watch.looked(now, 0)
    return watch.round_over()


def test_a_slower_link_is_told_and_an_assumed_one_is_not_judged():
    assert upload(drift(), ms_a_batch=120.0) == []
    (advice,) = upload(drift(), ms_a_batch=200.0)
    assert "200 ms a batch, and the plan counted on 100 ms" in advice
    assumed = Link(name="wifi", provenance="assumed", up_bytes_per_s=1e6, down_bytes_per_s=1e6, rtt_ms=1.0)
    assert upload(drift(msgspec.structs.replace(BOARD, link=assumed)), ms_a_batch=200.0) == []


def test_a_link_that_is_only_seen_between_steps_is_not_blamed():
    # Ten times the profile's upload, but no longer than a step: it may have been done at once.
    fast = msgspec.structs.replace(BOARD, link=msgspec.structs.replace(BOARD.link, up_bytes_per_s=1e9))
    assert upload(drift(fast), ms_a_batch=20.0) == []


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
    assert train(Drift(text, job), step_ms=1e6) == []
