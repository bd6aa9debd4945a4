"""Runs beside each other and their numbers for other programs."""

import csv
import json
import struct
from io import StringIO

import msgspec
import pytest

from coordinator.store.run_record import METRICS, RunRecord, encode_record, read_metrics
from coordinator.watching.history import Event, Metric
from coordinator.watching.tensorboard import event_file, masked_crc
from tests.unit.test_history import RUN, Ran
from toolkit.cli.entry import main
from toolkit.cli.run_commands import RunFacts

GOLDEN = (
    "1800000000000000a37f4b22090000000000408f401a0d627261696e2e4576656e743a3273ae6b56"
    "1b000000000000001a0d9e13090000000000408f4010ac022a0d0a0b0a046c6f7373150000003fcf73d0ff"
)
"""As TensorBoard 2.21's own RecordWriter writes it: step 300, "loss", 0.5, at Unix time 1000."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    made = Ran(tmp_path)
    (made.path / "config.toml").write_text('[run]\nrounds = 9\nmodel = "mlp"\nstrategy = "sequential"\n')
    made.close_round(1)
    made.close_round(2, n_void=1, excused="offline")
    made.folder.set_status("finished", "All rounds are done.")
    made.close()
    second = tmp_path / "r2"
    second.mkdir()
    started = RunRecord(run="r2", status="training", started="2020-01-01T00:00:00+00:00")
    (second / "run.json").write_bytes(encode_record(started))
    (second / "config.toml").write_text(
        '[run]\nrounds = 9\nmodel = "mlp"\nstrategy = "averaging"\nlr = 0.1\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hsee(*words):
    return main([*words, "--home", "."])


def answer(capsys, *words):
    assert hsee(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("home")
def test_runs_are_listed_the_newest_first(capsys):
    told = answer(capsys, "run", "list")
    assert set(told) == {"success", "home", "runs"}
    first, second = (msgspec.convert(each, RunFacts) for each in told["runs"])
    assert all(set(each) == set(RunFacts.__struct_fields__) for each in told["runs"])
    assert (first.run, first.status, first.round, first.rounds, first.n_devices) == (RUN, "finished", 2, 9, 2)
    assert (first.exit_accuracy, first.server_accuracy) == (0.7, 0.75)  # of the one device that was evaluated
    assert (first.up_bytes, first.seconds) == (1800, 3.0)
    assert (second.run, second.round, second.exit_accuracy) == ("r2", 0, None)
    assert hsee("run", "list") == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[1].split()[:2] == [RUN, "finished"]
    assert rows[2].split()[:2] == ["r2", "killed"]  # it says training, and no coordinator is there


def test_a_damaged_run_does_not_hide_the_others(home, capsys):
    (home / "r2" / "run.json").write_text("{")
    told = answer(capsys, "run", "list")
    assert [bool(each["error"]) for each in told["runs"]] == [False, True]
    assert "r2" in told["runs"][1]["error"]


def test_what_was_never_committed_counts_nowhere(home, capsys):
    with (home / RUN / "metrics.csv").open("a") as file:
        file.write("3,ant,stem,0.99,0.99,0.1,0.1,3,0,8,500,0,0,100.0,\r\n")
    assert len(list(read_metrics(home / RUN))[-1]) == len(METRICS)
    assert answer(capsys, "run", "list")["runs"][0]["seconds"] == 3.0


@pytest.mark.usefixtures("home")
def test_runs_are_compared_with_the_settings_in_which_they_differ(capsys):
    told = answer(capsys, "run", "compare", RUN, "r2")
    assert set(told) == {"success", "runs", "differences"}
    assert told["differences"] == {"run.lr": [None, "0.1"], "run.strategy": ["sequential", "averaging"]}
    assert hsee("run", "compare", RUN, "r2") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["what", RUN, "r2"]
    assert ["run.lr", "-", "0.1"] in rows
    assert ["exit", "accuracy", "70.0%"] in rows


def test_csv_holds_every_number_once(home, capsys):
    assert hsee("run", "export", RUN) == 0
    rows = list(csv.DictReader(StringIO(capsys.readouterr().out)))
    assert {row["run"] for row in rows} == {RUN}
    assert len(rows) == len({(row["round"], row["device"], row["name"]) for row in rows})
    assert {"round": "2", "device": "ant", "name": "exit_accuracy", "value": "0.7", "run": RUN} in rows
    assert hsee("run", "export", RUN, "-o", "deep/numbers.csv") == 0
    assert len((home / "deep/numbers.csv").read_text().splitlines()) == len(rows) + 1


@pytest.mark.usefixtures("home")
def test_json_holds_events_too(capsys):
    assert hsee("run", "export", RUN, "--format", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"success", "run", "metrics", "events"}
    assert Metric(2, "ant", "exit_accuracy", 0.7) in [
        msgspec.convert(each, Metric) for each in told["metrics"]
    ]
    assert "lost" in [msgspec.convert(each, Event).kind for each in told["events"]]


def read_events(content):
    """Records of an event file, each with both checksums held to it."""
    found = []
    while content:
        length, crc = struct.unpack("<QI", content[:12])
        assert crc == masked_crc(content[:8])
        body = content[12 : 12 + length]
        assert struct.unpack("<I", content[12 + length : 16 + length])[0] == masked_crc(body)
        found.append(body)
        content = content[16 + length :]
    return found


def test_the_checksum_is_castagnoli_s():
    # RFC 3720, B.4: CRC-32C of 32 zero bytes is 0x8a9136aa.
    crc = 0x8A9136AA
    assert masked_crc(bytes(32)) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_an_event_file_has_the_bytes_that_tensorboard_reads():
    assert event_file([(300, "loss", 0.5)], wall_time_s=1000.0).hex() == GOLDEN


def test_tensorboard_gets_a_file_a_device(home, capsys):
    told = answer(capsys, "run", "export", RUN, "--format", "tensorboard", "-o", "logs")
    assert set(told) == {"success", "run", "format", "files", "n_values"}
    assert told["files"] == [f"logs/{RUN}/{device}/events.out.tfevents.0.hsee" for device in ("ant", "bee")]
    n = sum(len(read_events((home / file).read_bytes())) - 1 for file in told["files"])
    assert n == told["n_values"] > 20


def test_tensorboard_s_own_definitions_read_it(home):
    """tensorboardX carries TensorBoard's compiled definition of an event, and a checksum of its own."""
    from tensorboardX.proto.event_pb2 import Event as TensorBoardEvent
    from tensorboardX.record_writer import masked_crc32c

    assert hsee("run", "export", RUN, "--format", "tensorboard", "-o", "logs") == 0
    (file,) = (home / "logs" / RUN / "ant").iterdir()
    assert ".tfevents." in file.name
    content, events = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        assert struct.unpack("<I", content[8:12])[0] == masked_crc32c(content[:8])
        body, content = content[12 : 12 + length], content[12 + length :]
        assert struct.unpack("<I", content[:4])[0] == masked_crc32c(body)
        events.append(TensorBoardEvent.FromString(body))
        content = content[4:]
    assert events[0].file_version == "brain.Event:2"
    assert all(event.wall_time > 1e9 for event in events)
    read = [
        (event.step, round(value.simple_value, 4))
        for event in events
        for value in event.summary.value
        if value.tag == "exit_accuracy"
    ]
    assert read == [(1, 0.6), (2, 0.7)]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("run compare r1", 2, "It takes two"),
        ("run compare r1 r1", 2, "It takes two"),
        ("run compare r1 r3", 2, "There is no run 'r3'"),
        ("run export r3", 2, "There is no run 'r3'"),
        ("run export r1 --format cvs", 2, "Did you mean 'csv'?"),
        ("run export r1 --format tensorboard", 2, "TensorBoard reads a folder"),
        ("run export r1 -o run.json/x", 6, "run.json/x can't be written"),
        ("run export r1 --json", 2, "can't both go to stdout"),
    ],
)
def test_a_mistake_is_told_with_its_fix(home, words, status, said, capsys):
    (home / "run.json").write_text("a file, not a folder")
    assert hsee(*words.split()) == status
    told = capsys.readouterr()
    assert said in told.out + told.err
