"""A real Mosquitto on exactly what ``hsee broker init`` writes."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.mosquitto import READY_TIMEOUT_S, find_mosquitto, free_port
from toolkit.access.broker_folder import BrokerFolder
from toolkit.access.probe import Probe

FLEET = "home"


class ServedBroker:
    """A written folder and the broker that runs on it.

    Args:
        path: new, or written before.
        accounts: to begin with, beside the operator's, in a new one.
        hosts: in the certificate, beside this machine's own.
        bind: the address it listens at; empty for all of this machine's.
        certificates: whether accounts log in by them.
    """

    def __init__(
        self,
        path: Path,
        accounts: Sequence[str] = (),
        *,
        hosts: Sequence[str] = ("localhost",),
        bind: str = "127.0.0.1",
        certificates: bool = False,
    ) -> None:
        self.folder = (
            BrokerFolder.open(path)
            if path.exists()
            else BrokerFolder.create(
                path,
                fleet=FLEET,
                hosts=hosts,
                accounts=accounts,
                port=free_port(),
                join_port=free_port() if certificates else None,
                bind=bind,
            )
        )
        self.topics = self.folder.topics
        self.log_path = path.parent / "served.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = find_mosquitto()
        assert program is not None
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-c", str(self.folder.path / "mosquitto.conf")], stdout=log, stderr=log
            )
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline_s:
            assert self._process.poll() is None, self.log
            try:
                socket.create_connection(("127.0.0.1", self.folder.record.port), timeout=1.0).close()
            except ConnectionRefusedError:
                time.sleep(0.002)
            else:
                return
        raise AssertionError(f"mosquitto does not listen: {self.log}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(READY_TIMEOUT_S)
            self._process = None

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def probe(self, account: str) -> Probe:
        """Log in as one of its accounts."""
        return Probe(self.folder.login(account))
