"""How commands reach the accounts of a broker of ours: as an operator, by its folder or from any machine of an operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from toolkit.access.broker_folder import BrokerFolder
    from toolkit.access.dynamic_security import DynamicSecurity

Folder = Annotated[
    Path, typer.Option("--folder", help="The folder that hsee broker init wrote, or a copy of it.")
]
MovedBroker = Annotated[
    str | None,
    typer.Option(metavar="mqtts://HOST", help="Where the broker is, if not where boards find it."),
]
Operator = Annotated[str, typer.Option("--as", metavar="op-NAME", help="The operator's account to act as.")]
DEFAULT_FOLDER = Path("broker")
DEFAULT_OPERATOR = "op-admin"
UNTIL_RESTART = (
    "Restart the broker when it suits: until then a certificate of it is let in, and may do nothing."
)


@contextmanager
def control_of(
    folder: Path, broker: str | None, operator: str
) -> Iterator[tuple[BrokerFolder, DynamicSecurity]]:
    """Log in at a broker of ours as an operator, to change its accounts.

    Raises: BrokerError: it can't be reached, or refuses. UsageError: the folder is none of ours.
    """
    from toolkit.access.broker_folder import BrokerFolder
    from toolkit.access.dynamic_security import DynamicSecurity
    from toolkit.access.probe import Probe
    from toolkit.link.base import parse_broker

    opened = BrokerFolder.open(folder)
    address = parse_broker(broker, ca_file=opened.path / "ca.pem") if broker else None
    with Probe(opened.login(operator, address)) as probe:
        yield opened, DynamicSecurity(probe, opened.topics)


@contextmanager
def control_from_here(
    folder: Path, broker: str | None, operator: str
) -> Iterator[tuple[BrokerFolder | None, DynamicSecurity]]:
    """Log in as an operator: by the broker's folder, or where there is none by the settings of an operator's own account.

    Yields: the folder, None where there is none; the broker's accounts.
    Raises: BrokerError: it can't be reached, or refuses. UsageError: there is neither.
    """
    from toolkit.access.accounts import OPERATOR_PREFIX
    from toolkit.access.broker_folder import RECORD
    from toolkit.access.dynamic_security import DynamicSecurity
    from toolkit.access.probe import Probe
    from toolkit.config import load_config
    from toolkit.link.connect import broker_of
    from toolkit.wire.topics import Topics

    settings = load_config({"broker.address": broker})
    if (folder / RECORD).exists() or not settings.broker.username.startswith(OPERATOR_PREFIX):
        with control_of(folder, broker, operator) as found:
            yield found
        return
    with Probe(broker_of(settings)) as probe:
        yield None, DynamicSecurity(probe, Topics(settings.fleet.name))
