"""Who this process is: a device id that stays, a boot nonce that never comes back."""

from __future__ import annotations

import os
import socket

from toolkit.errors import UsageError
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
