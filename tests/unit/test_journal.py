"""Lines with systemd's priority where the journal reads them, and plain anywhere else."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.journal import LogTo, in_journal, is_journal, printable, write_line

ROOT = Path(__file__).parents[2]
FULL = Path("/dev/full")
WRITE = "from toolkit.journal import write_line; write_line('one\\ntwo', 'warning')"


def run(code, stdout, **env):
    subprocess.run([sys.executable, "-c", code], stdout=stdout, check=True, cwd=ROOT, env=os.environ | env)


def test_priorities_stand_where_the_journal_reads(tmp_path):
    with (tmp_path / "out").open("w") as file:
        status = os.fstat(file.fileno())
        run(WRITE, file, JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}")
    assert (tmp_path / "out").read_text() == "<4>one\n<4>two\n"


@pytest.mark.parametrize("named", ["", "1:2", "nonsense"])
def test_elsewhere_lines_are_plain(tmp_path, named):
    with (tmp_path / "out").open("w") as file:
        run(WRITE, file, JOURNAL_STREAM=named)
    assert (tmp_path / "out").read_text() == "one\ntwo\n"


@pytest.mark.skipif(not FULL.exists(), reason=f"there is no {FULL}")
def test_work_outlives_a_log_that_takes_nothing_any_more():
    goes_on = f"import os; {WRITE}; {WRITE}; os._exit(7)"
    with FULL.open("w") as full:
        done = subprocess.run([sys.executable, "-c", goes_on], stdout=full, check=False, cwd=ROOT)
    assert done.returncode == 7


def test_whoever_writes_to_nobody_learns_it():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", WRITE], stdout=writer, stderr=subprocess.PIPE, check=False, cwd=ROOT
    )
    os.close(writer)
    assert b"BrokenPipeError" in done.stderr


def test_a_closed_stream_is_no_journal(tmp_path):
    file = (tmp_path / "out").open("w")
    file.close()
    assert not is_journal(file)
    assert in_journal("a", "error") == "<3>a"


def test_an_error_carries_its_priority_too(tmp_path):
    code = "from toolkit.errors import UsageError, report_error; report_error(UsageError('No.', hint='Yes.'), as_json=False)"
    with (tmp_path / "out").open("w") as file:
        status = os.fstat(file.fileno())
        journal = os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        subprocess.run([sys.executable, "-c", code], stderr=file, check=True, cwd=ROOT, env=journal)
    assert (tmp_path / "out").read_text() == "<3>error: No. (HSEE-E200)\n<3>fix:   Yes.\n"


def test_what_modules_log_becomes_lines():
    lines = []
    with LogTo(lambda text, level: lines.append((level, text))):
        log = logging.getLogger("toolkit.journal")
        log.warning("lost %s", "it")
        log.error("worse")
        logging.getLogger("elsewhere").debug("not ours")
    assert lines == [("warning", "lost it"), ("error", "worse")]


def test_control_characters_are_written_out_and_json_stays_json(capsys):
    hostile = "one\x1b[2J\r\x07\x7f\x9b31m\ttwo\nthree\u00e9"
    assert printable(hostile) == "one\\u001b[2J\\u000d\\u0007\\u007f\\u009b31m\ttwo\nthree\u00e9"
    write_line(json.dumps({"said": hostile}, ensure_ascii=False))
    assert json.loads(capsys.readouterr().out) == {"said": hostile}
