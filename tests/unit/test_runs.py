"""Finding runs and reading how they stand without their coordinator; labels and groups of devices."""

import json

import pytest

from coordinator.store.run_record import RunRecord, encode_record
from coordinator.watching.device_book import BOOK_FILE, Named, changed_book, read_book
from coordinator.watching.runs import find_folder, find_run, history_of, run_folders, settings_of, status_of
from tests.unit.test_history import RUN, Ran
from toolkit.cli.entry import main
from toolkit.errors import CheckpointError, ConfigError, RunError, UsageError


@pytest.fixture
def home(tmp_path):
    made = Ran(tmp_path)
    (made.path / "config.toml").write_text(
        '[run]\nrounds = 9\n[broker]\naddress = "b:1883"\n[fleet]\nname = "yard"\n'
    )
    made.close_round(1)
    made.close_round(2)
    made.folder.set_status("stopped", "by hand")
    made.close()
    return tmp_path


def other(home, name, started):
    (home / name).mkdir()
    (home / name / "run.json").write_bytes(encode_record(RunRecord(run=name, started=started)))


def test_a_run_is_found_by_name_by_path_and_by_default_the_newest(home, monkeypatch):
    other(home, "older", "2020-01-01")
    assert [folder.name for folder in run_folders(home)] == [RUN, "older"]
    assert find_run("", home) == home / RUN
    assert find_run("older", home) == home / "older"
    monkeypatch.chdir(home.parent)
    assert find_run(str(home / "older"), home / "elsewhere") == home / "older"


def test_a_boards_own_folder_of_a_run_has_no_record_and_is_found(home):
    (home / "pets" / "devices").mkdir(parents=True)
    assert find_folder("pets", home) == find_folder(str(home / "pets"), home / "elsewhere") == home / "pets"
    with pytest.raises(UsageError, match="There is no run 'pots'"):
        find_folder("pots", home)


@pytest.mark.parametrize(("name", "hint"), [("r2", "Did you mean 'r1'?"), ("x" * 40, "Known: older, r1.")])
def test_a_wrong_name_is_told_with_the_nearest(home, name, hint):
    other(home, "older", "2020-01-01")
    with pytest.raises(UsageError, match="There is no run") as caught:
        find_run(name, home)
    assert caught.value.hint == hint


def test_no_run_at_all(tmp_path):
    with pytest.raises(UsageError, match="There is no run in"):
        find_run("", tmp_path / "nowhere")
    with pytest.raises(UsageError) as caught:
        find_run("r1", tmp_path)
    assert "--home" in caught.value.hint


def test_without_a_coordinator_the_folder_says_how_a_run_stands(home):
    told = status_of(home / RUN)
    assert (told.is_live, told.status, told.detail, told.round, told.rounds) == (
        False,
        "stopped",
        "by hand",
        2,
        9,
    )
    assert (told.fleet, told.broker, told.term) == ("yard", "b:1883", 1)
    ant, bee = told.devices
    assert (ant.device, ant.state, ant.cut, ant.exit_accuracy) == ("ant", "unknown", "stem", 0.7)
    assert (bee.exit_accuracy, bee.server_accuracy) == (None, None)


def test_what_is_not_committed_is_not_shown(home):
    with (home / RUN / "metrics.csv").open("a") as file:
        file.write("3,ant,stem,0.99,0.99,0.1,0.1,3,0,8,500,0,0,1.5,\r\n")
    assert status_of(home / RUN).devices[0].exit_accuracy == 0.7


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("run.json", "{", CheckpointError),
        ("config.toml", "[run", RunError),
        ("config.toml", b"\xff", RunError),
    ],
)
def test_a_damaged_folder_is_told(home, file, content, error):
    (home / RUN / "run-copy.json").unlink()
    (home / RUN / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=file):
        status_of(home / RUN)


def test_a_run_without_settings_still_has_a_status(home):
    (home / RUN / "config.toml").unlink()
    assert settings_of(home / RUN) == {}
    assert status_of(home / RUN).rounds == 0


def test_the_history_of_a_run_comes_from_the_folder_where_the_home_s_is_lost(home):
    with history_of(home / RUN) as kept:
        assert any(event.at for event in kept.events(RUN))
        numbers = kept.metrics(RUN)
    (home / "history.sqlite").unlink()
    with history_of(home / RUN) as read:
        assert read.metrics(RUN) == numbers
        assert not any(event.at for event in read.events(RUN))
    assert not (home / "history.sqlite").exists()  # reading writes nothing


