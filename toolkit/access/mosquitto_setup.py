"""Mosquitto as hsee wants it: where its parts are on this machine, its configuration, its systemd unit, a trial run."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from toolkit.errors import BrokerError, MachineError
from toolkit.link.base import BrokerAddress
from toolkit.wire.limits import MAX_MESSAGE_BYTES

PLUGIN_NAME = "mosquitto_dynamic_security.so"
PLUGIN_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
PROGRAM_FOLDERS = "/usr/sbin:/usr/local/sbin"
QUEUED_MESSAGES = 10_000
QUEUED_BYTES = 256 * 1024 * 1024
INFLIGHT_MESSAGES = 20
LOOPBACK = "127.0.0.1"
TRIAL_START_S = 10.0

CONFIGURATION = """\
# Written by: hsee broker init. Start it with: {program} -c {folder}/mosquitto.conf

{listeners}
# Who may come in, and what each may do: accounts with their grants, which hsee broker user changes while it runs.
allow_anonymous false
plugin {plugin}
plugin_opt_config_file {folder}/dynamic-security.json

# Without it a request of 64 KB takes 44 ms instead of less than one.
set_tcp_nodelay true
# The largest message hsee sends; a longer one is somebody's mistake or attack.
max_packet_size {max_packet_bytes}
# For each client that reads more slowly than others send: enough for a fleet's burst, and bounded. 0 would be no bound.
max_queued_messages {queued_messages}
max_queued_bytes {queued_bytes}
max_inflight_messages {inflight_messages}

# Nothing of hsee's relies on what a broker has on disk: sessions are clean, and every word is said again after a
# reconnect. Saved messages would only wear an SD card, and a killed broker loses them all the same.
persistence false

log_dest stderr
log_type error
log_type warning
log_type notice
connection_messages true
# Started by root it becomes this user, who owns these files.
user {user}
"""

LISTENER = """\
# {purpose} There is no plain listener, on loopback neither.
listener {port}{bind}
certfile {folder}/server.pem
keyfile {folder}/server.key
# The lowest version; 1.3 is taken where the other side speaks it.
tls_version tlsv1.2
# A client id is its account's name, so that nobody can take another's connection over.
use_username_as_clientid true
"""
BY_CERTIFICATE = """\
# Nobody comes in here without a certificate of the fleet's authority, and its name is the account's: no password is asked.
cafile {folder}/ca.pem
require_certificate true
use_identity_as_username true
# Read at the broker's start only. Until then a removed account's certificate is let in, and may do nothing.
crlfile {folder}/revoked.pem
"""

UNIT = """\
# Written by: hsee broker init. Install it with: sudo systemctl enable --now {folder}/hsee-broker.service
[Unit]
Description=MQTT broker of the hsee fleet {fleet}
After=network-online.target
Wants=network-online.target

[Service]
User={user}
ExecStart={program} -c {folder}/mosquitto.conf
UMask=0077
Restart=always
RestartSec=2
NoNewPrivileges=true

[Install]
WantedBy=multi-user.target
"""


def find_mosquitto() -> str | None:
    """Find the program; Debian puts it where a user's PATH does not look."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=PROGRAM_FOLDERS)


def find_plugin() -> Path | None:
    """Find the dynamic-security plugin where packages put it."""
    for folder in map(Path, PLUGIN_FOLDERS):
        for place in (folder, *sorted(folder.glob("*-linux-gnu*"))):
            if (place / PLUGIN_NAME).is_file():
                return place / PLUGIN_NAME
    return None


def require_plugin() -> Path:
    """Find the plugin, or say how to get it.

    Raises: MachineError: it is not here.
    """
    found = find_plugin()
    if found is None:
        raise MachineError(
            f"Mosquitto's plugin {PLUGIN_NAME} is not on this machine.",
            hint="Type: sudo apt install mosquitto   Or say where it is on the broker's machine: --plugin FILE",
        )
    return found


def configuration(folder: Path, *, port: int, bind: str, plugin: Path, join_port: int | None = None) -> str:
    """Write mosquitto.conf.

    Args:
        folder: absolute; holds certificates, keys and accounts.
        port: of the listener.
        bind: the address it listens at; empty for all.
        plugin: the dynamic-security plugin.
        join_port: where accounts log in by certificate: of a second listener, for join tokens; else None.
    """
    place = {"folder": folder, "bind": f" {bind}" if bind else ""}
    if join_port is None:
        listeners = LISTENER.format(purpose="One way in, for everybody, with TLS.", port=port, **place)
    else:
        listeners = LISTENER.format(purpose="The way in, with TLS.", port=port, **place)
        listeners += BY_CERTIFICATE.format(folder=folder)
        listeners += "\n" + LISTENER.format(
            purpose="For join tokens, which have no certificate yet: only they have passwords.",
            port=join_port,
            **place,
        )
    return CONFIGURATION.format(
        folder=folder,
        listeners=listeners,
        plugin=plugin,
        program=find_mosquitto() or "mosquitto",
        user=_user(),
        max_packet_bytes=MAX_MESSAGE_BYTES,
        queued_messages=QUEUED_MESSAGES,
        queued_bytes=QUEUED_BYTES,
        inflight_messages=INFLIGHT_MESSAGES,
    )


def unit(folder: Path, *, fleet: str) -> str:
    """Write a systemd unit that runs it as this user."""
    return UNIT.format(
        folder=folder, fleet=fleet, user=_user(), program=find_mosquitto() or "/usr/sbin/mosquitto"
    )


@contextmanager
def trial(folder: Path, *, program: str) -> Iterator[BrokerAddress]:
    """Run a configuration on a free loopback port, as it is but for the listener.

    Args:
        folder: as ``configuration`` was given.
        program: Mosquitto.
    Yields: the address of its first listener, without a login.
    Raises: BrokerError: it does not start; the message holds what it said.
    """
    text = (folder / "mosquitto.conf").read_text()
    ports = iter(_free_ports(text.count("\nlistener ")))
    port, lines = 0, []
    for line in text.splitlines():
        if not line.startswith("listener "):
            lines.append(line)
            continue
        own = next(ports)
        port = port or own
        lines.append(f"listener {own} {LOOPBACK}")
    with tempfile.TemporaryDirectory(prefix="hsee-trial-") as name:
        config, log = Path(name) / "mosquitto.conf", Path(name) / "log"
        config.write_text("\n".join(lines) + "\n")
        with log.open("wb") as stream:
            process = subprocess.Popen([program, "-c", str(config)], stdout=stream, stderr=stream)
        try:
            _wait_until_it_listens(process, port, log)
            yield BrokerAddress(host=LOOPBACK, port=port, tls=True, ca_file=folder / "ca.pem")
        finally:
            process.terminate()
            try:
                process.wait(TRIAL_START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(n)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + TRIAL_START_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            socket.create_connection((LOOPBACK, port), timeout=1.0).close()
        except OSError:
            time.sleep(0.005)
        else:
            return
    said = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    errors = [line for line in said if "error" in line.lower()] or said
    raise BrokerError(
        f"Mosquitto does not start with this configuration: {errors[-1]}",
        hint="Type: mosquitto -v -c FOLDER/mosquitto.conf   It needs version 2.0.11 or newer.",
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user without a name
        return str(os.getuid())
