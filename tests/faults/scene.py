"""What a row plays on: a folder, a broker, processes that can be killed, and the judge at the end."""

from __future__ import annotations

import json
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from tests.e2e.processes import CAP_S, ROOT, Hsee, Running, wait_until
from tests.faults.judge import Judged, judge
from tests.mosquitto import Mosquitto, find_mosquitto

RUN = "r1"
ENDLESS = 100_000
"""Rounds of a run that is over when a row says so, however long the machine takes for what is done to it."""
PROFILES = ROOT / "profiles/emulated"


class SkippedRowError(Exception):
    """This machine lacks what the row needs."""


class Scene:
    """One row's stage.

    Args:
        folder: empty.
        seed: of the row's choices.
        scale: how much of it: 1 in the quick tier, more at night.
        beside: folder of what agents sent and of what processes said; by default the scene's own.
    """

    def __init__(self, folder: Path, *, seed: int, scale: int, beside: Path | None = None) -> None:
        self.folder = folder
        self.scale = scale
        self.random = random.Random(seed)
        self.tape = (beside or folder) / "tape"
        self.tape.mkdir(exist_ok=True)
        self.hsee = Hsee(folder, outputs=beside or folder)
        self.hsee.env |= {"HSEE_TAPE": str(self.tape), "OMP_NUM_THREADS": "1"}
        self.failpoints: set[str] = set()
        self.n_seeds = 0
        self._mosquitto: Mosquitto | None = None
        self._parts: list[Scene] = []

    def part(self, name: str) -> Scene:
        """A scene within this one."""
        (self.folder / name).mkdir()
        return self._within(name, None)

    def on_disk(self, name: str) -> Scene:
        """A scene on a disk that is mounted in this one: only what processes keep of a run is there."""
        return self._within(name, self.folder)

    def _within(self, name: str, beside: Path | None) -> Scene:
        seed = self.random.randrange(2**32)
        made = Scene(self.folder / name, seed=seed, scale=self.scale, beside=beside)
        self._parts.append(made)
        return made

    def broker(self, *, persistence: bool = False) -> Mosquitto:
        """Start this row's Mosquitto."""
        if find_mosquitto() is None:
            raise SkippedRowError("mosquitto is not installed")
        self._mosquitto = Mosquitto(self.folder, persistence=persistence)
        self._mosquitto.start()
        return self._mosquitto

    def close(self) -> None:
        """Leave nothing running."""
        for part in self._parts:
            part.close()
        self.hsee.kill_all()
        if self._mosquitto is not None:
            self._mosquitto.kill()

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "runs" / RUN

    def judge(self) -> Judged:
        """Hold the run to ledger and tape."""
        return judge(self.run, self.tape)

    # Real devices, on the digits

    def agent(
        self, port: int, device: str, *words: object, part: str, board: str = "strong", **env: str
    ) -> Running:
        """Start a real agent that brings an emulated board's profile."""
        own = ("--home", device, "--part", part, "--profile", PROFILES / f"{board}.toml")
        return self.hsee.agent(port, device, *own, *words, **env)

    def coordinator(self, port: int, *words: object, **env: str) -> Running:
        """Start a real coordinator."""
        return self.hsee.coordinator(port, "--run", RUN, *words, **env)

    def resume(self, **env: str) -> Running:
        """Go on with the run."""
        return self.hsee.start("run", "resume", f"runs/{RUN}", "--json", **env)

    # Stub devices

    def stubs(
        self, port: int, count: int, *, first: int = 0, host: str = "127.0.0.1", **flags: object
    ) -> Running:
        """Start ``count`` stub devices in one process."""
        return self._python("tests.faults.stubs", port, host=host, count=count, first=first, **flags)

    def serve(
        self, port: int, *, devices: int, rounds: int, env: dict[str, str] | None = None, **flags: object
    ) -> Running:
        """Start a coordinator for stub devices; again after a kill, on the same folder."""
        return self._python(
            "tests.faults.serve", port, folder=self.run, devices=devices, rounds=rounds, env=env, **flags
        )

    def _python(
        self,
        module: str,
        port: int,
        *,
        host: str = "127.0.0.1",
        env: dict[str, str] | None = None,
        **flags: object,
    ) -> Running:
        words = [word for flag, value in flags.items() for word in (f"--{flag.replace('_', '-')}", value)]
        return self.hsee.python("-m", module, "--broker", f"{host}:{port}", *words, **(env or {}))

    def stubs_report(self, stubs: Running, key: str) -> dict[str, Any]:
        """A line that a stub process printed: ``joined`` or ``ended``."""
        stubs.wait_for(f'"{key}"')
        return next(line for line in map(json.loads, stubs.out.splitlines()) if key in line)

    # What happened

    def n_rounds(self, coordinator: Running) -> int:
        """Rounds that a coordinator of stub devices has closed."""
        return coordinator.out.count(" closed: ")

    def wait_for_rounds(self, coordinator: Running, n: int, cap_s: float = CAP_S) -> None:
        """Wait until a coordinator of stub devices has closed ``n`` rounds in its process."""

        def closed() -> bool:
            assert coordinator.process.poll() in (None, 0), coordinator.describe()
            return self.n_rounds(coordinator) >= n

        wait_until(closed, coordinator.describe, cap_s)

    def n_applied(self) -> int:
        """Batches that the ledger holds, committed or not."""
        return (self.run / "ledger.jsonl").read_bytes().count(b'"applied"')

    def hit(self, running: Running, failpoint: str, cap_s: float = CAP_S) -> None:
        """Wait until a process died at its failpoint."""
        status = running.end(cap_s)
        assert status == -signal.SIGKILL, f"did not die at {failpoint}: {running.describe()}"
        self.failpoints.add(failpoint)

    def ended_well(self, *running: Running, cap_s: float = 90.0) -> None:
        """Wait until processes have ended with status 0."""
        for one in running:
            assert one.end(cap_s) == 0, one.describe()

    def stopped_well(self, *running: Running) -> None:
        """Tell processes to stop, one after the other; each saves what it has and ends with status 0."""
        for one in running:
            one.signal(signal.SIGTERM)
            self.ended_well(one)

    def record(self) -> dict[str, Any]:
        """The run's run.json."""
        found: dict[str, Any] = msgspec.json.decode((self.run / "run.json").read_bytes())
        return found


@contextmanager
def scene(seed: int, scale: int) -> Iterator[Scene]:
    """A scene in a folder of its own, which is kept where a row fails."""
    folder = Path(tempfile.mkdtemp(prefix="hsee-faults-"))
    made = Scene(folder, seed=seed, scale=scale)
    try:
        yield made
    except BaseException:
        made.close()
        raise
    made.close()
    shutil.rmtree(folder)


def seconds_until(running: Running, text: str, cap_s: float = CAP_S) -> float:
    """Wait for a text; returns how long it took."""
    began_s = time.monotonic()
    running.wait_for(text, cap_s)
    return time.monotonic() - began_s
