"""The broker's password, from the environment or a private file, and the key of a certificate: never a setting or argument."""

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
    _require_private(mode, where, path, **facts)
    if not text or "\n" in text or len(raw) > _MAX_PASSWORD_BYTES:
        raise ConfigError(
            f"{where} does not hold one line with a password.",
            hint="Write the password and nothing else.",
            **facts,
        )
    return text


def check_key(settings: Settings) -> Path | None:
    """Say where the private key of the account's certificate is.

    Args:
        settings: name the certificate and its key, where there are such.
    Returns: its path; None where no certificate is named.
    Raises: ConfigError: one of the two is missing, can't be read, or the key can be read by others than its owner.
    """
    broker = settings.broker
    if not broker.cert_file and not broker.key_file:
        return None
    for key, value, other in (
        ("broker.cert_file", broker.cert_file, "broker.key_file"),
        ("broker.key_file", broker.key_file, "broker.cert_file"),
    ):
        if not value:
            raise ConfigError(
                f"{settings.origin(other)}: {other} is set and {key} is not.",
                hint="A certificate and its private key belong together: give both.",
                key=key,
            )
    path = Path(broker.key_file).expanduser()
    for name, file in (("broker.cert_file", Path(broker.cert_file).expanduser()), ("broker.key_file", path)):
        where = f"{settings.origin(name)}: the file {file}"
        try:
            with file.open("rb") as stream:
                mode = os.fstat(stream.fileno()).st_mode
        except OSError as exc:
            raise ConfigError(
                f"{where} can't be read: {exc.strerror}.",
                hint="Check the path and who owns the file.",
                key=name,
                file=str(file),
            ) from exc
        if file == path:
            _require_private(mode, where, path, key=name, file=str(file))
    return path


def _require_private(mode: int, where: str, path: Path, **facts: str) -> None:
    if mode & _OTHERS:
        raise ConfigError(
            f"{where} can be read by others than its owner.", hint=f"Type: chmod 600 {path}", **facts
        )
