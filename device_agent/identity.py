"""Who this process is: a device id that stays and that one process holds, a boot nonce that never comes back."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from toolkit.disk import FileLock
from toolkit.errors import RunError, UsageError
from toolkit.wire.topics import check_name

NONCE_BYTES = 16


def new_boot_nonce() -> bytes:
    """Draw the nonce of this process."""
    return os.urandom(NONCE_BYTES)


def device_id(wanted: str) -> str:
    """Return the device id: as set, or the host's name.

    Raises: UsageError: it can't be a topic level and a folder.
    """
    if wanted:
        return check_name(wanted, what="The device id")
    try:
        return check_name(socket.gethostname(), what="The host's name")
    except UsageError as exc:
        raise UsageError(f"{exc.message} It can't serve as a device id.", hint="Name one with --id.") from exc


class HeldIdentity:
    """A device id, held by this process among all that share its home, until it is closed or the process ends.

    Args:
        home: folder of the run folders; made if missing.
        fleet: of the device.
        device: its id.

    Raises: RunError: another process holds it. MachineError: the home can't be written to.
    """

    def __init__(self, home: Path, *, fleet: str, device: str) -> None:
        path = _lock_path(home, fleet, device)
        taken = RunError(
            f"An agent of device {device!r} runs already in {home}.",
            hint="One device id is one process: stop the other, or give this one another --id.",
        )
        self._lock = FileLock(path, taken=taken)

    def close(self) -> None:
        """Let it go."""
        self._lock.close()


def is_held(home: Path, *, fleet: str, device: str) -> bool:
    """Tell whether a process of this home holds a device id now; nothing is made to find out.

    Raises: MachineError: the lock can't be looked at.
    """
    if not _lock_path(home, fleet, device).exists():
        return False
    try:
        HeldIdentity(home, fleet=fleet, device=device).close()
    except RunError:
        return True
    return False


def _lock_path(home: Path, fleet: str, device: str) -> Path:
    return home / ".agents" / fleet / f"{device}.lock"
