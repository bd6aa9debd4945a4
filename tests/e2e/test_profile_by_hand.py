"""``hsee profile`` as a process: stopped, with a full disk, with a broker that goes away; and exits that nobody trained."""

import json
import os
import signal
import subprocess

import pytest

from tests.e2e.processes import wait_until
from toolkit.profile.schema import read_profile

TINY = ("--model", "mlp", "--input", 4, "--classes", 3)


@pytest.fixture
def full_disk(tmp_path):
    """A disk of eight KB with no room left."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "none", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this user can't mount a disk")
    (place / "fill").write_bytes(bytes(8192))
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_ctrl_c_keeps_what_was_measured_and_leaves_nobody(hsee):
    running = hsee.start("profile", *TINY, "-o", "mine.toml")
    wait_until(lambda: "cut " in running.err, running.describe)
    running.signal(signal.SIGINT)
    assert running.end() == 130, running.describe()
    assert "What was measured is in mine.toml, marked partial." in running.err
    kept = read_profile(hsee.folder / "mine.toml")
    assert kept.partial
    assert [bool(row.failed) for row in kept.cuts] == [False] * len(kept.cuts) != []
    wait_until(lambda: not hsee.alive(), lambda: f"still there: {hsee.alive()}")


def test_a_full_disk_loses_nothing(hsee, full_disk):
    done = hsee.run("profile", *TINY, "--quick", "-o", full_disk / "mine.toml")
    assert done.end() == 6
    assert "mine.toml can't be written: No space left on device. (HSEE-E600)" in done.err
    assert "fix:   Choose another file with -o, or free some disk." in done.err
    printed, said, _ = done.err.partition("The profile above could not be written")
    assert said
    copied = hsee.folder / "copied.toml"
    copied.write_text(printed[printed.index("# A board's profile") :])
    assert len(read_profile(copied).cuts) >= 2
    assert [path.name for path in full_disk.iterdir()] == ["fill"]


@pytest.mark.needs_mosquitto
def test_a_broker_lost_in_the_middle_leaves_the_cuts(hsee, mosquitto):
    address = f"127.0.0.1:{mosquitto.address.port}"
    running = hsee.start("profile", *TINY, "--quick", "--broker", address, "-o", "mine.toml")
    wait_until(lambda: "cut " in running.err, running.describe)
    mosquitto.kill()
    assert running.end() == 4, running.describe()
    assert "Nobody listens at" in running.err
    assert "fix:" in running.err
    kept = read_profile(hsee.folder / "mine.toml")
    assert (kept.partial, kept.link) == (True, None)
    assert all(row.step_ms_mean > 0 for row in kept.cuts)


def test_exits_that_nobody_trained_are_timed_on_a_board_that_cannot_train(hsee):
    made = hsee.run("export", "--random", *TINY, "-o", "exits", "--json")
    assert made.end() == 0, made.describe()
    assert len(json.loads(made.out)["files"]) == len(list((hsee.folder / "exits").glob("*.onnx"))) >= 2
    words = ("--quick", "--emulate", "50%,256", "--onnx", "exits", "-o", "mine.toml")
    done = hsee.run("profile", *TINY, *words)
    assert done.end() == 0, done.describe()
    assert "this board is for inference only" in done.out
    rows = read_profile(hsee.folder / "mine.toml").inference
    assert len(rows) >= 2
    assert all(row.ms_mean > 0 and not row.failed for row in rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "Which run?"),
        (("runs/r1", "--random", "--model", "mlp"), "--random exports no run"),
        (("--random", "--model", "mlp"), "--random needs --model, --input and --classes"),
    ],
)
def test_an_export_of_nothing_in_particular_is_refused(hsee, words, said):
    done = hsee.run("export", *words)
    assert done.end() == 2
    assert said in done.err
