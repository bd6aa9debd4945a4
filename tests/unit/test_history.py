"""The history: what a run's events leave in it, and that it is never more than a copy of the run folder."""

import sqlite3

import pytest

from coordinator.fleet.events import Ended, Notice, RoundClosed
from coordinator.store.ledger import Closed, Planned, TermRaised, Void
from coordinator.store.round_report import DeviceReport, RoundReport
from coordinator.store.run_folder import RunFolder
from coordinator.watching.history import HISTORY_FILE, Event, History
from coordinator.watching.recorder import Recorder
from tests.unit.test_checkpoints import state
from toolkit.errors import CheckpointError, MachineError

RUN = "r1"
CUTS = {"ant": "stem", "bee": "layer1"}


def report(round_, *, n_void=0, excused=""):
    ant = DeviceReport(
        "ant", 3, 0, 500, 8, 0.25, 1.5, 0.5 + round_ / 10, 0.75,
        server_exit_accuracy={"layer1": 0.625, "layer3": 0.875},
    )  # fmt: skip
    bee = DeviceReport("bee", 2, n_void, 400, 0, None, None, None, None, excused)
    return RoundReport(round_, 1.5, "complete", (ant, bee))


class Ran:
    """A run folder with closed rounds, as a coordinator leaves them."""

    def __init__(self, home, *, warn=None):
        self.path = home / RUN
        self.folder = RunFolder(self.path, RUN)
        self.folder.take_up()
        self.ledger = self.folder.open_checkpoint()[1]
        self.ledger.append(TermRaised(1))
        self.ledger.append(Planned(1, CUTS))
        self.history = History(home / HISTORY_FILE)
        self.history.bring_up(self.path)
        self.warnings = [] if warn is None else warn
        self.recorder = Recorder(self.history, RUN, wall_clock=lambda: 1000.0, warn=self.warnings.append)

    def close_round(self, round_, *, commit=True, n_void=0, excused=""):
        closed = report(round_, n_void=n_void, excused=excused)
        if n_void:
            self.ledger.append(Void("bee", round_, 2, 1 + n_void, excused))
        self.ledger.append(Closed(round_, closed.reason))
        self.ledger.sync()
        self.folder.write_metrics(closed, CUTS)
        if commit:
            self.folder.checkpoints.commit(state(round_), [])
        self.recorder.take(RoundClosed(closed, CUTS, 9))

    def close(self):
        self.history.close()
        self.ledger.close()
        self.folder.close()


@pytest.fixture
def ran(tmp_path):
    made = Ran(tmp_path)
    yield made
    made.close()


def numbers(history):
    return [(m.round, m.device, m.name, m.value) for m in history.metrics(RUN)]


def test_a_closed_round_is_there_as_metrics_csv_has_it(ran):
    ran.close_round(1)
    assert numbers(ran.history)[:6] == [
        (1, "ant", "down_bytes", 0.0),
        (1, "ant", "exit_accuracy", 0.6),
        (1, "ant", "exit_accuracy_layer1", 0.625),
        (1, "ant", "exit_accuracy_layer3", 0.875),
        (1, "ant", "exit_loss_nats", 0.25),
        (1, "ant", "n_eval", 8.0),
    ]
    # An empty cell is no row: nothing was measured.
    assert {m.name for m in ran.history.metrics(RUN, device="bee")} == {
        "n_steps", "n_void", "n_eval", "up_bytes", "weights_up_bytes", "down_bytes", "seconds",
    }  # fmt: skip
    with History.of_folder(ran.path) as again:
        assert numbers(again) == numbers(ran.history)


def test_metrics_of_one_round_or_device(ran):
    ran.close_round(1)
    ran.close_round(2)
    assert {m.round for m in ran.history.metrics(RUN, round_=2)} == {2}
    assert {m.device for m in ran.history.metrics(RUN, device="ant")} == {"ant"}
    assert ran.history.metrics("another") == []


def test_events_say_who_was_lost_and_when(ran):
    ran.recorder.take(Notice("Device bee is offline."))
    ran.close_round(1, n_void=4, excused="offline")
    ran.recorder.take(Ended("stopped", "by hand"))
    assert ran.history.events(RUN) == [
        Event(0, "notice", "", "Device bee is offline.", 1000.0),
        Event(1, "lost", "bee", "4 batches never came: offline", 1000.0),
        Event(1, "round", "", "complete", 1000.0),
        Event(1, "ended", "", "stopped: by hand", 1000.0),
    ]


