"""From settings to a link: the one place where a process of hsee gets its way to the broker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.config import Settings, read_password
from toolkit.config.secrets import check_key
from toolkit.errors import require
from toolkit.link.base import BrokerAddress, parse_broker

if TYPE_CHECKING:
    from toolkit.link.mqtt import MqttLink


def broker_of(
    settings: Settings, *, default_username: str = "", env: Mapping[str, str] | None = None
) -> BrokerAddress:
    """Read where the broker is and how to be let in.

    Args:
        settings: of this process; its password comes from the environment or a private file.
        default_username: the account of this kind of process, taken where a password or certificate is given and no
            account.
        env: the environment that may hold the password; by default this process's.
    Raises: UsageError, ConfigError: the address, the password file or the key can't be read.
    """
    password = read_password(settings, env)
    broker = settings.broker
    key_file = check_key(settings)
    address = parse_broker(
        broker.address,
        username=broker.username or (default_username if password or key_file else ""),
        password=password or "",
        ca_file=Path(broker.ca_file) if broker.ca_file else None,
        insecure=broker.insecure,
    )
    return replace(
        address,
        cert_file=Path(broker.cert_file) if key_file else None,
        key_file=key_file,
        max_packet_bytes=broker.max_packet_bytes,
    )


def make_link(address: BrokerAddress, *, client_id: str, will: tuple[str, bytes] | None = None) -> MqttLink:
    """Make a link to a broker, not started yet.

    Args:
        address: the broker.
        client_id: this process's own; equal to its account where it has one.
        will: topic and retained payload that the broker publishes when this process is lost; None for none.
    Raises: InsecureBrokerError: off this machine without TLS or credentials. MissingPartError: paho is not installed.
    """
    require("paho", part="agent", purpose="Talking to a broker")
    from toolkit.link.mqtt import MqttLink

    return MqttLink(address, client_id, will=will, max_packet_bytes=address.max_packet_bytes)
