"""A run that goes on: resumed, taken back, taken up elsewhere; and what a full disk leaves of it."""

import csv
import errno
import shutil

import msgspec
import pytest

from coordinator.fleet.events import Ended, Notice, PlanMade, RoundClosed
from coordinator.server import Coordinator
from coordinator.store.checkpoints import Checkpoints
from coordinator.store.ledger import Applied, Closed, Issued, Ledger, Rewound, read_ledger
from coordinator.store.run_folder import RunFolder
from tests.integration.small_fleet import is_over, of_kind, ready, resumed
from tests.numerics.fleet import RUN, TOPICS
from toolkit.disk import SystemDisk
from toolkit.errors import MachineError, RunError
from toolkit.link.memory import MemoryLink


def test_a_resumed_run_is_the_same_as_one_that_was_never_stopped(make_fleet):
    fleet = make_fleet(rounds=5)
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 3)
    for _ in range(3):  # in the middle of a round
        fleet.sweep()
    fleet.coordinator.end("stopped", "by hand")
    resumed(fleet)
    fleet.run_until(is_over(fleet))
    assert fleet.coordinator.term == 2
    with (fleet.path / "run/metrics.csv").open(newline="") as file:
        rows = [(int(row["round"]), row["device"]) for row in csv.DictReader(file)]
    assert rows == [(round_, device) for round_ in range(1, 6) for device in ("ant", "bee")]
    for name in fleet.members:
        for round_ in range(1, 6):
            assert fleet.trained_in(name, round_) == list(range(1, fleet.n_train(name) + 1))
    issued = [e for e in read_ledger(fleet.path / "run/ledger.jsonl") if isinstance(e, Issued)]
    for name in fleet.members:  # one a process, whichever coordinator asks
        assert [entry.incarnation for entry in issued if entry.device == name] == [1]


def test_a_run_without_progress_ends_early_and_so_it_does_when_resumed(make_fleet):
    fleet = make_fleet(rounds=40, patience=2, lr=1e-9)
    fleet.start()
    fleet.run_until(is_over(fleet))
    last = of_kind(fleet, RoundClosed)[-1].report.round
    assert last < 40
    ended = Ended(
        "finished",
        f"After round {last} of 40: no evaluation was better than that of round {last - 2} (run.patience = 2).",
    )
    assert fleet.events[-1] == ended
    assert all(m.agent.result() == ended.detail for m in fleet.members.values())
    resumed(fleet)
    while not fleet.coordinator.over:
        fleet.sweep()
    assert fleet.events[-1] == ended


def test_a_run_ends_when_its_time_is_up_also_if_it_was_resumed_meanwhile(make_fleet):
    fleet = make_fleet(rounds=40)
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 3)
    fleet.coordinator.end("stopped", "by hand")
    fleet.settings = msgspec.structs.replace(fleet.settings, stop_after_s=1.0)
    resumed(fleet)
    fleet.run_until(is_over(fleet))
    *before, last = [event.report.seconds for event in of_kind(fleet, RoundClosed)]
    assert len(before) >= 3
    assert sum(before) < 1.0 <= sum(before) + last
    assert "(run.stop_after_s = " in fleet.events[-1].detail


def test_a_run_that_was_stopped_before_it_began_waits_again(make_fleet):
    fleet = make_fleet()
    fleet.start("ant")
    fleet.run_until(lambda: ready(fleet) == ("ant",))
    fleet.coordinator.end("stopped", "by hand")
    resumed(fleet)
    fleet.start("bee")
    fleet.run_until(is_over(fleet))
    assert fleet.coordinator.status == "finished"


def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(make_fleet, monkeypatch):
    fleet = make_fleet()
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 2)

    def refuse(_ledger):
        raise MachineError("The disk is full.")

    with monkeypatch.context() as full:
        full.setattr(Ledger, "sync", refuse)
        with pytest.raises(MachineError):
            fleet.run_until(is_over(fleet))
    assert fleet.events[-1] == Ended("stopped", "The disk is full.")
    resumed(fleet)
    fleet.run_until(is_over(fleet))
    assert fleet.coordinator.status == "finished"
    for name in fleet.members:
        for round_ in (1, 2, 3):
            assert fleet.trained_in(name, round_) == list(range(1, fleet.n_train(name) + 1))


def test_a_disk_that_failed_is_left_alone(make_fleet, monkeypatch):
    fleet = make_fleet()
    fleet.start()
    fleet.run_until(lambda: of_kind(fleet, RoundClosed))
    synced = []

    def fail(path):
        synced.append(path)
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(fleet.coordinator._folder, "disk", FailingDisk(fail))
        with pytest.raises(MachineError, match="Input/output error"):
            fleet.run_until(is_over(fleet))
    assert len(synced) == 1
    assert of_kind(fleet, Ended)[-1].status == "stopped"
    resumed(fleet)
    fleet.run_until(is_over(fleet))
    assert fleet.coordinator.status == "finished"


class FailingDisk(SystemDisk):
    """Folders can't be synced."""

    def __init__(self, fail):
        self.sync_folder = fail


def test_a_finished_run_that_is_resumed_is_finished(make_fleet):
    fleet = make_fleet()
    fleet.start()
    fleet.run_until(is_over(fleet))
    resumed(fleet)
    fleet.run_until(lambda: fleet.coordinator.over)  # once it can tell devices
    assert fleet.coordinator.detail == "All 3 rounds are done."
    assert [kept.round for kept in Checkpoints(fleet.path / "run/checkpoints").kept()] == [2, 3]


