"""The flags by which commands reach a broker, as the settings that they stand for; free of typer, for boards' commands."""

from __future__ import annotations


def broker_flags(
    broker: str | None,
    *,
    username: str | None,
    password_file: str | None,
    ca_file: str | None,
    insecure: bool | None,
    fleet: str | None = None,
) -> dict[str, str | bool | None]:
    """Name the setting of each flag, as ``load_config`` takes them; None where a flag was not given."""
    return {
        "broker.address": broker,
        "broker.username": username,
        "broker.password_file": password_file,
        "broker.ca_file": ca_file,
        "broker.insecure": insecure,
        "fleet.name": fleet,
    }
