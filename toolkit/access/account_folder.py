"""The folder that makes a process an account: settings, its password or certificate, the authority's; how it is started.

``hsee broker init`` and ``broker user add`` write it on the broker's machine, to be copied; ``hsee agent join`` writes
the same on the board.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from toolkit.access.accounts import COORDINATOR_PREFIX, INFER_SUFFIX, kind_of
from toolkit.disk import PRIVATE, PRIVATE_FOLDER, write_atomically
from toolkit.errors import writing


@dataclass(frozen=True, slots=True)
class Credential:
    """What an account shows when it logs in: a password, or a certificate and the key that it is of.

    Attributes:
        password: empty where there is a certificate.
        certificate: PEM; empty where there is a password.
        key: of the certificate, PEM.
    """

    password: str = field(default="", repr=False)
    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)


def write_account_folder(
    path: Path, account: str, *, fleet: str, address: str, credential: Credential, authority: bytes
) -> None:
    """Write an account's folder, readable by this user only.

    Args:
        path: of the folder; made if missing, with what is above it.
        account: whose it is.
        fleet: that the account belongs to.
        address: of the broker, as a setting takes it.
        credential: of the account.
        authority: certificate of the authority that signed the broker's, PEM.

    Raises: MachineError: it can't be written.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
    if credential.certificate:
        write_atomically(path / "key.pem", credential.key, mode=PRIVATE)
        write_atomically(path / "cert.pem", credential.certificate, mode=PRIVATE)
    else:
        write_atomically(path / "password", f"{credential.password}\n".encode(), mode=PRIVATE)
    write_atomically(path / "ca.pem", authority, mode=PRIVATE)
    # Last: hsee.toml is what makes the folder an account's.
    settings = _settings(account, fleet=fleet, address=address, certified=bool(credential.certificate))
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


def _settings(account: str, *, fleet: str, address: str, certified: bool) -> str:
    quoted = [msgspec.json.encode(text).decode() for text in (fleet, address)]
    lines = [
        f"# Settings of {account}, read by hsee where it is started in this folder. They hold no secret.",
        "[fleet]",
        f"name = {quoted[0]}",
        "",
        "[broker]",
        f"address = {quoted[1]}",
        f'username = "{account}"',
        *(
            ['cert_file = "cert.pem"', 'key_file = "key.pem"']
            if certified
            else ['password_file = "password"']
        ),
        'ca_file = "ca.pem"',
    ]
    if kind_of(account) in ("device", "infer"):
        lines += ["", "[device]", f'id = "{account.removesuffix(INFER_SUFFIX)}"']
    return "\n".join(lines) + "\n"
