"""Options that several commands share: how to reach the broker, and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.errors import UsageError


def _not_both(context: typer.Context, wanted: bool) -> bool:  # noqa: FBT001 - typer calls it with the option's value
    """Refuse less and more at once.

    Raises: UsageError: both.
    """
    # The option that comes second sees the first.
    if wanted and (context.params.get("quiet") or context.params.get("verbose")):
        raise UsageError("-q and -v ask for less and for more.", hint="Give one of them.")
    return wanted


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
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only errors and the result.", callback=_not_both)
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Write what the parts log, connections first, to standard error.",
        callback=_not_both,
    ),
]
Home = Annotated[str | None, typer.Option(help="Folder of the run folders.")]


def home_of(flag: str | None) -> Path:
    """Say where the run folders are: as the flag says, or as it is configured.

    Raises: ConfigError: a configuration is wrong.
    """
    from toolkit.config import load_config

    return Path(load_config({"fleet.home": flag}).fleet.home)
