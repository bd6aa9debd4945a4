"""A reboot in the middle of a round: everything dies at once, and comes back by the lines of its units alone."""

import shlex
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from coordinator.store.ledger import Closed, read_ledger
from device_agent.unit import AgentUnit
from tests.e2e.processes import Hsee, wait_until

pytestmark = pytest.mark.needs_mosquitto

ROUNDS = 12
ROUND_STEPS = 30
WATCHDOG_S = 30
PARTS = {"ant": "1/8", "bee": "2/8"}


class ServiceManager:
    """As much of a service manager as a process hears of: its socket, its variables, the unit's own command.

    Args:
        hsee: starts the process.
        unit: of an agent; its folder is where ``hsee`` starts things.
    """

    def __init__(self, hsee: Hsee, unit: AgentUnit) -> None:
        self._hsee = hsee
        lines = dict(line.split("=", 1) for line in unit.text().splitlines() if "=" in line)
        self._command = shlex.split(lines["ExecStart"].replace("%%", "%").replace("$$", "$"))
        path = hsee.folder / f"{unit.device}.notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0.1)
        self._env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(WATCHDOG_S * 1_000_000)}
        self.heard: list[str] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def start(self):
        self.heard.clear()
        return self._hsee.python(*self._command[1:], **self._env)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._closed.is_set():
            with suppress(TimeoutError):
                self.heard.append(self._socket.recv(65_536).decode())


@pytest.fixture
def managers(hsee, mosquitto, profile) -> Iterator[dict[str, ServiceManager]]:
    made = {}
    for device, part in PARTS.items():
        words = ("--broker", f"127.0.0.1:{mosquitto.address.port}", "--id", device, "--data", "digits")
        words += ("--part", part, "--home", device, "--profile", str(profile))
        made[device] = ServiceManager(hsee, AgentUnit(device, "home", "user", hsee.folder, words))
    yield made
    for manager in made.values():
        manager.close()


def test_everything_is_killed_in_a_round_and_comes_back_by_its_units(hsee, mosquitto, managers):
    agents = [manager.start() for manager in managers.values()]
    for manager, agent in zip(managers.values(), agents, strict=True):
        wait_until(lambda m=manager: "READY=1" in m.heard, agent.describe)
    words = ("--devices", 2, "--run", "r1", "--rounds", ROUNDS, "--set", f"run.round_steps={ROUND_STEPS}")
    first = hsee.coordinator(mosquitto.address.port, *words)
    first.wait_for_round(2)
    for process in (first, *agents):
        process.process.kill()
    mosquitto.kill()
    for process in (first, *agents):
        process.end()
    committed = read_ledger(hsee.folder / "runs/r1/ledger.jsonl")
    assert max(entry.round for entry in committed if isinstance(entry, Closed)) < ROUNDS

    # Boot: in whatever order; the broker is last.
    agents = [manager.start() for manager in managers.values()]
    second = hsee.start("run", "resume", "runs/r1", "--json")
    mosquitto.start()
    for process in (second, *agents):
        assert process.end() == 0, process.describe()
    assert second.rounds()[-1] == ROUNDS
    entries = read_ledger(hsee.folder / "runs/r1/ledger.jsonl")
    assert [entry.round for entry in entries if isinstance(entry, Closed)] == list(range(1, ROUNDS + 1))
    for device, manager in managers.items():
        heard = manager.heard
        wait_until(lambda heard=heard: "STOPPING=1" in heard, lambda heard=heard: str(heard))
        assert heard.count("READY=1") == heard.count("STOPPING=1") == 1, (device, heard)
        assert "WATCHDOG=1" in heard, (device, heard)
        assert any(word.startswith("STATUS=round") for word in heard), (device, heard)
