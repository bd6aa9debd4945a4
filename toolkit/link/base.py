"""The contract of a link: what every way of carrying protocol messages promises, and where a broker is.

A link is at-least-once at best and remembers nothing. Correctness never relies on it: what must arrive is said again
by the protocol above, after every ``Connected``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from toolkit.errors import (
    BrokerError,
    IdentityConflictError,
    InsecureBrokerError,
    LocalProtocolError,
    PacketTooLargeError,
    UsageError,
    did_you_mean,
)
from toolkit.wire.limits import CHUNK_OVERHEAD_BYTES, DEFAULT_CHUNK_BYTES, MAX_MESSAGE_BYTES

CONNECT_S = 20.0
"""How long a program that was just started tries for its first connection before it says that there is no broker."""
MAX_TOPIC_BYTES = 512
"""Of any topic of ours, with what MQTT writes around it: three names of 64 and their levels are less."""
PLAIN_PORT = 1883
TLS_PORT = 8883
MAX_MQTT_PACKET_BYTES = 268_435_460
"""The largest packet MQTT can express: a remaining length of 2**28 - 1 after a fixed header of 5 bytes."""

_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker accepted us. Nothing is subscribed: subscribe and say hello, whatever ``session_present`` says."""

    session_present: bool


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A connection ended, or an attempt at one failed. The link tries again by itself until it is closed."""

    error: BrokerError


@dataclass(frozen=True, slots=True)
class Received:
    """One message as the broker delivered it: maybe a duplicate, maybe retained."""

    topic: str
    payload: bytes = field(repr=False)


LinkEvent = Connected | Disconnected | Received


class Link(Protocol):
    """One identity's way to and from a broker.

    ``publish`` and ``subscribe`` may be called from any thread, ``poll`` from one at a time.
    """

    @property
    def outstanding_bytes(self) -> int:
        """Payload bytes handed over on this connection, not yet acknowledged (QoS 1) or written (QoS 0)."""
        ...

    @property
    def max_packet_bytes(self) -> int:
        """The largest packet that the broker takes."""
        ...

    @property
    def n_dropped(self) -> int:
        """Messages received and thrown away since the start, because nobody polled or they were unreadable."""
        ...

    def start(self) -> None:
        """Begin to connect, and to reconnect for ever with full-jitter back-off. Returns at once.

        Every failure comes out of ``poll`` as a ``Disconnected``; none is raised here.
        """
        ...

    def subscribe(self, *filters: str) -> None:
        """Subscribe at QoS 1, on this connection only: call it after every ``Connected``.

        Raises: LocalProtocolError: not a valid topic filter.
        """
        ...

    def publish(self, topic: str, payload: bytes | bytearray, *, qos: int = 1, retain: bool = False) -> None:
        """Hand a message over without ever blocking. Returning says nothing about delivery.

        While disconnected the message is dropped: nothing is kept for a later connection, so that nothing stale is
        ever sent. Leave ``payload`` unchanged while it is outstanding; it is not copied.

        Raises:
            PacketTooLargeError: before anything was handed over.
            LocalProtocolError: not a valid topic or QoS (0 or 1).
        """
        ...

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        """Return what happened, oldest first, waiting at most ``timeout_s`` seconds for the first event."""
        ...

    def close(self, timeout_s: float = 2.0) -> None:
        """Flush what is outstanding, say goodbye so that no will is published, and stop. May be called twice."""
        ...


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is and how to be let in.

    ``ca_file`` is the authority its certificate must be signed by (default: the system's authorities). ``cert_file`` and
    ``key_file`` are this account's own, which stand for its password. ``insecure`` says that the user accepts a
    connection off this machine without TLS or credentials. ``max_packet_bytes`` is the largest packet that the broker
    takes.
    """

    host: str
    port: int
    tls: bool = False
    username: str = ""
    password: str = field(default="", repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    insecure: bool = False
    max_packet_bytes: int = MAX_MESSAGE_BYTES

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the address never leaves this machine."""
        if self.host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def has_login(self) -> bool:
        """Whether there is an account, and a password or a certificate for it."""
        return bool(self.username and (self.password or self.cert_file))

    def with_login(self, username: str, password: str) -> BrokerAddress:
        """Return the same broker with another account and its password; both empty for none."""
        return replace(self, username=username, password=password, cert_file=None, key_file=None)

    def with_certificate(self, username: str, cert_file: Path, key_file: Path) -> BrokerAddress:
        """Return the same broker with another account and its certificate."""
        return replace(self, username=username, password="", cert_file=cert_file, key_file=key_file)

    def require_secure(self) -> None:
        """Refuse to go off this machine without TLS and credentials, unless the user said so.

        Raises: InsecureBrokerError: one is missing; facts: broker, missing.
        """
        if self.insecure or self.is_loopback:
            return
        missing = [
            *([] if self.tls else ["TLS"]),
            *([] if self.has_login else ["a user name and password"]),
        ]
        if not missing:
            return
        fixes = [
            *([] if self.tls else [f"Write mqtts://{self.host} and give the broker a certificate."]),
            *(
                []
                if self.has_login
                else ["Give a user name, and its password in HSEE_BROKER_PASSWORD or a password file."]
            ),
        ]
        raise InsecureBrokerError(
            f"The broker {self} is not on this machine, and the connection would go without {' and '.join(missing)}.",
            hint=f"{' '.join(fixes)} To accept that anyone on the way can read and forge messages, add --insecure.",
            broker=str(self),
            missing=missing,
        )


def parse_broker(
    text: str, *, username: str = "", password: str = "", ca_file: Path | None = None, insecure: bool = False
) -> BrokerAddress:
    """Read a broker's address as a user writes it.

    Args:
        text: ``HOST``, ``HOST:PORT``, ``mqtt://HOST[:PORT]`` or ``mqtts://HOST[:PORT]``; IPv6 in brackets. The port
            defaults to 1883, with TLS to 8883.
        username: the account, empty for none.
        password: its password, from an environment variable or a file, never from a URL.
        ca_file: PEM file of the authority that signed the broker's certificate.
        insecure: the user's ``--insecure``.
    Raises: UsageError: anything else.
    """
    # Before anything that quotes the text: a message must never show a password.
    if "@" in text:
        raise UsageError(
            "A broker's address holds no user name or password.",
            hint="Write only the host, and put the password into HSEE_BROKER_PASSWORD or a password file.",
        )
    scheme, separator, _ = text.partition("://")
    if separator and scheme not in ("mqtt", "mqtts"):
        raise UsageError(
            f"Broker {text!r} has the scheme {scheme!r}, which hsee does not speak.",
            hint=did_you_mean(scheme, ("mqtt", "mqtts")),
            broker=text,
        )
    try:
        parts = urlsplit(text if separator else f"mqtt://{text}")
        host, port = parts.hostname or "", parts.port
    except ValueError as exc:
        raise _bad_address(text, str(exc)) from exc
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise _bad_address(text, "nothing may follow the port")
    if parts.netloc.endswith(":") or port == 0:
        raise _bad_address(text, "the port is a number from 1 to 65535")
    if not _is_host(host, bracketed=parts.netloc.startswith("[")):
        raise _bad_address(text, f"{host!r} is neither a host name nor an IP address")
    tls = parts.scheme == "mqtts"
    if ca_file is not None and not tls:
        raise UsageError(
            f"A certificate authority was given, but broker {text!r} is reached without TLS.",
            hint=f"Write mqtts://{parts.netloc}.",
        )
    return BrokerAddress(
        host=host,
        port=port if port is not None else (TLS_PORT if tls else PLAIN_PORT),
        tls=tls,
        username=username,
        password=password,
        ca_file=ca_file,
        insecure=insecure,
    )


def chunk_bytes_of(link: Link) -> int:
    """Say how much of a payload one message may carry, so that its packet passes the broker whatever its topic."""
    return min(DEFAULT_CHUNK_BYTES, link.max_packet_bytes - CHUNK_OVERHEAD_BYTES - MAX_TOPIC_BYTES)


def publish_packet_bytes(topic: str, n_payload: int, qos: int) -> int:
    """Count the bytes of an MQTT 3.1.1 PUBLISH packet, fixed header included (at its longest, 5 bytes)."""
    return 5 + 2 + len(topic.encode()) + (2 if qos else 0) + n_payload


def check_publish(topic: str, n_payload: int, *, qos: int, max_packet_bytes: int) -> None:
    """Check a message before it is handed to anything that would send it.

    Raises:
        PacketTooLargeError: its packet would exceed the limit.
        LocalProtocolError: not a valid topic or QoS.
    """
    if qos not in (0, 1):
        raise LocalProtocolError(f"A message was to be published at QoS {qos}; the protocol uses 0 and 1.")
    if not topic or any(sign in topic for sign in "+#\0"):
        raise LocalProtocolError(f"{topic!r} is not a topic that can be published to.")
    n_bytes = publish_packet_bytes(topic, n_payload, qos)
    if n_bytes > max_packet_bytes:
        raise PacketTooLargeError(
            f"A message of {n_bytes} bytes on {topic!r} exceeds the packet limit of {max_packet_bytes}.",
            hint="Make the chunks smaller, or raise the limit here and on the broker.",
            n_bytes=n_bytes,
            limit_bytes=max_packet_bytes,
        )


def check_filter(topic_filter: str) -> None:
    """Check a topic filter: ``+`` fills one level, ``#`` the last one.

    Raises: LocalProtocolError: it is none.
    """
    levels = topic_filter.split("/")
    misplaced = (
        any(("+" in level or "#" in level) and len(level) > 1 for level in levels) or "#" in levels[:-1]
    )
    if not topic_filter or "\0" in topic_filter or misplaced:
        raise LocalProtocolError(f"{topic_filter!r} is not a topic filter.")


@lru_cache(maxsize=1 << 16)
def matches(topic_filter: str, topic: str) -> bool:
    """Decide whether a filter takes a topic, as MQTT 3.1.1 section 4.7 has it."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for position, level in enumerate(wanted):
        if level == "#":
            return True
        if position >= len(levels) or level not in ("+", levels[position]):
            return False
    return len(wanted) == len(levels)


def check_client(client_id: str, max_packet_bytes: int) -> None:
    """Check what a link is made with.

    Raises: UsageError: an empty client id, or a packet limit that MQTT can't express.
    """
    if not client_id:
        raise UsageError("A link needs a client id.")
    if not 0 < max_packet_bytes <= MAX_MQTT_PACKET_BYTES:
        raise UsageError(
            f"A packet limit of {max_packet_bytes} bytes is none.", hint=f"Use 1 to {MAX_MQTT_PACKET_BYTES}."
        )


def identity_conflict(client_id: str, n_evictions: int) -> IdentityConflictError:
    """Name the cause when a client id is taken over again and again."""
    return IdentityConflictError(
        f"Client id {client_id!r} was let in and cut off {n_evictions} times in a row: another process uses it too, "
        "or the broker restarts again and again.",
        hint="Stop the other process, or give this one an id of its own; the broker's log tells which it is.",
        client_id=client_id,
        n_evictions=n_evictions,
    )


def _bad_address(text: str, why: str) -> UsageError:
    return UsageError(
        f"Broker {text!r} is not an address: {why}.",
        hint="Write HOST, HOST:PORT, mqtt://HOST:PORT or mqtts://HOST:PORT; IPv6 in brackets, as in [::1]:1883.",
        broker=text,
    )


def _is_host(host: str, *, bracketed: bool) -> bool:
    if bracketed:
        return _is_ip(host, ipaddress.IPv6Address)
    labels = host.removesuffix(".").split(".")
    if labels[-1].isdigit():
        return _is_ip(host, ipaddress.IPv4Address)
    return len(host) <= 253 and all(_HOST_LABEL.fullmatch(label) for label in labels)  # noqa: PLR2004 (RFC 1035)


def _is_ip(host: str, kind: type[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> bool:
    try:
        kind(host)
    except ValueError:
        return False
    return True
