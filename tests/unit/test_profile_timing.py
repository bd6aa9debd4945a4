"""Blocks, a settled start and medians, on a clock of the test's own."""

from types import SimpleNamespace

import pytest

from toolkit.profile import timing
from toolkit.profile.schema import Limits
from toolkit.profile.timing import Pace, Timing, time_steps

PACE = Pace(block_s=1.0, settled_within=0.05, warm_max_s=100.0, n_min=5, min_s=8.0, max_s=50.0)


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(wall=0.0, cpu=0.0)
    fake = SimpleNamespace(perf_counter=lambda: now.wall, process_time=lambda: now.cpu)
    monkeypatch.setattr(timing, "time", fake)
    return now


def step_of(clock, wall_s, cpu_s=None):
    def step(index):
        clock.wall += wall_s(index)
        clock.cpu += (cpu_s or wall_s)(index)

    return step


def test_a_slow_start_is_not_counted(clock):
    measured = time_steps(step_of(clock, lambda i: max(0.1, 2.0 * 0.8**i)), PACE)
    assert measured.mean_ms == pytest.approx(100)
    assert measured.p95_ms == pytest.approx(100)


def test_a_block_in_which_another_program_worked_is_outvoted(clock):
    disturbed = range(40, 44)
    measured = time_steps(step_of(clock, lambda i: 0.5 if i in disturbed else 0.1), PACE)
    assert measured.mean_ms == pytest.approx(100)


def test_steps_of_a_throttled_process_average_out(clock):
    # Nine quick ones, and one that waits for the next period.
    measured = time_steps(step_of(clock, lambda i: 0.91 if i % 10 == 9 else 0.01), PACE)
    assert measured.mean_ms == pytest.approx(100, rel=0.15)
    assert measured.p50_ms == pytest.approx(10)


def test_a_step_slower_than_the_whole_pace_is_timed_once(clock):
    measured = time_steps(step_of(clock, lambda _: 200.0), PACE)
    assert (measured.n_steps, measured.mean_ms) == (1, 200_000)


def test_a_bounded_pace_keeps_its_bound(clock):
    bounded = PACE.at_most(4.0)
    time_steps(step_of(clock, lambda _: 0.1), bounded)
    assert clock.wall <= 4.5


def test_an_emulated_board_is_as_fast_as_its_share_of_the_processor():
    busy_host = Timing(mean_ms=50.0, p50_ms=40.0, p95_ms=90.0, cpu_ms=5.0, n_steps=9)
    board = busy_host.within(Limits(cpu_percent=20, memory_mb=512), threads=1, factor=1.0)
    assert (board.mean_ms, board.p50_ms, board.cpu_ms) == (25.0, 40.0, 5.0)
    assert busy_host.within(None, threads=1, factor=1.0) is busy_host


def test_without_a_cgroup_single_times_are_multiplied():
    free = Timing(mean_ms=5.0, p50_ms=5.0, p95_ms=6.0, cpu_ms=5.0, n_steps=9)
    board = free.within(Limits(cpu_percent=20, memory_mb=512), threads=1, factor=5.0)
    assert (board.mean_ms, board.p50_ms, board.p95_ms) == (25.0, 25.0, 30.0)