def test_labels_and_groups_are_kept(tmp_path):
    with changed_book(tmp_path) as book:
        book.devices["ant"] = Named("hall", ["a", "b"])
    book = read_book(tmp_path)
    assert (book.label("ant"), book.groups("ant")) == ("hall", ["a", "b"])
    assert (book.label("bee"), book.groups("bee")) == ("", [])


def test_two_commands_do_not_lose_each_other_s_changes(tmp_path):
    with (
        changed_book(tmp_path),
        pytest.raises(RunError, match="Another command changes"),
        changed_book(tmp_path),
    ):
        pass


@pytest.mark.parametrize("content", ["{", '{"devices": []}', '{"devices": {"a": {"groups": 1}}}'])
def test_a_damaged_book_is_told_and_not_overwritten(tmp_path, content):
    (tmp_path / BOOK_FILE).write_text(content)
    with pytest.raises(ConfigError, match=r"devices\.json can't be read"), changed_book(tmp_path):
        pass
    assert (tmp_path / BOOK_FILE).read_text() == content


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("status nobody", 2, "There is no run 'nobody'"),
        ("status --sort stat", 2, "Did you mean 'state'?"),
        ("status --state onlin", 2, "Did you mean 'online'?"),
        ("status --group hal", 2, "--group 'hal' is unknown"),
        ("status --every 0", 2, "0.2"),
        ("logs ann", 2, "Did you mean 'ant'?"),
        ("logs --level loud", 2, "Known: debug, error, info, warning."),
        ("logs --run nobody", 2, "There is no run 'nobody'"),
        ("logs -n -1", 2, "greater than or equal to 0"),
        ("device show ann", 2, "No device 'ann' was ever seen"),
        ("device rename ann x", 2, "No device 'ann' was ever seen"),
        ("device group ann x", 2, "No device 'ann' was ever seen"),
        ("device remove ann --keep-account --yes", 2, "No device 'ann' was ever seen"),
    ],
)
def test_a_mistake_is_told_with_its_fix(home, words, status, said, capsys, monkeypatch):
    monkeypatch.chdir(home.parent)
    assert main([*words.split(), "--home", str(home)]) == status
    told = capsys.readouterr()
    assert said in told.err
    assert told.out == ""
    assert main([*words.split(), "--home", str(home), "--json"]) == status
    assert json.loads(capsys.readouterr().out)["success"] is False


@pytest.fixture
def named(home, monkeypatch):
    with changed_book(home) as book:
        book.devices["ant"] = Named()
    monkeypatch.chdir(home.parent)

    def run(*words):
        return main([*words, "--home", str(home)])

    return run


def test_a_device_is_named_grouped_and_forgotten(named, home, capsys):
    assert named("device", "rename", "ant", "hall, above the door") == 0
    assert named("device", "group", "ant", "hall", "ground", "hall") == 0
    assert (read_book(home).label("ant"), read_book(home).groups("ant")) == (
        "hall, above the door",
        ["ground", "hall"],
    )
    assert named("device", "list", "--group", "hall") == 0
    assert "hall, above the door" in capsys.readouterr().out
    assert named("status", "--group", "hall") == 0
    out = capsys.readouterr().out
    assert "ant (hall, above the door)" in out
    assert "bee" not in out
    assert named("device", "group", "ant") == 0
    assert named("device", "rename", "ant", "") == 0
    assert read_book(home).devices["ant"] == Named()
    assert named("device", "remove", "ant", "--keep-account", "--dry-run") == 0
    assert "ant" in read_book(home).devices
    assert named("device", "remove", "ant", "--keep-account") == 2  # nobody is there to be asked
    assert "Add --yes" in capsys.readouterr().err
    assert named("device", "remove", "ant", "--keep-account", "--yes") == 0
    assert "ant" not in read_book(home).devices


@pytest.mark.parametrize("label", ["x" * 65, "two\nlines", "\x1b[31m"])
def test_a_label_that_can_t_be_shown_is_refused(named, label, capsys):
    assert named("device", "rename", "ant", label) == 2
    assert "printable" in capsys.readouterr().err


def test_a_group_is_a_name(named, capsys):
    assert named("device", "group", "ant", "a b") == 2
    assert "is not a name" in capsys.readouterr().err


def test_past_events_stand_in_for_the_log(named, capsys):
    assert named("logs") == 0
    told = capsys.readouterr()
    assert "round 2 closed: complete" in told.out
    assert "these are its events" in told.err
    assert named("logs", "--json", "-n", "1") == 0
    (line,) = json.loads(capsys.readouterr().out)["lines"]
    assert (line["device"], line["text"]) == ("", "round 2 closed: complete")


def test_status_of_a_run_that_is_over(named, capsys):
    assert named("status", "--check") == 0
    assert "this is what" in capsys.readouterr().out
