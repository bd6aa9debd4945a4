"""The broker's password: from the environment or a private file, never from a setting or an argument."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from toolkit.config.settings import Settings
from toolkit.errors import ConfigError

PASSWORD_VARIABLE = "HSEE_BROKER_PASSWORD"  # noqa: S105 - the variable's name, not a password
_OTHERS = 0o077
_MAX_PASSWORD_BYTES = 4096


def read_password(settings: Settings, env: Mapping[str, str] | None = None) -> str | None:
    """Read the broker's password.

    Args:
        settings: name the file, where there is one.
        env: the environment; by default this process's. Its HSEE_BROKER_PASSWORD goes before the file.
    Returns: the password; None where none is given.
    Raises: ConfigError: the file can't be read, is empty, or others than its owner may read it.
    """
    environment = os.environ if env is None else env
    if PASSWORD_VARIABLE in environment:
        return environment[PASSWORD_VARIABLE]
    if not settings.broker.password_file:
        return None
    return read_password_file(
        Path(settings.broker.password_file), str(settings.origin("broker.password_file"))
    )


def read_password_file(file: Path, origin: str) -> str:
    """Read a password from a private file.

    Args:
        file: holds it in one line.
        origin: what named the file, for errors.
    Raises: ConfigError: the file can't be read, is empty, or others than its owner may read it.
    """
    path = file.expanduser()
    facts = {"key": "broker.password_file", "file": str(path)}
    where = f"{origin}: the password file {path}"
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            raw = stream.read(_MAX_PASSWORD_BYTES + 1)
        text = raw.decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(
            f"{where} can't be read: {exc}.", hint="Check the path and who owns the file.", **facts
        ) from exc
    if mode & _OTHERS:
        raise ConfigError(
            f"{where} can be read by others than its owner.", hint=f"Type: chmod 600 {path}", **facts
        )
    if not text or "\n" in text or len(raw) > _MAX_PASSWORD_BYTES:
        raise ConfigError(
            f"{where} does not hold one line with a password.",
            hint="Write the password and nothing else.",
            **facts,
        )
    return text
