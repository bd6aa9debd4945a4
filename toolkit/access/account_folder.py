"""The folder that makes a process an account: settings, password, the authority's certificate; and how it is started.

``hsee broker init`` and ``broker user add`` write it on the broker's machine, to be copied; ``hsee agent join`` writes
the same on the board.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from toolkit.access.accounts import COORDINATOR_PREFIX, INFER_SUFFIX, kind_of
from toolkit.disk import PRIVATE, PRIVATE_FOLDER, write_atomically
from toolkit.errors import writing


def write_account_folder(
    path: Path, account: str, *, fleet: str, address: str, password: str, authority: bytes
) -> None:
    """Write an account's folder, readable by this user only.

    Args:
        path: of the folder; made if missing, with what is above it.
        account: whose it is.
        fleet: that the account belongs to.
        address: of the broker, as a setting takes it.
        password: of the account.
        authority: certificate of the authority that signed the broker's, PEM.

    Raises: MachineError: it can't be written.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
    write_atomically(path / "password", f"{password}\n".encode(), mode=PRIVATE)
    write_atomically(path / "ca.pem", authority, mode=PRIVATE)
    # Last: hsee.toml is what makes the folder an account's.
    settings = _settings(account, fleet=fleet, address=address)
    write_atomically(path / "hsee.toml", settings.encode(), mode=PRIVATE)


def start_line(account: str) -> str:
    """Write the command that is typed in an account's folder; it holds no secret."""
    match kind_of(account):
        case "device":
            return "hsee agent start --data folder:PICTURES"
        case "infer":
            return "hsee infer BUNDLE SAMPLES"
        case "coordinator":
            return f"hsee coordinator start --run {account.removeprefix(COORDINATOR_PREFIX)}"
        case _:
            return "hsee broker check"


def _settings(account: str, *, fleet: str, address: str) -> str:
    quoted = [msgspec.json.encode(text).decode() for text in (fleet, address)]
    lines = [
        f"# Settings of {account}, read by hsee where it is started in this folder. They hold no secret.",
        "[fleet]",
        f"name = {quoted[0]}",
        "",
        "[broker]",
        f"address = {quoted[1]}",
        f'username = "{account}"',
        'password_file = "password"',
        'ca_file = "ca.pem"',
    ]
    if kind_of(account) in ("device", "infer"):
        lines += ["", "[device]", f'id = "{account.removesuffix(INFER_SUFFIX)}"']
    return "\n".join(lines) + "\n"
