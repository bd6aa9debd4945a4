"""A Mosquitto that a test owns: its own port, its own folder, killed and restarted at will."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from toolkit.link.base import BrokerAddress

HOST = "127.0.0.1"
READY_TIMEOUT_S = 30.0
_DRAW = random.SystemRandom()
_MOST_WORKERS = 16
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _MOST_WORKERS
_given: set[int] = set()


def find_mosquitto() -> str | None:
    """Return the program; Debian puts it where a user's PATH does not look."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """Return a loopback port that was free a moment ago, and that this process and its fellows draw only once.

    Below those that the system gives to clients: while a broker restarts, nobody's connection comes by its port.
    """
    while True:
        port = _DRAW.randrange(10_000 + _WORKER, 32_000, _MOST_WORKERS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        _given.add(port)
        return port


class Mosquitto:
    """One broker on one port, through any number of restarts.

    Args:
        folder: for its configuration, passwords and log.
        accounts: password by user name; none lets everybody in.
        settings: further lines of its configuration.
        persistence: keep sessions and retained messages on disk, written after every change.
    """

    def __init__(
        self,
        folder: Path,
        *,
        accounts: Mapping[str, str] | None = None,
        settings: str = "",
        persistence: bool = False,
    ) -> None:
        self.address = BrokerAddress(host=HOST, port=free_port())
        self.log_path = folder / "mosquitto.log"
        self._config = folder / "mosquitto.conf"
        self._process: subprocess.Popen[bytes] | None = None
        lines = [
            f"listener {self.address.port} {HOST}",
            "set_tcp_nodelay true",
            f"persistence {str(persistence).lower()}",
            *(
                [f"persistence_location {folder}/", "autosave_on_changes true", "autosave_interval 1"]
                if persistence
                else []
            ),
            settings,
        ]
        if accounts is None:
            lines.append("allow_anonymous true")
        else:
            passwords = folder / "passwords"
            passwords.touch(mode=0o600)
            for user, password in accounts.items():
                subprocess.run(["mosquitto_passwd", "-b", str(passwords), user, password], check=True)
            lines += ["allow_anonymous false", f"password_file {passwords}"]
        # Started by root it would become another user, who can't read a test's folder.
        lines.append("user root")
        self._config.write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        program = find_mosquitto()
        assert program is not None, "mosquitto is not installed"
        with self.log_path.open("ab") as log_file:
            self._process = subprocess.Popen(
                [program, "-c", str(self._config)], stdout=log_file, stderr=log_file
            )
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline_s:
            assert self._process.poll() is None, self.log_path.read_text()
            try:
                with socket.create_connection((HOST, self.address.port), timeout=READY_TIMEOUT_S):
                    return
            except ConnectionRefusedError:
                time.sleep(0.002)
        raise AssertionError(f"mosquitto does not listen: {self.log_path.read_text()}")

    def cpu_s(self) -> float:
        """Processor time that it has had; Linux counts it in nanoseconds."""
        assert self._process is not None
        return int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[0]) / 1e9

    def stop(self) -> None:
        """Stop it in order."""
        if self._process is not None:
            deadline_s = time.monotonic() + READY_TIMEOUT_S
            # Again and again: Mosquitto 2.0 forgets a SIGTERM that comes when it listens and its loop has not begun.
            while self._process.poll() is None:
                assert time.monotonic() < deadline_s, "mosquitto does not stop"
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(0.2)
            self._process = None

    def kill(self) -> None:
        """Kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(READY_TIMEOUT_S)
            self._process = None

    def restart(self) -> None:
        """Kill it and start it again on the same port."""
        self.kill()
        self.start()
