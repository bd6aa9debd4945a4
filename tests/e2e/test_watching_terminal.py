"""``hsee status --watch`` on a terminal: a screen of its own, gone at Ctrl-C, without colours where none are wanted."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.processes import CAP_S, ROOT
from tests.unit.test_history import RUN, Ran


@pytest.fixture
def home(tmp_path):
    made = Ran(tmp_path)
    made.close_round(1)
    made.folder.set_status("finished", "All rounds are done.")
    made.close()
    return tmp_path


def watch(home, **env):
    """Watch until the fleet is on the screen, then press Ctrl-C; returns what was drawn, and the exit status."""
    terminal, inner = pty.openpty()
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HSEE_") and k != "NO_COLOR"}
    kept |= {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "24", "PYTHONPATH": str(ROOT)} | env
    child = subprocess.Popen(
        [sys.executable, "-m", "toolkit.cli.entry", "status", "--watch", "--every", "0.2", "--home", "."],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        cwd=home,
        env=kept,
        start_new_session=True,
    )
    os.close(inner)
    drawn, deadline_s, is_told = b"", time.monotonic() + CAP_S, False
    try:
        while time.monotonic() < deadline_s:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    drawn += os.read(terminal, 65_536)
                except OSError:  # the other end has closed
                    break
            if b"bee" in drawn and not is_told:
                is_told = True
                child.send_signal(signal.SIGINT)
    finally:
        os.close(terminal)
        if not is_told:
            child.kill()
        child.wait(CAP_S)
    return drawn.decode(), child.returncode


def test_the_screen_shows_the_run_and_is_left_as_it_was(home):
    drawn, status = watch(home)
    assert status == 130
    assert f"run {RUN}; finished; round 1 of" in drawn
    assert drawn.index("\x1b[?1049h") < drawn.index("bee") < drawn.index("\x1b[?1049l")
    assert re.search(r"\x1b\[[0-9;]*m", drawn)
    assert "Traceback" not in drawn


def test_without_colours_there_are_none(home):
    drawn, status = watch(home, NO_COLOR="1")
    assert status == 130
    assert "ant" in drawn
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|4[0-7])[0-9;]*m", drawn)
