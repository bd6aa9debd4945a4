"""The run folder: one coordinator at a time, numbers that never go back, files that people read."""

import csv
import json

import pytest
import torch

from coordinator.ledger import TermRaised, read_ledger
from coordinator.rounds import DeviceReport, RoundReport
from coordinator.run_folder import RunFolder
from coordinator.run_record import METRICS
from tests.unit.test_checkpoints import state
from toolkit.errors import CheckpointError, MachineError, RunError

CUTS = {"ant": "stem"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "r1"


@pytest.fixture
def folder(path):
    opened = RunFolder(path, "r1")
    yield opened
    opened.close()


def report(round_, accuracy=0.5):
    device = DeviceReport("ant", 3, 1, 500, 8, 0.25, None, accuracy, None)
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
    assert [folder.issue_incarnation("ant") for _ in range(2)] == [1, 2]
    assert folder.issue_incarnation("bee") == 1
    folder.close()
    again = RunFolder(path, "r1")
    assert again.take_up() == 2
    assert again.issue_incarnation("ant") == 3
    again.close()


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


def test_a_damaged_record_is_told(folder, path):
    folder.close()
    (path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
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
        ["1", "ant", "stem", "0.5000", "", "0.2500", "", "3", "1", "8", "500", "1.500"],
        ["2", "ant", "stem", "0.5000", "", "0.2500", "", "3", "1", "8", "500", "1.500"],
    ]


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


def test_the_ledger_opens_where_the_newest_checkpoint_stands(folder, path):
    with folder.open_ledger() as ledger:
        ledger.append(TermRaised(1))
        ledger.sync()
        here = {"ledger_length": ledger.length, "ledger_head": ledger.head.hex()}
        folder.checkpoints.commit(state(1, **here), {"w": torch.zeros(1)})
        ledger.append(TermRaised(2))
    with folder.open_ledger() as ledger:
        assert ledger.length == 1
    assert read_ledger(path / "ledger.jsonl") == [TermRaised(1)]


def test_a_ledger_of_another_history_is_not_taken(folder):
    folder.checkpoints.commit(state(1, ledger_length=1, ledger_head="ab" * 32), {"w": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="has 0 rows; its checkpoint names 1"):
        folder.open_ledger()
    with folder.checkpoints.kept()[0].path.parents[1].joinpath("ledger.jsonl").open("wb"):
        pass
    folder.checkpoints.commit(state(2, ledger_length=0, ledger_head="ab" * 32), {"w": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="is not the ledger that the newest checkpoint names"):
        folder.open_ledger()
