"""The one screen: worst first, 200 rows readable, and nothing on it that is not known."""

import os
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from coordinator.watching.log_ring import LogEntry
from coordinator.watching.status import DeviceStatus, RunStatus
from toolkit.cli import status_display
from toolkit.cli.status_commands import _print_entries
from toolkit.cli.status_display import SORTS, ago, cells, print_status, render, rows_that_fit, strip

LIVE = RunStatus(
    run="r1",
    folder="runs/r1",
    is_live=True,
    status="training",
    broker="mqtt://b:1883",
    is_connected=True,
    round=3,
    rounds=20,
    round_s=12.0,
)


def fleet(n=200):
    states = ("online", "online", "online", "silent", "offline", "left")
    return [
        DeviceStatus(
            device=f"d{i:03}",
            state=states[i % 6],
            last_seen_s=float(i),
            cut="layer1",
            phase="training",
            n_done=i % 7,
            n_owed=7,
            exit_accuracy=i / 200,
            software="hsee 0.1.0",
        )
        for i in range(n)
    ]


def drawn(status, devices, *, n_rows=None, width=120, labels=None):
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        # With a height too, or it takes a dumb terminal's width.
        console = Console(width=width, height=100, record=True, file=nowhere, force_terminal=True)
        console.print(render(status, devices, labels or {}, n_rows=n_rows))
    return console.export_text()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "never"), (0, "0 s ago"), (4.4, "4 s ago"), (119, "119 s ago"), (600, "10 min ago"), (7200, "2 h ago"),
     (1e6, "12 d ago")],
)  # fmt: skip
def test_how_long_ago(seconds, said):
    assert ago(seconds) == said


def test_the_strip_says_all_in_one_line():
    status = msgspec.structs.replace(LIVE, devices=fleet(12), n_refused=2)
    assert strip(status) == (
        "run r1; training; round 3 of 20 (12 s); 2 offline, 2 silent, 6 online, 2 left; broker mqtt://b:1883;"
        " 2 messages refused"
    )


def test_a_lost_broker_is_told_though_every_device_was_here_a_moment_ago():
    status = msgspec.structs.replace(
        LIVE, is_connected=False, devices=[DeviceStatus(device="a", state="online")]
    )
    assert not status.is_good
    assert "no connection to mqtt://b:1883" in strip(status)


def test_while_waiting_it_counts_down_and_leaves_out_who_still_measures():
    waiting = {"status": "waiting", "n_expected": 3, "n_ready": 1, "left_s": 95.2, "devices": fleet(2)}
    status = msgspec.structs.replace(LIVE, **waiting)
    assert "1 of 3 devices, 95 s left" in strip(status)


@pytest.mark.parametrize("key", SORTS)
def test_every_sort_takes_what_is_not_known(key):
    devices = [*fleet(6), DeviceStatus(device="bare")]
    assert len(sorted(devices, key=SORTS[key])) == 7


def test_whatever_needs_a_look_comes_first():
    states = [d.state for d in sorted(fleet(12), key=SORTS["state"])]
    assert states == ["offline"] * 2 + ["silent"] * 2 + ["online"] * 6 + ["left"] * 2
    assert min(fleet(12), key=SORTS["seen"]).device == "d011"
    assert min(fleet(12), key=SORTS["exit"]).device == "d000"


def test_200_rows_can_be_read(capsys):
    print_status(LIVE, fleet(), {"d007": "hall"})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 202
    assert lines[1].split() == ["device", "state", "last", "seen", "cut", "round", "exit", "version"]
    assert any(line.startswith("d007 (hall)") for line in lines)


def test_a_screen_that_is_too_small_says_what_it_hides():
    devices = sorted(fleet(), key=SORTS["state"])
    text = drawn(msgspec.structs.replace(LIVE, devices=devices), devices, n_rows=10)
    assert text.count("layer1") == 10
    assert "and 23 offline, 33 silent, 101 online, 33 left" in text
    assert " look " in text


def test_good_is_green_and_trouble_is_told():
    good = msgspec.structs.replace(LIVE, devices=[DeviceStatus(device="a", state="online")])
    assert " good " in drawn(good, good.devices)
    bad = DeviceStatus(
        device="a",
        state="online",
        throttled=["under-voltage"],
        last_error="No disk.",
        n_refused=3,
        excused="deadline",
    )
    assert cells(bad)[-1] == "not waited for: deadline; under-voltage; 3 messages refused; No disk."


def test_markup_in_a_device_s_words_is_text():
    device = DeviceStatus(device="a", state="online", last_error="[red]x[/red] [bold")
    assert "[red]x[/red] [bold" in drawn(msgspec.structs.replace(LIVE, devices=[device]), [device])


def test_a_device_s_words_don_t_steer_the_terminal(capsys):
    device = DeviceStatus(device="a", state="online", software="\x1b[2Jbare", last_error="\x9b31m\r")
    status = msgspec.structs.replace(LIVE, devices=[device])
    print_status(status, [device], {})
    for text in (capsys.readouterr().out, drawn(status, [device])):
        assert "\x9b" not in text
        assert "\r" not in text
        assert "\x1b[2J" not in text
        assert "\\u001b[2Jbare" in text
    hostile = LogEntry(number=1, at=0.0, device="a", level="error", text="\x1b[2J\nb: all is well")
    _print_entries([hostile], "info", as_json=False)
    assert capsys.readouterr().out.split(maxsplit=1)[1] == "a: error: \\u001b[2J\\nb: all is well\n"


def test_without_a_coordinator_it_says_how_to_go_on(capsys):
    dead = msgspec.structs.replace(LIVE, is_live=False)
    assert not dead.is_good
    print_status(dead, [], {})
    assert "hsee run resume runs/r1" in capsys.readouterr().out
    assert msgspec.structs.replace(dead, status="finished").is_good


def test_rows_that_fit_a_terminal(monkeypatch):
    monkeypatch.setattr(status_display.shutil, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    assert rows_that_fit(LIVE) == 19
    monkeypatch.setattr(status_display.shutil, "get_terminal_size", lambda: os.terminal_size((80, 2)))
    assert rows_that_fit(LIVE) == 3


def test_200_rows_fit_the_width_of_a_phone_and_of_a_desk():
    devices = fleet()
    for width in (60, 100, 160):
        text = drawn(msgspec.structs.replace(LIVE, devices=devices), devices, width=width)
        assert max(map(len, text.splitlines())) <= width
