"""Options that several commands share: how to reach the broker, and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
Broker = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="The MQTT broker, or mqtts://HOST:PORT.")
]
Username = Annotated[str | None, typer.Option(help="Account at the broker.")]
PasswordFile = Annotated[str | None, typer.Option(help="File with its password, readable by its owner only.")]
CaFile = Annotated[str | None, typer.Option(help="Authority that signed the broker's certificate.")]
Insecure = Annotated[
    bool | None, typer.Option("--insecure", help="Allow a broker off this machine without TLS and login.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's name, or a path of its folder.")]
Home = Annotated[str | None, typer.Option(help="Folder of the run folders.")]


def home_of(flag: str | None) -> Path:
    """Say where the run folders are: as the flag says, or as it is configured.

    Raises: ConfigError: a configuration is wrong.
    """
    from toolkit.config import load_config

    return Path(load_config({"fleet.home": flag}).fleet.home)
