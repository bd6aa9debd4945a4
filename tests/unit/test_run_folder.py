"""The run folder: one coordinator at a time, numbers that never go back, files that people read."""

import csv
import errno
import itertools
import json
import math
import os
from pathlib import Path
from random import Random

import pytest

from coordinator.store.ledger import TermRaised, read_ledger
from coordinator.store.round_report import DeviceReport, RoundReport
from coordinator.store.run_folder import RunFolder
from coordinator.store.run_record import METRICS, further_exits, read_metrics, read_record
from tests.faults.sim.disk import VirtualDisk
from tests.unit.test_checkpoints import state
from toolkit.cli.entry import main
from toolkit.errors import CheckpointError, DamagedError, MachineError, RunError
from toolkit.wire.seats import MAX_SUPERSEDED

CUTS = {"ant": "stem"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "r1"


@pytest.fixture
def folder(path):
    opened = RunFolder(path, "r1")
    yield opened
    opened.close()


def report(round_, accuracy=0.5, **more):
    device = DeviceReport("ant", 3, 1, 500, 8, 0.25, None, accuracy, None, **more)
    return RoundReport(round_, 1.5, "complete", (device,))


def rows(path):
    with (path / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_a_second_coordinator_is_refused_until_the_first_lets_go(folder, path):
    with pytest.raises(RunError, match="Another coordinator is at work in") as caught:
        RunFolder(path, "r1")
    assert "start a run of another name" in caught.value.hint
    folder.close()
    RunFolder(path, "r1").close()


def test_terms_and_incarnations_only_rise_whatever_is_restarted(folder, path):
    assert folder.take_up() == 1
    assert [folder.issue_incarnation("ant", nonce) for nonce in (b"a", b"b")] == [1, 2]
    assert folder.issue_incarnation("bee", b"c") == 1
    folder.close()
    again = RunFolder(path, "r1")
    assert again.take_up() == 2
    assert again.issue_incarnation("ant", b"d") == 3
    assert (again.record.nonces["ant"], again.record.superseded) == (
        b"d".hex(),
        {"ant": [b"a".hex(), b"b".hex()]},
    )
    again.close()


def test_no_more_superseded_processes_are_remembered_than_a_seat_holds(folder):
    for number in range(MAX_SUPERSEDED + 3):
        folder.issue_incarnation("ant", bytes([number]))
    assert len(folder.record.superseded["ant"]) == MAX_SUPERSEDED
    assert folder.record.superseded["ant"][-1] == bytes([MAX_SUPERSEDED + 1]).hex()


def test_a_term_is_on_disk_when_it_is_returned(folder, path):
    folder.take_up()
    assert json.loads((path / "run.json").read_text())["term"] == 1


def test_the_status_says_when_a_run_ended_and_not_while_it_goes_on(folder, path):
    folder.set_status("stopped", "by hand")
    told = json.loads((path / "run.json").read_text())
    assert (told["status"], told["detail"]) == ("stopped", "by hand")
    assert told["ended"]
    folder.set_status("training")
    assert not json.loads((path / "run.json").read_text())["ended"]


def test_another_runs_folder_is_not_taken(folder, path):
    folder.take_up()
    folder.close()
    with pytest.raises(RunError, match="holds the run 'r1', not 'r2'"):
        RunFolder(path, "r2")


def test_a_record_of_which_both_copies_are_damaged_is_told(folder, path):
    folder.take_up()
    folder.close()
    for name in ("run.json", "run-copy.json"):
        (path / name).write_text("{")
    with pytest.raises(DamagedError, match=r"run\.json is damaged.*Put the folder back"):
        RunFolder(path, "r1")


@pytest.mark.parametrize("name", ["run.json", "run-copy.json"])
def test_every_flipped_bit_of_a_record_is_found_or_changes_nothing(folder, path, name):
    folder.take_up()
    folder.issue_incarnation("ant", bytes(16))
    folder.close()
    content = (path / name).read_bytes()
    n_found = 0
    for at in range(0, len(content), 3):
        flipped = content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
        (path / name).write_bytes(flipped)
        again = RunFolder(path, "r1")
        again.close()
        assert (again.record.term, again.record.incarnations) == (1, {"ant": 1})
        assert again.record.nonces == {"ant": "00" * 16}
        n_found += len(again.damage)
        assert all(name in text and "The other copy is used." in text for text in again.damage)
        assert read_record(path) == again.record
    assert n_found > 0.25 * len(content)


def test_the_newer_copy_counts_where_a_process_died_between_the_two(folder, path):
    folder.take_up()
    before = (path / "run.json").read_bytes()
    assert folder.take_up() == 2
    folder.close()
    (path / "run.json").write_bytes(before)
    again = RunFolder(path, "r1")
    assert (again.record.term, again.damage) == (2, [])
    again.close()


def test_a_record_that_somebody_edited_by_hand_does_not_count(folder, path):
    folder.take_up()
    folder.close()
    (path / "run-copy.json").unlink()
    text = (path / "run.json").read_text()
    (path / "run.json").write_text(text.replace('"term": 1', '"term": 7'))
    with pytest.raises(CheckpointError, match="does not have its digest"):
        RunFolder(path, "r1")


def test_a_home_that_is_a_file_is_told_with_a_fix(tmp_path):
    (tmp_path / "home").write_text("")
    with pytest.raises(MachineError, match=r"home/r1 can't be written: Not a directory") as caught:
        RunFolder(tmp_path / "home" / "r1", "r1")
    assert "--home" in caught.value.hint


def test_metrics_have_one_header_and_a_row_a_round_and_device(folder, path):
    folder.write_metrics(report(1), CUTS)
    folder.write_metrics(report(2), CUTS)
    assert rows(path) == [
        list(METRICS),
        ["1", "ant", "stem", "0.5000", "", "0.2500", "", "3", "1", "8", "500", "0", "0", "1.500", ""],
        ["2", "ant", "stem", "0.5000", "", "0.2500", "", "3", "1", "8", "500", "0", "0", "1.500", ""],
    ]


def test_metrics_tell_weights_both_ways_and_every_further_exit(folder, path):
    before, behind = {"stem": 0.25, "layer1": 0.375}, {"layer3": 0.75}
    folder.write_metrics(
        report(
            1,
            weights_bytes=200,
            lowered_bytes=300,
            shallow_accuracy=before,
            server_exit_accuracy=behind,
        ),
        CUTS,
    )
    (row,) = read_metrics(path)
    assert [row[name] for name in ("up_bytes", "weights_up_bytes", "down_bytes")] == ["500", "200", "300"]
    told = {stage: float(accuracy) for stage, accuracy in further_exits(row["further_exits"]).items()}
    assert list(told.items()) == [*before.items(), *behind.items()]


def test_a_run_that_an_earlier_version_began_goes_on_with_the_columns_of_this_one(folder, path):
    (path / "metrics.csv").write_text("round,device,cut,exit_accuracy,up_bytes\n1,ant,stem,0.25,100\n")
    folder.trim_metrics(1)
    folder.write_metrics(report(2), CUTS)
    first, second = read_metrics(path)
    assert list(first) == list(second) == list(METRICS)
    assert (first["exit_accuracy"], first["up_bytes"], first["down_bytes"]) == ("0.25", "100", "")
    assert (second["exit_accuracy"], second["up_bytes"], second["down_bytes"]) == ("0.5000", "500", "0")


@pytest.mark.parametrize("torn", ["", "3,ant,st", "3", ",,,,,,,,,,,", "\x00\x00\x00"])
def test_rounds_that_will_be_closed_again_leave_the_metrics_and_so_does_a_torn_row(folder, path, torn):
    for round_ in (1, 2, 3):
        folder.write_metrics(report(round_), CUTS)
    with (path / "metrics.csv").open("a") as file:
        file.write(torn)
    folder.trim_metrics(2)
    assert [row[0] for row in rows(path)] == ["round", "1", "2"]
    folder.write_metrics(report(3), CUTS)
    assert [row[0] for row in rows(path)] == ["round", "1", "2", "3"]


def test_a_file_of_metrics_without_a_row_gets_its_header(folder, path):
    folder.trim_metrics(0)
    assert not (path / "metrics.csv").exists()
    (path / "metrics.csv").write_text("")
    folder.trim_metrics(0)
    folder.write_metrics(report(1), CUTS)
    assert [row[0] for row in rows(path)] == ["round", "1"]


def commit(folder, ledger, round_):
    ledger.append(TermRaised(round_))
    ledger.sync()
    here = {"ledger_length": ledger.length, "ledger_head": ledger.head.hex()}
    folder.checkpoints.commit(state(round_, **here), [("model.safetensors", bytes([round_]) * 99)])


@pytest.fixture
def committed(folder):
    """Three rounds committed, the last two kept, and a row that never was."""
    generation, ledger = folder.open_checkpoint()
    assert generation is None
    for round_ in (1, 2, 3):
        commit(folder, ledger, round_)
    ledger.append(TermRaised(9))
    ledger.sync()
    return folder


def test_the_ledger_opens_where_the_newest_checkpoint_stands(committed, path):
    generation, ledger = committed.open_checkpoint()
    assert (generation.round, ledger.length) == (3, 3)
    assert read_ledger(path / "ledger.jsonl") == [TermRaised(1), TermRaised(2), TermRaised(3)]


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= 1 << at % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors", "SHA256SUMS"])
@pytest.mark.parametrize("at", [0, 7, 40, -1])
def test_any_flip_in_the_newest_checkpoint_brings_the_one_before_with_its_ledger(committed, path, name, at):
    flip(committed.checkpoints.kept()[-1].path / name, at)
    generation, ledger = committed.open_checkpoint()
    assert (generation.round, ledger.length) == (2, 2)
    assert generation.read("model.safetensors") == bytes([2]) * 99
    assert read_ledger(path / "ledger.jsonl") == [TermRaised(1), TermRaised(2)]
    assert [kept.round for kept in committed.checkpoints.kept()] == [2]
    commit(committed, ledger, 4)  # its number comes after that of the damaged one
    numbers = [kept.number for kept in committed.checkpoints.kept()]
    assert [kept.round for kept in committed.checkpoints.kept()] == [2, 4]
    assert numbers == [1, 3]


@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors", "SHA256SUMS"])
def test_a_missing_file_is_damage_too(committed, name):
    (committed.checkpoints.kept()[-1].path / name).unlink()
    assert committed.open_checkpoint()[0].round == 2


def test_a_flip_in_the_ledger_behind_the_older_checkpoint_brings_that_one(committed, path):
    rows = (path / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    flip(path / "ledger.jsonl", len(rows[0]) + len(rows[1]) + 20)
    generation, ledger = committed.open_checkpoint()
    assert (generation.round, ledger.length) == (2, 2)


def test_where_no_checkpoint_is_whole_nothing_is_changed_and_the_newest_damage_is_told(committed, path):
    for kept in committed.checkpoints.kept():
        flip(kept.path / "model.safetensors", 5)
    before = (path / "ledger.jsonl").read_bytes()
    with pytest.raises(DamagedError, match=r"000002-round-3/model\.safetensors is damaged"):
        committed.open_checkpoint()
    assert (path / "ledger.jsonl").read_bytes() == before
    assert [kept.round for kept in committed.checkpoints.kept()] == [2, 3]


def test_a_ledger_of_another_history_is_not_taken(folder):
    folder.checkpoints.commit(state(1, ledger_length=1, ledger_head="ab" * 32), [])
    with pytest.raises(CheckpointError, match="has 0 rows; its checkpoint names 1"):
        folder.open_checkpoint()
    folder.checkpoints.commit(state(2, ledger_length=0, ledger_head="ab" * 32), [])
    with pytest.raises(CheckpointError, match="is not the ledger that its checkpoint names"):
        folder.open_checkpoint()


def test_a_rewind_sets_the_newest_checkpoint_aside_and_is_taken_note_of(committed, path):
    committed.rewind()
    generation, ledger = committed.open_checkpoint()
    assert (generation.round, ledger.length) == (2, 2)
    assert committed.record.rewound_to == 2
    assert [folder.name for folder in (path / "checkpoints").glob("*.aside")] == ["000002-round-3.aside"]
    with pytest.raises(RunError, match="holds 1 checkpoints; to rewind takes two"):
        committed.rewind()


def test_nothing_is_rewound_to_a_damaged_checkpoint(committed):
    flip(committed.checkpoints.kept()[0].path / "model.safetensors", 3)
    with pytest.raises(CheckpointError, match="000001-round-2"):
        committed.rewind()
    assert committed.open_checkpoint()[0].round == 3
    assert committed.record.rewound_to is None


class Stumbling(VirtualDisk):
    """At its n-th change it refuses, or the power is cut."""

    def __init__(self):
        super().__init__()
        self.n_left = math.inf
        self.error = errno.ENOSPC

    def __getattribute__(self, name):
        if name in ("write", "append", "rename", "remove", "sync", "sync_folder"):
            self.n_left -= 1
            if self.n_left == 0:
                if self.error is None:
                    raise KeyboardInterrupt
                raise OSError(self.error, os.strerror(self.error), name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, None], ids=["full", "failed", "power cut"])
def test_wherever_a_rewind_is_stopped_it_counts_whole_or_not_at_all(error):
    """The ledger's entry of it may not be lost, with the disk full least of all."""
    place, outcomes = Path("/disk/r1"), []
    for n in itertools.count(1):
        disk = Stumbling()
        folder = RunFolder(place, "r1", disk=disk)
        _, ledger = folder.open_checkpoint()
        folder.take_up()
        for round_ in (1, 2, 3):
            commit(folder, ledger, round_)
        disk.n_left, disk.error = n, error
        told = "done"
        try:
            folder.rewind()
        except MachineError:
            told = "refused"
        except KeyboardInterrupt:
            told = "killed"
        has_stumbled, disk.n_left = disk.n_left <= 0, math.inf
        disk.kill() if error else disk.cut_power(Random(n))
        again = RunFolder(place, "r1", disk=disk)
        newest, counts = again.checkpoints.kept()[-1].round, again.unrecorded_rewind
        assert (newest, counts) in ((3, None), (2, 2))
        outcomes.append((told, counts is not None))
        _, ledger = again.open_checkpoint()
        if counts is not None:
            commit(again, ledger, 3)
            assert again.unrecorded_rewind is None
        again.close()
        if not has_stumbled:
            break
    assert ("done", False) not in outcomes
    if error == errno.ENOSPC:
        assert ("refused", True) not in outcomes
    assert len({counts for _, counts in outcomes}) == 2
    assert len(outcomes) > 8


def test_the_command_asks_tells_and_rewinds(committed, path, capsys, monkeypatch):
    committed.take_up()
    committed.close()
    assert main(["run", "rewind", str(path), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("Would go back from round 3 to the end of round 2.")
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    assert main(["run", "rewind", str(path)]) == 2
    assert "Add --yes if you mean it" in capsys.readouterr().err
    assert main(["run", "rewind", str(path), "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["success"], told["from_round"], told["to_round"]) == (True, 3, 2)
    assert main(["run", "rewind", str(path / "none"), "--yes"]) == 2
    assert "There is no run" in capsys.readouterr().err
