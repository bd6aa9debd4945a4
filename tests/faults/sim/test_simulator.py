"""The promises of delivery in virtual time: seeds, failpoints, mutants, and one history a seed."""

import os
import subprocess
import sys
from typing import get_args

import pytest

from coordinator.rounds.loop import PARKED
from coordinator.store.ledger import Applied, Refused, Rewound, Synchronised, TermRaised, Void
from tests.faults.sim.mutants import MUTANTS
from tests.faults.sim.net import Weather
from tests.faults.sim.scenario import Failpoint, Fault, Kind, Scenario, scenario_of
from tests.faults.sim.seeds import run_seed, run_seeds
from tests.faults.sim.stage import SERVER_STEP_S
from tests.faults.sim.world import World
from toolkit.failpoints import FAILPOINTS

N_SEEDS = int(os.environ.get("HSEE_SEEDS", "300"))
N_PARTS = 6


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(N_PARTS))
def test_every_seed_is_as_promised(part):
    count = N_SEEDS // N_PARTS
    outcome = run_seeds(part * count, count)
    assert not outcome.failures, outcome.describe()


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_of_the_rules_is_caught(name):
    outcome = run_seeds(0, 300, MUTANTS[name], stop_at=1)
    assert outcome.failures, f"{name} shows in none of {outcome.n_seeds} seeds"


def fleet(strategy, **changes):
    facts = {
        "seed": 7,
        "lists": {"ant": (3, 1), "bee": (4, 0)},
        "step_s": {"ant": 0.3, "bee": 0.5},
        "strategy": strategy,
        "checkpoint_every_s": 1.0,
        "commit_every_s": 1.0,
    }
    return Scenario(**{**facts, **changes})


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
@pytest.mark.parametrize("broker_too", [False, True], ids=["alone", "broker lost too"])
@pytest.mark.parametrize("place", FAILPOINTS)
def test_a_process_may_die_at_every_failpoint(place, broker_too, power):
    """Each is hit, on its first and on its second time; the run ends as promised."""
    failpoints = tuple(Failpoint(place, hit, power, broker_too) for hit in (1, 2))
    history = World(fleet("averaging", failpoints=failpoints)).run()
    assert not history.problems
    assert history.n_crashes == 2


def test_one_seed_is_one_history_whatever_the_process():
    seeds = range(40, 44)
    here = [run_seed(seed).digest for seed in seeds]
    code = "from tests.faults.sim.seeds import run_seed; print(*(run_seed(s).digest for s in range(40, 44)))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert there.stdout.split() == here
    assert len(set(here)) == len(here)


