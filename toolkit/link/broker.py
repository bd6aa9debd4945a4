"""A broker to run on, without installing one: amqtt in a process of its own, on loopback, with accounts.

    python -m toolkit.link.broker --accounts FILE [--grants FILE] [--port 0] [--ready-file FILE]

The parent's side is ``start_embedded_broker``. The child watches its standard input, a pipe whose other end only the
parent holds: when the parent dies, however it dies, the pipe closes and the broker stops. It is for one machine and a
demo; a fleet uses Mosquitto.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from toolkit.disk import PRIVATE, write_atomically
from toolkit.errors import BrokerError, HseeError, UsageError, require
from toolkit.link.base import BrokerAddress
from toolkit.link.grants import Grants, read_grants, write_grants

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
SHUTDOWN_TIMEOUT_S = 0.5
MIN_PASSWORD_LENGTH = 22
"""Of a generated password in base 64: 132 bits."""


def generate_password() -> str:
    """Make a password of 192 random bits, in characters that no file or shell mistakes."""
    return secrets.token_urlsafe(24)


def write_accounts(path: Path, accounts: Mapping[str, str]) -> None:
    """Write the broker's account file, readable by its owner only, replacing an older one in one step.

    The hashes are as cheap as Argon2 allows (amqtt verifies them in its event loop, where its default takes a quarter
    of a second a login). That is safe for generated passwords only: 128 bits can't be guessed at any price a hash.

    Args:
        path: where; its folder exists.
        accounts: password by user name; see ``generate_password``.

    Raises:
        UsageError: a user name that the file can't hold, or a password too short to have been generated.
        MissingPartError: the part ``broker`` is not installed.
    """
    require("argon2", part="broker", purpose="The embedded broker")
    from argon2 import PasswordHasher

    for user, password in accounts.items():
        if not user or user != user.strip() or user.startswith("#") or any(sign in user for sign in ":\n\r"):
            raise UsageError(
                f"{user!r} can't be a user name of the broker.",
                hint="Use letters, digits, '_', '-' and '.'.",
            )
        if len(password) < MIN_PASSWORD_LENGTH:
            raise UsageError(
                f"The password of {user!r} has fewer than {MIN_PASSWORD_LENGTH} characters.",
                hint="The broker's accounts take generated passwords only: leave it out and one is made.",
            )
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    lines = "".join(f"{user}:{hasher.hash(password)}\n" for user, password in accounts.items())
    write_atomically(path, lines.encode(), mode=PRIVATE)


class EmbeddedBroker:
    """A running broker that this process owns; also a context manager that stops it.

    Attributes:
        address: where it listens, without a login (``address.with_login``).
        log_path: what it had to say.
        pid: its process.
    """

    def __init__(self, process: subprocess.Popen[bytes], address: BrokerAddress, log_path: Path) -> None:
        self.address = address
        self.log_path = log_path
        self.pid = process.pid
        self._process = process

    @property
    def is_running(self) -> bool:
        """Whether its process is alive."""
        return self._process.poll() is None

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop it, in order if it can, and wait until it is gone. May be called twice."""
        _end(self._process, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def start_embedded_broker(
    folder: Path,
    accounts: Mapping[str, str],
    *,
    grants: Mapping[str, Grants] | None = None,
    port: int = 0,
) -> EmbeddedBroker:
    """Start a broker on loopback and wait until it listens.

    Args:
        folder: for its files of accounts and grants, its log ``broker.log`` and its ready file; made if missing.
        accounts: password by user name; nobody else gets in.
        grants: what each account may send and be sent; all else is denied. None lets every account do all.
        port: 0 for one that is free.

    Raises:
        BrokerError: it did not come up; the message holds the last line of its log.
        MissingPartError: the part ``broker`` is not installed.
        UsageError: see ``write_accounts``.
    """
    require("amqtt", part="broker", purpose="The embedded broker")
    folder.mkdir(parents=True, exist_ok=True)
    accounts_path, ready_path, log_path = (
        folder / name for name in ("broker.accounts", "broker.json", "broker.log")
    )
    write_accounts(accounts_path, accounts)
    ready_path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "toolkit.link.broker", "--owned"]
    command += ["--accounts", str(accounts_path), "--port", str(port), "--ready-file", str(ready_path)]
    if grants is not None:
        write_grants(folder / "broker.grants", grants)
        command += ["--grants", str(folder / "broker.grants")]
    with log_path.open("ab") as log_file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log_file,
            stderr=log_file,
            # Ctrl-C goes to a terminal's whole foreground group; this one is stopped by its owner, last.
            start_new_session=True,
        )
    try:
        ready = _wait_until_ready(process, ready_path, log_path)
    except BaseException:
        _end(process, 0.0)
        raise
    return EmbeddedBroker(process, BrokerAddress(host=str(ready["host"]), port=int(ready["port"])), log_path)