def test_a_rewound_run_trains_its_last_round_again_under_a_new_term(make_fleet):
    fleet = make_fleet(rounds=4)
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 3)
    fleet.coordinator.end("stopped", "by hand")
    fleet.coordinator.close()
    folder = RunFolder(fleet.path / "run", RUN)
    folder.rewind()
    folder.close()
    resumed(fleet)
    fleet.run_until(is_over(fleet))
    entries = read_ledger(fleet.path / "run/ledger.jsonl")
    assert [entry for entry in entries if isinstance(entry, Rewound)] == [Rewound(1, 2)]
    assert [entry.round for entry in entries if isinstance(entry, Closed)] == [1, 2, 3, 4]
    for name in fleet.members:
        for round_ in range(1, 5):
            assert fleet.trained_in(name, round_) == list(range(1, fleet.n_train(name) + 1))


@pytest.mark.parametrize("strategy", ["sequential", "averaging"])
def test_a_run_killed_within_a_round_goes_on_from_its_last_commit_there(make_fleet, strategy):
    fleet = make_fleet(rounds=2, strategy=strategy, commit_every_s=1e-9, round_steps=6)
    fleet.start()
    fleet.run_until(lambda: of_kind(fleet, PlanMade) and n_taken(fleet) >= 5)
    newest = fleet.coordinator._folder.checkpoints.kept()[-1].state()
    assert newest.open is not None
    fleet.coordinator._link.close()
    fleet.coordinator._ledger._held.clear()  # as a kill leaves it
    resumed(fleet)
    assert n_taken(fleet) == sum(held.next - 1 for held in newest.open.devices.values())
    fleet.run_until(is_over(fleet))
    entries = read_ledger(fleet.path / "run/ledger.jsonl")
    for name in fleet.members:
        applied = [(e.round, e.seq) for e in entries if isinstance(e, Applied) and e.device == name]
        assert applied == sorted(set(applied))
        assert fleet.trained_in(name, 1) == fleet.trained_in(name, 2) == list(range(1, 7))


def n_taken(fleet):
    loop = fleet.coordinator._underway.loop
    return sum(held.next - 1 for held in loop.devices.values())


def test_the_coordinator_of_another_run_gives_way_and_devices_stay(make_fleet, tmp_path):
    fleet = make_fleet(rounds=30)
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 2)
    folder = RunFolder(tmp_path / "other", "other")
    newcomer = Coordinator(
        MemoryLink(fleet.hub, "coord-other"),
        topics=TOPICS,
        folder=folder,
        settings=fleet.settings,
        clock=fleet.clock,
        observe=lambda _event: None,
    )
    newcomer.start()

    def meet():
        for _ in range(50):
            newcomer.poll(0.0)
            fleet.sweep()

    with pytest.raises(RunError, match=f"is served by the run '{RUN}' already"):
        meet()
    newcomer.close()
    fleet.run_until(is_over(fleet))
    assert fleet.coordinator.status == "finished"
    assert all(m.agent.result() == "All 30 rounds are done." for m in fleet.members.values())


def test_a_coordinator_whose_run_was_taken_up_elsewhere_ends(make_fleet, tmp_path):
    """R23: a copy of the folder on another machine; the higher term goes on."""
    fleet = make_fleet(rounds=30)
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 2)
    shutil.copytree(fleet.path / "run", tmp_path / "copy")
    elsewhere = Coordinator(
        MemoryLink(fleet.hub, "elsewhere"),
        topics=TOPICS,
        folder=RunFolder(tmp_path / "copy", RUN),
        settings=fleet.settings,
        clock=fleet.clock,
        observe=lambda _event: None,
    )
    assert elsewhere.term == fleet.coordinator.term + 1
    elsewhere.start()
    elsewhere.poll(0.0)
    with pytest.raises(RunError, match=r"Another coordinator has taken up run .* \(term 2; this one has 1\)"):
        fleet.run_until(lambda: False)
    elsewhere.close()


@pytest.mark.parametrize("account", ["elsewhere", "coordinator"], ids=["two accounts", "one account"])
def test_of_two_coordinators_with_copies_of_a_stopped_run_the_first_goes_on(make_fleet, tmp_path, account):
    """R23: both have the same term."""
    fleet = make_fleet(rounds=30)
    fleet.start()
    fleet.run_until(lambda: fleet.round() == 2)
    fleet.coordinator.end("stopped", "by hand")
    fleet.coordinator.close()
    shutil.copytree(fleet.path / "run", tmp_path / "copy")
    resumed(fleet)
    fleet.run_until(lambda: fleet.round() == 3)
    elsewhere = Coordinator(
        MemoryLink(fleet.hub, account),
        topics=TOPICS,
        folder=RunFolder(tmp_path / "copy", RUN),
        settings=fleet.settings,
        clock=fleet.clock,
        observe=lambda _event: None,
    )
    assert elsewhere.term == fleet.coordinator.term == 2
    elsewhere.start()

    def meet():
        for _ in range(200):
            elsewhere.poll(0.0)
            fleet.sweep()

    with pytest.raises(RunError, match=r"from a copy of this folder \(both have term 2\)"):
        meet()
    elsewhere.close()
    fleet.run_until(is_over(fleet))
    assert fleet.coordinator.status == "finished"
    assert all(m.agent.result() == "All 30 rounds are done." for m in fleet.members.values())


@pytest.mark.parametrize(("strategy", "says"), [("consolidated", True), ("averaging", False)])
def test_a_strategy_that_pools_says_that_it_commits_whole_rounds_only(make_fleet, strategy, says):
    fleet = make_fleet(strategy=strategy, commit_every_s=1e-9, round_steps=4)
    fleet.start()
    fleet.run_until(is_over(fleet))
    told = [
        event.text for event in of_kind(fleet, Notice) if "committed at each round's end only" in event.text
    ]
    assert bool(told) is says
