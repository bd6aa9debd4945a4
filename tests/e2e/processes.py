"""Commands of hsee as real processes; whatever of them still runs at a test's end is killed.

Every process carries a mark of its test in its environment, and so do all that it starts, whatever session they are
in: that is how orphans are found.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.layout.answers import check_answer

ROOT = Path(__file__).parents[2]
CAP_S = 120.0
"""Generous: a machine may do much else."""
_MARK = "MARK_OF_AN_E2E_TEST"
_LOOK_EVERY_S = 0.01


def wait_until(holds: Callable[[], object], what: Callable[[], str], cap_s: float = CAP_S) -> None:
    """Look again and again until something holds; ``what`` describes the state if it never does."""
    deadline_s = time.monotonic() + cap_s
    while not holds():
        assert time.monotonic() < deadline_s, what()
        time.sleep(_LOOK_EVERY_S)


def _state_of(folder: Path) -> str:
    """The letter of a process's state, from its folder in /proc."""
    return (folder / "stat").read_text().rpartition(")")[2].split()[0]


class Running:
    """One started command; its output is in files, so that it never blocks on a reader."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out = out
        self._err = err

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its JSON lines that are whole."""
        return [json.loads(line) for line in self.out.splitlines(keepends=True) if line.endswith("\n")]

    def rounds(self) -> list[int]:
        """Rounds that it reported as closed."""
        return [event["round"] for event in self.events if event.get("event") == "round"]

    def wait_for(self, text: str, cap_s: float = CAP_S) -> None:
        """Wait until it printed ``text``; it must not end before."""

        def seen() -> bool:
            ended = self.process.poll() is not None
            found = text in self.out
            assert found or not ended, f"ended before it said {text!r}: {self.describe()}"
            return found

        wait_until(seen, lambda: f"never said {text!r}: {self.describe()}", cap_s)

    def wait_for_round(self, number: int, cap_s: float = CAP_S) -> None:
        """Wait until a coordinator with --json has closed a round."""
        self.wait_for(f'"event":"round","round":{number},', cap_s)

    def end(self, cap_s: float = CAP_S) -> int:
        """Wait for its end; returns the exit status."""
        try:
            return self.process.wait(cap_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs: {self.describe()}") from None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stand_still(self) -> None:
        """Stop it until SIGCONT, and wait until it stands: what the kernel does for it is done."""
        self.process.send_signal(signal.SIGSTOP)
        folder = Path(f"/proc/{self.process.pid}")
        wait_until(lambda: _state_of(folder) == "T", self.describe)

    def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait(CAP_S)

    def describe(self) -> str:
        return f"status {self.process.poll()}\n--- stdout\n{self.out[-3000:]}\n--- stderr\n{self.err[-3000:]}"


class Hsee:
    """Starts hsee's commands in one folder, with no settings of this machine.

    Args:
        folder: their working folder.
        outputs: folder of what they print; by default the same.
    """

    def __init__(self, folder: Path, *, outputs: Path | None = None) -> None:
        self.folder = folder
        self._outputs = outputs or folder
        self._mark = uuid.uuid4().hex
        self._started: list[Running] = []
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HSEE_")}
        self.env = clean | {
            _MARK: self._mark,
            "XDG_CONFIG_HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, *words: object, stdin: Path | None = None, **env: str) -> Running:
        """Start a command of hsee."""
        return self.python("-m", "toolkit.cli.entry", *words, stdin=stdin, **env)

    def python(self, *words: object, stdin: Path | None = None, **env: str) -> Running:
        """Start Python in a session of its own, as in its own terminal, reading a file or nothing."""
        number = len(self._started)
        names = (f"process{number}-{self._mark[:6]}.{kind}" for kind in ("out", "err"))
        out, err = (self._outputs / name for name in names)
        with (
            (stdin or Path(os.devnull)).open("rb") as given,
            out.open("wb") as stdout,
            err.open("wb") as stderr,
        ):
            process = subprocess.Popen(
                [sys.executable, *map(str, words)],
                stdin=given,
                stdout=stdout,
                stderr=stderr,
                cwd=self.folder,
                env=self.env | env,
                start_new_session=True,
            )
        running = Running(process, out, err)
        self._started.append(running)
        return running

    def run(self, *words: object, cap_s: float = CAP_S, **env: str) -> Running:
        """Run a command to its end; what it answers in JSON is held to its schema."""
        running = self.start(*words, **env)
        if running.end(cap_s) == 0:
            check_answer([str(word) for word in words], running.out)
        return running

    def agent(self, port: int, device: str, *words: object, data: str = "digits", **env: str) -> Running:
        """Start an agent."""
        address = f"127.0.0.1:{port}"
        return self.start(
            "agent", "start", "--broker", address, "--id", device, "--data", data, *words, **env
        )

    def coordinator(self, port: int, *words: object, **env: str) -> Running:
        """Start a coordinator that prints JSON lines."""
        return self.start("coordinator", "start", "--broker", f"127.0.0.1:{port}", "--json", *words, **env)

    def alive(self) -> dict[int, str]:
        """Processes of this test that run, children of children included: id to command line."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                if f"{_MARK}={self._mark}".encode() not in (folder / "environ").read_bytes():
                    continue
                if _state_of(folder) != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found

    def kill_all(self) -> None:
        """Leave nothing behind."""
        for pid in self.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for running in self._started:
            running.process.wait(CAP_S)
