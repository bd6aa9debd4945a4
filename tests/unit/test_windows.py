"""Credit: what a link is seen to need, within one budget for all."""

import pytest

from coordinator.rounds.device_round import DeviceRound
from coordinator.rounds.windows import FLOOR, MAX_AHEAD, Pipe, Windows

MB = 10**6


def fleet(**n_train):
    return {device: DeviceRound(n, 0) for device, n in n_train.items()}


def windows_of(devices, *, batch_bytes=MB, budget=10, weights_bytes=0):
    return Windows(dict.fromkeys(devices, (batch_bytes, weights_bytes)), budget_bytes=budget * MB)


def nobody():
    return None


def limits(devices):
    return {device: held.limit for device, held in devices.items()}


def granted_bytes(windows, devices):
    return sum(windows.held_bytes(device, held) for device, held in devices.items())


def learn(pipe, *, rtt_s, rate_per_s, rounds=12):
    """What a link shows that takes ``rate_per_s`` batches and answers after ``rtt_s``, its window always full."""
    now, here, limit = 0.0, 0, 1 + FLOOR
    for _ in range(rounds):
        pipe.told(limit, now)
        first = now + rtt_s
        for number in range(limit - 1 - here):
            here += 1
            pipe.here(here, first + number / rate_per_s)
        now = first + number / rate_per_s
        limit = here + 1 + max(FLOOR, pipe.batches)
    return now, here


def test_a_pipe_that_nobody_has_seen_needs_nothing_beyond_the_floor():
    assert Pipe().batches == 0


@pytest.mark.parametrize(("rtt_s", "rate_per_s"), [(0.6, 100.0), (0.3, 20.0), (0.001, 50.0)])
def test_a_pipe_finds_out_what_its_link_holds(rtt_s, rate_per_s):
    """From two batches on: a window that is full shows no more than itself."""
    pipe = Pipe()
    learn(pipe, rtt_s=rtt_s, rate_per_s=rate_per_s)
    holds = rtt_s * rate_per_s
    assert holds <= pipe.batches <= 2 * holds + 4


def test_what_waits_in_queues_makes_no_link_longer():
    pipe = Pipe()
    now, here = learn(pipe, rtt_s=0.3, rate_per_s=20.0)
    before = pipe.batches
    for _ in range(500):  # told long before it is sent: 40 batches of credit are there already
        pipe.told(here + 41, now)
        now += 1 / 20.0
        here += 1
        pipe.here(here, now)
    assert pipe.batches <= before + 1


def test_a_link_that_has_changed_is_seen_anew_after_two_rounds():
    pipe = Pipe()
    learn(pipe, rtt_s=0.6, rate_per_s=100.0)
    for _ in range(2):
        pipe.begin_round()
        learn(pipe, rtt_s=0.01, rate_per_s=20.0)
    assert pipe.batches <= 4


def test_everybody_has_an_equal_share_while_there_is_room():
    devices = fleet(ant=100, bee=100)
    windows = windows_of(devices, budget=40)
    windows.grant(devices, nobody)
    assert limits(devices) == {"ant": 21, "bee": 21}
    devices["ant"].next = 11
    windows.grant(devices, nobody)
    assert limits(devices) == {"ant": 31, "bee": 21}


def test_credit_ends_with_the_list_and_never_falls():
    devices = fleet(ant=3)
    windows = windows_of(devices, budget=40)
    windows.grant(devices, nobody)
    assert limits(devices) == {"ant": 4}
    windows._budget_bytes = 0
    windows.grant(devices, nobody)
    assert limits(devices) == {"ant": 4}


def test_nobody_runs_ahead_without_end():
    devices = fleet(ant=1000)
    windows = windows_of(devices, budget=10**4)
    windows.grant(devices, nobody)
    assert limits(devices) == {"ant": 1 + MAX_AHEAD}


def test_a_long_fat_link_has_what_it_needs_before_others_run_ahead():
    devices = fleet(**{f"dev{n}": 500 for n in range(8)})
    windows = windows_of(devices, budget=48)
    learn(windows.pipes["dev3"], rtt_s=0.5, rate_per_s=30.0)
    windows.grant(devices, nobody)
    assert devices["dev3"].limit - 1 >= 15
    assert min(limits(devices).values()) == 1 + FLOOR
    assert granted_bytes(windows, devices) <= 48 * MB


@pytest.mark.parametrize("n", [1, 3, 11, 200])
@pytest.mark.parametrize("batch_mb", [1, 7, 40])
def test_what_is_granted_never_exceeds_the_budget_and_the_round_ends(n, batch_mb):
    """In an order: only the device whose turn it is has its batches used up."""
    devices = fleet(**{f"dev{number:03d}": 5 for number in range(n)})
    windows = windows_of(devices, batch_bytes=batch_mb * MB, budget=50)
    order = sorted(devices, reverse=True)

    def turn():
        return next((device for device in order if devices[device].next <= 5), None)

    for _ in range(5 * n):
        windows.grant(devices, turn)
        assert granted_bytes(windows, devices) <= 50 * MB
        held = devices[turn()]
        assert held.limit > held.next, "the device that all wait for may send nothing"
        held.next += 1
    assert turn() is None


def test_weights_larger_than_the_budget_travel_alone():
    devices = {device: DeviceRound(1, 0, n_weights=1) for device in ("ant", "bee")}
    windows = windows_of(devices, budget=5, weights_bytes=15 * MB)
    windows.grant(devices, nobody)
    assert limits(devices) == {"ant": 2, "bee": 2}
    devices["ant"].next = devices["bee"].next = 2
    windows.grant(devices, nobody)
    assert limits(devices) == {"ant": 3, "bee": 2}
    devices["ant"].next = 3
    windows.grant(devices, nobody)
    assert limits(devices) == {"ant": 3, "bee": 3}


def test_weights_at_a_lists_end_count_with_their_own_length():
    devices = {"ant": DeviceRound(1, 0, n_weights=1), "bee": DeviceRound(8, 0)}
    windows = windows_of(devices, budget=20, weights_bytes=15 * MB)
    windows.grant(devices, nobody)
    assert devices["ant"].limit == 3
    assert granted_bytes(windows, devices) <= 20 * MB


def test_an_excused_device_holds_what_is_here_in_order_and_no_more():
    """Found by seed 10053 of the simulator: a batch behind a gap counted as one, and the device's credit, when it was back,
    as all before it."""
    devices = fleet(ant=20, bee=20)
    windows = windows_of(devices, budget=20)
    windows.grant(devices, nobody)
    devices["ant"].waiting = dict.fromkeys((1, 2, 5))
    devices["ant"].excuse("offline")
    assert windows.held_bytes("ant", devices["ant"]) == 2 * MB
    devices["ant"].expect()
    assert devices["ant"].limit == 3
    assert windows.held_bytes("ant", devices["ant"]) == 2 * MB
