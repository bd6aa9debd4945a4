"""Brokers with an account a process, both kinds under one handle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.served_broker import ServedBroker
from toolkit.link.broker import generate_password, start_embedded_broker


@dataclass(frozen=True)
class Restartable:
    """A broker that listens on this machine.

    Attributes:
        flags: by which stubs and their coordinator log in.
        restart: ends it, and starts it at the same port.
    """

    port: int
    flags: Mapping[str, object]
    restart: Callable[[], None]


@contextmanager
def served(folder: Path, accounts: Sequence[str]) -> Iterator[Restartable]:
    """Mosquitto with TLS, on what ``hsee broker init`` writes; it is killed."""
    broker = ServedBroker(folder / "served", accounts)

    def restart() -> None:
        broker.stop()
        broker.start()

    broker.start()
    try:
        yield Restartable(broker.folder.record.port, {"broker_folder": broker.folder.path}, restart)
    finally:
        broker.stop()


@contextmanager
def embedded(folder: Path, accounts: Sequence[str]) -> Iterator[Restartable]:
    """The broker that hsee brings along; it is stopped in order."""
    passwords = {account: generate_password() for account in accounts}
    book = folder / "accounts.json"
    book.write_bytes(msgspec.json.encode(passwords))
    running = start_embedded_broker(folder / "embedded-broker", passwords)
    port = running.address.port

    def restart() -> None:
        nonlocal running
        running.stop()
        running = start_embedded_broker(folder / "embedded-broker", passwords, port=port)

    try:
        yield Restartable(port, {"accounts": book}, restart)
    finally:
        running.stop()
