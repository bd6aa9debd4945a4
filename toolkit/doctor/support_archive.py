"""The support archive: what somebody needs who helps from afar, with every secret masked, and looked through at the end."""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from toolkit.config import Settings, user_config_file
from toolkit.config.load import CWD_FILE
from toolkit.config.secrets import PASSWORD_VARIABLE
from toolkit.errors import MachineError, writing
from toolkit.findings import Finding

MASK = "[masked]"
MAX_FILE_BYTES = 256 * 1024
"""Of a longer file the end is taken."""
RUN_FILES = ("config.toml", "plan.toml", "env.json", "metrics.csv", "coordinator.log", "devices/*/agent.log")
# No pattern begins with a repetition: over a long line that would take a time that grows with its square.
_SECRET_NAME = r"(?:password|passwd|secret|token|api_?key|private_?key)"  # noqa: S105 - a pattern
_ASSIGNED = re.compile(rf"(?i)({_SECRET_NAME}[\"']?\s*[=:]\s*)(\"[^\"\n]*\"|'[^'\n]*'|[^\s,}}]+)")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]{1,512}@")
_MIN_SECRET_LENGTH = 4


def write_archive(
    path: Path, settings: Settings, findings: Sequence[Finding], *, env: Mapping[str, str] | None = None
) -> list[str]:
    """Write a support archive.

    Args:
        path: a new ``.tar.gz``.
        settings: in force; their password file is read only to mask what it holds.
        findings: of the doctor.
        env: the environment; by default this process's.
    Returns: the names of what is in it.
    Raises: MachineError: it can't be written, or a secret would be in it.
    """
    environment = os.environ if env is None else env
    secrets = known_secrets(settings, environment)
    texts = {name: mask(text, secrets) for name, text in _texts(settings, findings, environment).items()}
    for name, text in texts.items():
        # Belt and braces: the masks above are patterns, this is a fact.
        if any(secret in text for secret in secrets):
            raise MachineError(
                f"{name} would hold a password; no archive was written.",
                hint="Please report this as a bug of hsee, without the file.",
            )
    with writing(path), tarfile.open(path, "x:gz") as archive:
        for name, text in texts.items():
            content = text.encode()
            entry = tarfile.TarInfo(f"hsee-support/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(content))
    path.chmod(0o600)
    return sorted(texts)


def known_secrets(settings: Settings, env: Mapping[str, str]) -> list[str]:
    """Gather the secrets that this machine's hsee uses, so that they can be masked wherever they stand."""
    found = [env.get(PASSWORD_VARIABLE, "")]
    if settings.broker.password_file:
        try:
            found += Path(settings.broker.password_file).expanduser().read_text().split()
        except (OSError, UnicodeDecodeError):
            found.append("")  # what can't be read here can't stand in the archive either
    return sorted({secret for secret in found if len(secret) >= _MIN_SECRET_LENGTH}, key=len, reverse=True)


def mask(text: str, secrets: Sequence[str]) -> str:
    """Take secrets out of a text: the known ones, private keys, logins in addresses, and what is named like one."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    text = _PRIVATE_KEY.sub(MASK, text)
    text = _IN_ADDRESS.sub(f"{MASK}@", text)
    return _ASSIGNED.sub(_mask_assigned, text)


def _mask_assigned(match: re.Match[str]) -> str:
    quote = match[2][0] if match[2][0] in "\"'" else ""  # JSON and TOML stay what they are
    return f"{match[1]}{quote}{MASK}{quote}"


def _texts(settings: Settings, findings: Sequence[Finding], env: Mapping[str, str]) -> dict[str, str]:
    texts = {
        "findings.json": _json([msgspec.to_builtins(finding) for finding in findings]),
        "settings.json": _json(
            {
                "settings": {
                    name: msgspec.to_builtins(getattr(settings, name))
                    for name in ("fleet", "broker", "run", "device")
                },
                "origins": {key: str(origin) for key, origin in settings.origins.items()},
            }
        ),
        "environment.json": _json({name: env[name] for name in sorted(env) if name.startswith("HSEE_")}),
        "packages.txt": "\n".join(
            sorted({f"{found.name} {found.version}" for found in importlib.metadata.distributions()})
        ),
    }
    files = {"hsee.toml": CWD_FILE, "user-hsee.toml": user_config_file(env)}
    if (run := _newest_run(Path(settings.fleet.home))) is not None:
        for pattern in RUN_FILES:
            files |= {f"run/{run.name}/{file.relative_to(run)}": file for file in sorted(run.glob(pattern))}
    for name, file in files.items():
        if file.is_file():
            texts[name] = _end_of(file)
    home = str(Path.home())
    return {name: text.replace(home, "~") if len(home) > 1 else text for name, text in texts.items()}


def _newest_run(home: Path) -> Path | None:
    runs = sorted(home.glob("*/run.json"), key=lambda file: file.stat().st_mtime)
    return runs[-1].parent if runs else None


def _end_of(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - MAX_FILE_BYTES))
            return stream.read().decode(errors="replace")
    except OSError as exc:
        return f"can't be read: {exc.strerror}"


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
