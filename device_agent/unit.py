"""The agent as a service of systemd: its unit, the commands that put it in place, and what became of it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from toolkit.disk import write_atomically
from toolkit.errors import ConfigError, FencedError, MachineError, UsageError, writing

Scope = Literal["user", "system"]
WATCHDOG_S = 300
"""Far beyond the longest training step; measuring a board asks for more while it lasts."""
RESTART_S = 10
START_S = 900
"""Reading a large folder of pictures on a small board takes minutes."""
STOP_S = 120
"""A step that is under way is finished, and what was trained is saved."""
STAYS_DOWN = (UsageError.exit_status, ConfigError.exit_status, FencedError.exit_status)
"""Exit statuses after which starting again would change nothing, or must not happen: PROTOCOL.md 7."""
SYSTEM_FOLDER = Path("/etc/systemd/system")
_SHOWN = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "MainPID",
    "NRestarts",
    "Result",
    "ExecMainStatus",
    "StatusText",
    "ActiveEnterTimestamp",
    "MemoryCurrent",
)

UNIT = """\
# Written by: hsee agent install. Take it away with: hsee agent uninstall
[Unit]
Description=hsee agent of {device} in fleet {fleet}
# TLS wants the right day; a board without a battery for its clock has it once the network has told.
After=network-online.target time-sync.target
Wants=network-online.target
# A broker that is away for days is no reason to give up.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
{user}WorkingDirectory={folder}
ExecStart={command}
Environment=PYTHONUNBUFFERED=1
# The agent feeds it from its loop; one that hangs is killed and started again, and goes on from what it saved.
WatchdogSec={watchdog_s}
TimeoutStartSec={start_s}
TimeoutStopSec={stop_s}
# After a run as well: the board is there for the next one.
Restart=always
RestartSec={restart_s}
# Not after a mistake in the command or the settings, nor once another process has this device id (fenced) or the
# coordinator has refused it: two boards of one id would take turns for ever.
RestartPreventExitStatus={stays_down}
# What else runs on this board comes first.
Nice={nice}
MemoryMax={memory_max}
UMask=0077
NoNewPrivileges=true

[Install]
WantedBy={wanted_by}
"""


@dataclass(frozen=True, slots=True)
class AgentUnit:
    """One agent's unit.

    Attributes:
        device: its id.
        fleet: that it belongs to.
        scope: ``user`` runs as whoever installs it, ``system`` as the folder's owner.
        folder: absolute; where it is started, with its hsee.toml.
        words: of ``hsee agent start``.
        nice: 0 to 19.
        memory_max: as systemd takes it: bytes, ``512M``, or a share such as ``80%``.
    """

    device: str
    fleet: str
    scope: Scope
    folder: Path
    words: tuple[str, ...] = ()
    nice: int = 5
    memory_max: str = "80%"

    @property
    def name(self) -> str:
        """Of the unit."""
        return unit_name(self.device)

    @property
    def path(self) -> Path:
        """Of its file."""
        return unit_path(self.device, self.scope)

    def text(self) -> str:
        """Write the unit."""
        command = [sys.executable, "-m", "device_agent", *self.words]
        owner = _owner(self.folder) if self.scope == "system" else ""
        return UNIT.format(
            device=self.device,
            fleet=self.fleet,
            user=f"User={owner}\n" if owner else "",
            folder=str(self.folder).replace("%", "%%"),
            command=" ".join(map(quote, command)),
            watchdog_s=WATCHDOG_S,
            start_s=START_S,
            stop_s=STOP_S,
            restart_s=RESTART_S,
            stays_down=" ".join(map(str, STAYS_DOWN)),
            nice=self.nice,
            memory_max=self.memory_max,
            wanted_by="default.target" if self.scope == "user" else "multi-user.target",
        )

    def commands(self) -> list[list[str]]:
        """Give the commands that put a written unit to work, now and at every boot."""
        control = systemctl(self.scope)
        commands = [[*control, "daemon-reload"], [*control, "enable", "--now", self.name]]
        if self.scope == "user":
            # Without it a user's services start at the login and end at the logout.
            commands.append(["loginctl", "enable-linger"])
        return commands

    def install(self) -> None:
        """Write the unit and put it to work.

        Raises: MachineError: no systemd here, no permission, or it refuses.
        """
        require_systemd()
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, self.text().encode(), mode=0o644)
        for command in self.commands():
            run(command)


class UnitState(msgspec.Struct, frozen=True):
    """How a unit stands, as systemd tells.

    Attributes:
        unit: its name.
        installed: whether there is one.
        state: ``active``, ``activating``, ``inactive`` or ``failed``; empty where none is installed.
        detail: what the agent last said of itself, or why it ended.
        boots: whether it is started at every boot.
        pid: of its process; 0 for none.
        n_restarts: since it was started by hand or at boot.
        memory_bytes: that it takes now; 0 where nothing counts it.
        since: when it became active; empty if it never did.
    """

    unit: str
    installed: bool
    state: str = ""
    detail: str = ""
    boots: bool = False
    pid: int = 0
    n_restarts: int = 0
    memory_bytes: int = 0
    since: str = ""


def unit_name(device: str) -> str:
    """Name an agent's unit."""
    return f"hsee-agent-{device}.service"