def test_a_lost_history_is_built_again_from_the_run_folder(ran, tmp_path):
    ran.close_round(1, n_void=4, excused="offline")
    ran.close_round(2)
    before = numbers(ran.history)
    ran.history.close()
    for left in tmp_path.glob(f"{HISTORY_FILE}*"):
        left.unlink()
    with History(tmp_path / HISTORY_FILE) as again:
        again.bring_up(ran.path)
        assert numbers(again) == before
        assert again.is_complete(ran.path)
        told = again.events(RUN)
    assert Event(1, "lost", "bee", "4 batches never came: offline") in told
    assert [(e.kind, e.device) for e in told[:3]] == [("term", ""), ("plan", "ant"), ("plan", "bee")]
    assert all(event.at is None for event in told)


def test_rounds_beyond_the_commit_are_dropped_when_a_run_is_taken_up(ran, tmp_path):
    ran.close_round(1)
    ran.close_round(2, commit=False)
    assert ran.history.last_round(RUN) == 2
    with History(tmp_path / HISTORY_FILE) as again:
        again.bring_up(ran.path)
        assert again.last_round(RUN) == 1
        assert {event.round for event in again.events(RUN)} == {1}


def test_bringing_up_twice_changes_nothing(ran):
    ran.close_round(1, n_void=1, excused="left")
    ran.recorder.take(Notice("kept, with its time"))
    before = numbers(ran.history), ran.history.events(RUN)
    ran.history.bring_up(ran.path)
    assert (numbers(ran.history), ran.history.events(RUN)) == before


def test_only_what_is_missing_is_added(ran, tmp_path):
    ran.close_round(1)
    ran.history.close()
    ran.close_round(2)  # its recorder has lost the file and says so
    assert len(ran.warnings) == 1
    with History(tmp_path / HISTORY_FILE) as again:
        assert not again.is_complete(ran.path)
        again.bring_up(ran.path)
        assert [(e.round, e.at) for e in again.events(RUN)] == [(1, 1000.0), (2, None)]


def test_another_run_of_the_same_name_does_not_inherit(ran, tmp_path):
    ran.close_round(1)
    ran.folder.record.started = "2020-01-01T00:00:00+00:00"
    ran.folder.save_record()
    for generation in (ran.path / "checkpoints").iterdir():
        generation.rename(generation.with_name("x" + generation.name))
    with History(tmp_path / HISTORY_FILE) as again:
        again.bring_up(ran.path)
        assert again.metrics(RUN) == []
        assert again.events(RUN) == []


def test_a_torn_row_of_metrics_is_passed_over(ran):
    ran.close_round(1)
    with (ran.path / "metrics.csv").open("a") as file:
        file.write("1,ant")
    with History.of_folder(ran.path) as again:
        assert numbers(again) == numbers(ran.history)


@pytest.mark.parametrize("content", [b"this is no database" * 100, "schema 99"])
def test_what_is_no_history_of_ours_is_set_aside(tmp_path, content):
    path = tmp_path / HISTORY_FILE
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with sqlite3.connect(path) as other:
            other.execute("PRAGMA user_version = 99")
        other.close()
    with History(path) as made:
        assert made.metrics(RUN) == []
    assert (tmp_path / f"{HISTORY_FILE}.damaged").exists()


def test_a_folder_that_is_missing_is_told_with_the_path(tmp_path):
    with pytest.raises(MachineError, match=r"history\.sqlite can't be used: unable to open"):
        History(tmp_path / "nowhere" / HISTORY_FILE)


def test_a_run_goes_on_when_its_history_can_t_be_written(ran):
    ran.history.close()
    ran.recorder.take(Notice("a"))
    ran.recorder.take(Notice("b"))
    assert len(ran.warnings) == 1
    assert ran.warnings[0].endswith("The run goes on without it.")


def test_a_damaged_record_is_told(ran):
    for name in ("run.json", "run-copy.json"):
        (ran.path / name).write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        ran.history.bring_up(ran.path)


def test_a_reader_and_a_writer_do_not_stop_each_other(ran, tmp_path):
    with History(tmp_path / HISTORY_FILE) as reader:
        for round_ in range(1, 5):
            ran.close_round(round_)
            assert reader.last_round(RUN) == round_
    assert ran.warnings == []