def test_a_seed_is_replayed_by_one_command():
    told = subprocess.run(
        [sys.executable, "-m", "tests.faults.sim", "5"], capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines()[-1] == "as promised"
    assert run_seed(5).digest[:16] in told.stdout


def test_300_seeds_reach_every_kind_of_fault_and_every_failpoint():
    scenarios = [scenario_of(seed) for seed in range(300)]
    assert {fault.kind for scenario in scenarios for fault in scenario.faults} == set(get_args(Kind))
    assert {failpoint.place for scenario in scenarios for failpoint in scenario.failpoints} == set(FAILPOINTS)


@pytest.mark.parametrize("strategy", ["sequential", "averaging", "consolidated"])
@pytest.mark.parametrize("for_s", [20.0, 600.0, 8 * 3600.0], ids=["20 s", "10 min", "8 h"])
def test_a_device_without_network_trains_on_and_rejoins_the_open_round(strategy, for_s):
    """R6."""
    rounds = int(for_s // 120) + 4
    faults = (Fault(at_s=3.0, kind="cut", who="ant", for_s=for_s),)
    slow = {"ant": 5.0, "bee": 21.0}
    history = World(
        fleet(
            strategy,
            lists={"ant": (3, 0), "bee": (6, 0)},
            step_s=slow,
            rounds=rounds,
            faults=faults,
            deadline_s=300.0,
            horizon_s=1e5,
        )
    ).run()
    assert not history.problems
    void = [entry for entry in history.entries if isinstance(entry, Void) and entry.device == "ant"]
    back = [entry.round for entry in history.entries if isinstance(entry, Applied) and entry.device == "ant"]
    assert back[-1] == rounds
    if for_s > 100:
        assert {entry.reason for entry in void} == {"offline"}
        assert max(entry.round for entry in void) < rounds


@pytest.mark.parametrize("strategy", ["sequential", "averaging", "consolidated"])
@pytest.mark.parametrize("for_s", [60.0, 3600.0], ids=["1 min", "1 h"])
@pytest.mark.parametrize("cut_off", ["stop broker", "cut"])
def test_time_without_a_broker_is_nobodys_lateness(strategy, for_s, cut_off):
    """R8: what the coordinator can't hear does not count; not one batch is given up for it."""
    faults = (Fault(at_s=9.0, kind=cut_off, who="coordinator", for_s=for_s),)
    world = World(
        fleet(strategy, faults=faults, rounds=8, deadline_s=45.0, turn_s=40.0, absent_s=50.0, horizon_s=1e5)
    )
    history = world.run()
    assert not history.problems
    assert history.ended_s > for_s
    assert not [entry for entry in history.entries if isinstance(entry, Void)]


@pytest.mark.parametrize("n_gone", [1, 10, 20])
def test_devices_that_leave_for_ever_hold_no_round_beyond_its_deadline(n_gone):
    """R8: closed, or failed with a reason; never a stall."""
    devices = [f"dev{number:02d}" for number in range(20)]
    faults = tuple(
        Fault(at_s=6.0 + number / 10, kind="leave", who=devices[number]) for number in range(n_gone)
    )
    world = World(
        fleet(
            "averaging",
            lists=dict.fromkeys(devices, (3, 0)),
            step_s=dict.fromkeys(devices, 0.8),
            rounds=4,
            faults=faults,
            deadline_s=30.0,
            absent_s=100.0,
        )
    )
    history = world.run()
    if n_gone < 20:
        assert not history.problems
        assert {e.device for e in history.entries if isinstance(e, Void)} == set(devices[:n_gone])
    else:
        (problem,) = history.problems
        assert "PartialError: Every device has been gone for 100 s after round" in problem
    assert max(world.round_seconds) <= 30.0 + 1.0 + 20 * 3 * SERVER_STEP_S


@pytest.mark.parametrize("strategy", ["sequential", "averaging", "consolidated"])
def test_a_device_that_is_gone_holds_up_one_round_and_not_each(strategy):
    faults = (Fault(at_s=9.0, kind="leave", who="bee"),)
    world = World(fleet(strategy, faults=faults, rounds=12, deadline_s=300.0))
    history = world.run()
    assert not history.problems
    assert sum(seconds > 10.0 for seconds in world.round_seconds) == 1


def test_a_device_that_sends_only_what_is_unfit_is_parked_and_holds_nobody_up():
    """P1: refused with a reason, and after eight in a round waited for no longer."""
    world = World(fleet("sequential", lists={"ant": (12, 1), "bee": (4, 0)}, unfit={"ant": 1}, rounds=3))
    history = world.run()
    assert not history.problems
    assert {entry.device for entry in history.entries if isinstance(entry, Refused)} == {"ant"}
    assert {entry.reason for entry in history.entries if isinstance(entry, Void)} == {PARKED}
    assert max(world.round_seconds) < 30.0


def test_a_run_is_taken_back_and_devices_follow():
    faults = (Fault(at_s=9.0, kind="rewind"), Fault(at_s=14.0, kind="rewind", for_s=15.0))
    history = World(fleet("averaging", faults=faults, rounds=12, sync_every=1)).run()
    assert not history.problems
    assert sum(isinstance(entry, Rewound) for entry in history.entries) == 2


@pytest.mark.parametrize(
    "seed", [631, 932, 2351, 4417, 4516, 6206, 6685, 6923, 7432, 7863, 8458, 9008, 9041, 10053]
)
def test_seeds_beyond_the_quick_tier_that_failed_once(seed):
    """Copies of a run, and words of theirs that were lost, mostly (decision 0047)."""
    assert not run_seed(seed).problems


@pytest.mark.parametrize("p_loss", [0.0, 0.05])
def test_a_rival_with_a_copy_of_the_run_goes_on_alone(p_loss):
    """R23, elsewhere: the higher term."""
    rival = Fault(at_s=20.0, kind="rival")
    world = World(fleet("sequential", faults=(rival,), rounds=30, weather=Weather(0.02, p_loss=p_loss)))
    history = world.run()
    assert not history.problems
    assert world.ended == {"ant": "finished", "bee": "finished"}
    assert [entry.term for entry in history.entries if isinstance(entry, TermRaised)][-1] == 2


@pytest.mark.parametrize("p_loss", [0.0, 0.1])
@pytest.mark.parametrize("shares", [False, True], ids=["two accounts", "one account"])
@pytest.mark.parametrize("after_s", [0.5, 1.0, 15.0], ids=["first", "at once", "later"])
def test_of_two_copies_of_a_stopped_run_one_goes_on(after_s, shares, p_loss):
    """R23, with one term for both: the one that came first."""
    twins = Fault(at_s=20.0, kind="twins", for_s=after_s, shares=shares)
    weather = Weather(0.02, p_loss=p_loss)
    world = World(fleet("sequential", faults=(twins,), rounds=60, weather=weather))
    history = world.run()
    assert not history.problems
    assert world.ended == {"ant": "finished", "bee": "finished"}
    assert [entry.term for entry in history.entries if isinstance(entry, TermRaised)] == [1, 2]
    assert not world._was_handed_over or after_s != 15.0 or p_loss


@pytest.mark.parametrize("strategy", ["sequential", "averaging", "consolidated"])
def test_segments_are_made_one_whatever_is_lost(strategy):
    weather = Weather(delay_s=0.05, jitter_s=0.2, p_loss=0.15, p_double=0.2)
    history = World(fleet(strategy, sync_every=1, rounds=6, weather=weather, deadline_s=120.0)).run()
    assert not history.problems
    assert sum(isinstance(entry, Synchronised) for entry in history.entries) == 5


def test_late_deliveries_are_never_applied():
    """R9: every message doubled, and much later than the rounds it belongs to."""
    weather = Weather(delay_s=0.1, jitter_s=30.0, p_double=1.0, keeps_sessions=True)
    for seed in range(10):
        history = World(fleet("sequential", seed=seed, weather=weather, rounds=4, deadline_s=20.0)).run()
        assert not history.problems


def test_a_stopped_device_goes_on_and_a_replaced_one_ends():
    """R17, R18: SIGSTOP for 60 s; the same with a clone meanwhile."""
    stop = Fault(at_s=4.0, kind="stop agent", who="ant", for_s=60.0)
    slow = {"ant": 2.0, "bee": 2.0}
    alone = World(fleet("sequential", faults=(stop,), step_s=slow, rounds=6))
    assert not alone.run().problems
    assert alone.ended["ant"] == "finished"
    cloned = World(
        fleet("sequential", faults=(stop, Fault(at_s=5.0, kind="clone", who="ant")), step_s=slow, rounds=20)
    )
    assert not cloned.run().problems
    assert cloned.ended == {"ant": "fenced", "ant+": "finished", "bee": "finished"}


def test_days_leave_no_growth():
    """R21 in virtual time: what a coordinator and an agent hold after 600 rounds is what they held after 60."""
    sizes = {}
    for rounds in (60, 600):
        world = World(
            fleet("sequential", rounds=rounds, lists={"ant": (2, 0)}, step_s={"ant": 4.0}, horizon_s=1e5)
        )
        assert not world.run().problems
        sizes[rounds] = world.held
    assert sizes[600] == sizes[60]


def test_clocks_off_by_years_change_nothing():
    """R16: only differences count, for either side."""
    plain = World(fleet("averaging")).run()
    shifted = World(fleet("averaging"), clock_offsets={"coordinator": 1e9, "ant": 2e8, "bee": 7.0}).run()
    assert not plain.problems + shifted.problems
    assert shifted.entries == plain.entries


def test_whoever_finds_the_disk_full_leaves_what_it_held_and_comes_back():
    """R11: at any moment of a run."""
    for who in ("coordinator", "ant"):
        for at_s in range(20):
            fault = Fault(at_s=1.0 + at_s, kind="full disk", who=who, for_s=8.0)
            assert not World(fleet("averaging", faults=(fault,), rounds=6)).run().problems
