"""Rule 14 in virtual time: a long fat link is kept busy, devices run ahead, and memory holds; mutants do not."""

from collections import Counter

import pytest

from coordinator.rounds import windows
from coordinator.rounds.windows import FLOOR, Windows
from tests.faults.sim.models import BATCH_BYTES
from tests.faults.sim.net import Weather
from tests.faults.sim.oracle import Tape
from tests.faults.sim.scenario import Scenario
from tests.faults.sim.world import World
from toolkit.wire import frames
from toolkit.wire.messages import Chunk

LONG = Weather(delay_s=0.1)
"""400 ms from telling credit to what comes of it: there and back, by way of the broker."""
N_FAT = 200


def play(strategy, lists, step_s, *, budget, weather=LONG):
    world = World(
        Scenario(
            seed=3,
            lists=lists,
            step_s=step_s,
            strategy=strategy,
            rounds=2,
            deadline_s=600.0,
            weather=weather,
            waiting_bytes=budget * BATCH_BYTES,
        )
    )
    return world.run().problems, world.round_seconds[-1]


def fat_link():
    """One fast device behind 400 ms among seven that have little to send; an equal share is six batches."""
    lists = {"ant": (N_FAT, 0)} | {f"dev{n}": (2, 0) for n in range(7)}
    step_s = {"ant": 0.02} | {f"dev{n}": 1.0 for n in range(7)}
    return play("averaging", lists, step_s, budget=48)


def in_turn():
    """Four devices of ten steps of a second each, trained on one after the other."""
    devices = ("ant", "bee", "cat", "dog")
    return play(
        "sequential",
        dict.fromkeys(devices, (10, 0)),
        dict.fromkeys(devices, 1.0),
        budget=48,
        weather=Weather(delay_s=0.01),
    )


def test_a_long_fat_link_keeps_its_device_busy():
    problems, seconds = fat_link()
    assert not problems
    assert seconds < 1.5 * N_FAT * 0.02


def test_devices_run_ahead_of_their_turn_while_there_is_room():
    problems, seconds = in_turn()
    assert not problems
    assert seconds < 1.5 * 10.0


def only_what_links_need(self, device):
    return max(FLOOR, self.pipes[device].batches)


def only_a_share(self, _device):
    return max(FLOOR, self._budget_bytes // (len(self._item_bytes) * BATCH_BYTES))


def test_mutant_goodput_times_round_trip_alone_loses_what_devices_do_at_the_same_time(monkeypatch):
    """Rule 14 as it was first written."""
    monkeypatch.setattr(Windows, "window", only_what_links_need)
    problems, seconds = in_turn()
    assert not problems
    assert seconds > 1.5 * 10.0


def test_mutant_an_equal_share_alone_starves_a_long_fat_link(monkeypatch):
    monkeypatch.setattr(Windows, "window", only_a_share)
    problems, seconds = fat_link()
    assert not problems
    assert seconds > 2.5 * N_FAT * 0.02


def test_mutant_a_window_of_what_was_seen_never_sees_more(monkeypatch):
    """Goodput is bounded by the window that it is measured in."""
    monkeypatch.setattr(windows, "GAIN", 1.0)
    problems, seconds = fat_link()
    assert not problems
    assert seconds > 2.5 * N_FAT * 0.02


def test_mutant_two_batches_for_everybody_whatever_the_memory(monkeypatch):
    def grant(self, devices, _turn):
        for device, held in devices.items():
            held.limit = max(held.limit, self._stop(held, self.window(device)))

    monkeypatch.setattr(Windows, "grant", grant)
    devices = [f"dev{n}" for n in range(20)]
    problems, _ = play("averaging", dict.fromkeys(devices, (5, 0)), dict.fromkeys(devices, 0.1), budget=10)
    assert any(problem.startswith("(14)") for problem in problems)


@pytest.mark.parametrize("strategy", ["sequential", "averaging", "consolidated"])
@pytest.mark.parametrize("budget", [1, 3, 10])
def test_a_fleet_too_large_for_the_memory_goes_on_one_after_the_other(strategy, budget):
    devices = [f"dev{n:02d}" for n in range(20)]
    problems, seconds = play(
        strategy,
        dict.fromkeys(devices, (5, 1)),
        dict.fromkeys(devices, 0.1),
        budget=budget,
        weather=Weather(delay_s=0.01),
    )
    assert not problems
    assert seconds < 60.0


@pytest.mark.parametrize("strategy", ["sequential", "averaging"])
def test_who_waits_for_others_sends_each_batch_once(strategy, monkeypatch):
    """Batches that wait for their turn have come: the state message names what has not."""
    n_sent, published = Counter(), Tape.agent_published

    def counted(tape, device, process, topic, payload):
        if topic.endswith("/up"):
            message, _ = frames.decode(payload)
            n_sent[device] += isinstance(message, Chunk) and not message.index
        published(tape, device, process, topic, payload)

    monkeypatch.setattr(Tape, "agent_published", counted)
    lists = dict.fromkeys(("ant", "bee", "cat"), (4, 1))
    problems, _ = play(
        strategy, lists, {"ant": 20.0, "bee": 0.1, "cat": 0.1}, budget=48, weather=Weather(0.02)
    )
    assert problems == []
    assert n_sent == dict.fromkeys(lists, 10)
