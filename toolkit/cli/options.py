"""Options that several commands share: how to reach the broker, and JSON."""

from __future__ import annotations

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