def unit_path(device: str, scope: Scope) -> Path:
    """Say where an agent's unit stands."""
    if scope == "system":
        return SYSTEM_FOLDER / unit_name(device)
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return base / "systemd" / "user" / unit_name(device)


def uninstall(device: str, scope: Scope) -> Path:
    """Stop an agent's service and take its unit away; what the board has trained stays.

    Returns: where the unit stood.
    Raises: UsageError: there is none. MachineError: no permission, or systemd refuses.
    """
    path = unit_path(device, scope)
    if not path.exists():
        raise UsageError(
            f"No service of {device!r} is installed: {path} is not there.",
            hint="hsee agent status shows what is; --system or --user says where to look.",
        )
    require_systemd()
    control = systemctl(scope)
    run([*control, "disable", "--now", path.name])
    with writing(path):
        path.unlink()
    run([*control, "daemon-reload"])
    return path


def read_state(device: str, scope: Scope) -> UnitState:
    """Ask systemd how an agent's service stands.

    Raises: MachineError: systemd can't be asked.
    """
    name = unit_name(device)
    if not unit_path(device, scope).exists():
        return UnitState(name, installed=False)
    require_systemd()
    said = run([*systemctl(scope), "show", name, f"--property={','.join(_SHOWN)}"])
    return judge_state(name, dict(line.split("=", 1) for line in said.splitlines() if "=" in line))


def judge_state(name: str, shown: Mapping[str, str]) -> UnitState:
    """Read what ``systemctl show`` printed."""
    memory = shown.get("MemoryCurrent", "")
    return UnitState(
        unit=name,
        installed=True,
        state=shown.get("ActiveState", ""),
        detail=_detail(shown),
        boots=shown.get("UnitFileState", "") == "enabled",
        pid=_number(shown.get("MainPID", "")),
        n_restarts=_number(shown.get("NRestarts", "")),
        memory_bytes=_number(memory) if len(memory) < len(str(2**63)) else 0,
        since=shown.get("ActiveEnterTimestamp", ""),
    )


def systemctl(scope: Scope) -> list[str]:
    """Begin a command to the service manager."""
    return ["systemctl", "--user"] if scope == "user" else ["systemctl"]


def require_systemd() -> None:
    """Check that a service manager of ours runs here.

    Raises: MachineError: none does.
    """
    if shutil.which("systemctl") is None:
        raise MachineError(
            "This machine has no systemd.",
            hint="hsee agent install --dry-run prints the unit; it shows another service manager what to run.",
        )


def run(command: Sequence[str]) -> str:
    """Run a command of systemd's.

    Returns: what it printed.
    Raises: MachineError: it failed; the message holds its last line.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        raise MachineError(
            f"{' '.join(command)}: {lines[-1]}",
            hint="A system service wants root: sudo. Over ssh a user's service wants a login session, not su.",
        )
    return done.stdout


def quote(word: str) -> str:
    """Quote a word for a line of a unit: its specifiers and variables stand for themselves."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    if "\n" in word:
        raise UsageError("A unit can't hold a line break in a word.")
    return f'"{escaped}"' if not escaped or any(sign in escaped for sign in " \t\"'\\;") else escaped


def _owner(folder: Path) -> str:
    uid = folder.stat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a user without a name, of a container or another machine
        return str(uid)


def _detail(shown: Mapping[str, str]) -> str:
    status, result = _number(shown.get("ExecMainStatus", "")), shown.get("Result", "")
    if shown.get("ActiveState") in ("active", "activating", "reloading"):
        return shown.get("StatusText", "")
    if status == FencedError.exit_status:
        return (
            "stopped for good: another process has this device id, or the coordinator refused it; see its log"
        )
    if status in STAYS_DOWN:
        return f"stopped for good by a mistake in its command or settings (status {status}); see its log"
    return "stopped" if result in ("", "success") else f"ended: {result}, status {status}"


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