def _wait_until_ready(
    process: subprocess.Popen[bytes], ready_path: Path, log_path: Path
) -> dict[str, str | int]:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if ready_path.exists():
            ready: dict[str, str | int] = json.loads(ready_path.read_bytes())
            return ready
        if process.poll() is not None:
            lines = log_path.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise BrokerError(
                f"The embedded broker did not start: {lines[-1]}",
                hint=f"Its log is {log_path}.",
                log=str(log_path),
            )
        time.sleep(0.01)
    raise BrokerError(
        f"The embedded broker did not listen within {START_TIMEOUT_S:g} s.", hint=f"Its log is {log_path}."
    )


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


async def _serve(
    accounts: Path,
    port: int,
    ready_path: Path | None,
    owner: IO[str] | None,
    *,
    grants: Mapping[str, Grants] | None,
) -> None:
    """Serve until told to stop: by SIGTERM, by SIGINT unless owned, or by the owner's end of ``owner`` closing."""
    from amqtt.errors import BrokerError as AmqttStartError
    from amqtt.errors import PluginError

    from toolkit.link.loopback_broker import LOOPBACK, LoopbackBroker

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set if owner is None else lambda: None)
    if owner is not None:
        descriptor = owner.fileno()

        def on_input() -> None:
            if not os.read(descriptor, 4096):
                loop.remove_reader(descriptor)
                stop.set()

        loop.add_reader(descriptor, on_input)
    try:
        broker = LoopbackBroker(accounts, port, grants=grants)
    except PluginError as exc:
        raise BrokerError(f"The accounts can't be used: {exc.__cause__ or exc}.") from exc
    try:
        await broker.start()
    except AmqttStartError as exc:
        raise BrokerError(
            f"{LOOPBACK}:{port}: {exc}.", hint="Is the port taken? Port 0 finds a free one."
        ) from exc
    if ready_path is not None:
        ready = {"host": LOOPBACK, "port": broker.port, "pid": os.getpid()}
        write_atomically(ready_path, json.dumps(ready).encode(), mode=0o644)
    await stop.wait()
    # In order if it goes quickly. It may not: on Python 3.11 a reader of amqtt's can miss its own cancellation.
    with suppress(TimeoutError):
        async with asyncio.timeout(SHUTDOWN_TIMEOUT_S):
            await broker.shutdown()


def main(arguments: Sequence[str]) -> int:
    """Run the broker in this process.

    Returns: the exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m toolkit.link.broker", description="A broker on loopback."
    )
    parser.add_argument(
        "--accounts", type=Path, required=True, metavar="FILE", help="as write_accounts makes it"
    )
    parser.add_argument(
        "--grants", type=Path, metavar="FILE", help="JSON: by account, the filters to publish and to receive"
    )
    parser.add_argument("--port", type=int, default=0, help="0 finds a free one (default)")
    parser.add_argument(
        "--ready-file", type=Path, metavar="FILE", help="JSON {host, port, pid}, written once it listens"
    )
    parser.add_argument(
        "--owned", action="store_true", help="leave SIGINT to the parent; stop when stdin closes"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        require("amqtt", part="broker", purpose="The embedded broker")
        serving = _serve(
            options.accounts,
            options.port,
            options.ready_file,
            sys.stdin if options.owned else None,
            grants=read_grants(options.grants) if options.grants else None,
        )
        # Not asyncio.run: it would wait for tasks that can outlive their cancellation.
        asyncio.new_event_loop().run_until_complete(serving)
    except HseeError as exc:
        sys.stderr.write(f"{exc.code} {exc}\n")
        return exc.exit_status
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    logging.shutdown()
    # Nothing is left to save, and the sockets close with the process: leave whatever tasks there still are.
    os._exit(status)
