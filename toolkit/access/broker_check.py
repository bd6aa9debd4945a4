"""A broker judged by stage, and by what it delivers: what an acknowledgement or a SUBACK says counts for nothing."""

from __future__ import annotations

import secrets
import socket
import ssl
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from toolkit.access.neighbours import check_neighbours
from toolkit.access.probe import ANSWER_S, Probe
from toolkit.errors import BrokerError, BrokerLoginError, HseeError, InsecureBrokerError
from toolkit.findings import Finding, has_failed
from toolkit.link.base import BrokerAddress, publish_packet_bytes
from toolkit.link.refusals import connect_error
from toolkit.wire.limits import DEFAULT_CHUNK_BYTES, MAX_MESSAGE_BYTES
from toolkit.wire.topics import Topics

REACH_S = 5.0
EXPIRES_SOON_DAYS = 30
SMALL_BYTES = 64
MIDDLE_BYTES = 64 * 1024
N_TRIPS = 5
NAGLE_S = 0.025
"""A delayed acknowledgement costs 40 ms; what a 64 KB trip takes beyond its share of the bytes stays below this."""
BURST_BYTES = 8 * 1024 * 1024
"""As much as an agent hands over before it waits (device_agent.agent.OUTSTANDING_BYTES)."""
BURST_S = 5.0
"""On a slow link the burst is as much as fits into this."""
MIN_BURST = 4
STALL_S = 1.5
"""What has not come so long after the last message of a burst is lost; four trips of the largest, if that is more."""
ANONYMOUS = "anonymous"
WRITE_IT = "hsee broker init writes a configuration that passes."


def check_broker(
    address: BrokerAddress,
    topics: Topics,
    *,
    other: BrokerAddress | None = None,
    answer_s: float = ANSWER_S,
    log_in: bool = True,
) -> list[Finding]:
    """Judge a broker with one account, or better with two.

    Args:
        address: with the login of an account whose process does not run now.
        topics: of the fleet.
        other: the same broker with another device's login, to try whether the accounts are apart.
        answer_s: how long a delivery may take.
        log_in: false to stop after TCP and TLS, which disturb nobody.
    Returns: findings, in the order of the stages; after a failed stage the later ones are not tried.
    """
    findings = []
    for finding in _stages(address):
        findings.append(finding)
        if finding.verdict == "failed":
            return findings
    if not log_in:
        return findings
    try:
        # The judgement of an unsafe way in has been made above; here it only must not stand in the way.
        with Probe(replace(address, insecure=True), answer_s=answer_s) as probe:
            findings.append(_login_found(address))
            findings += _strangers(address)
            findings += _deliveries(probe, topics)
        if has_failed(findings):
            return findings
        with Probe(replace(address, insecure=True), answer_s=answer_s) as again:
            findings.append(_reconnect(again, topics))
            findings += check_neighbours(again, topics, other=other)
    except HseeError as exc:
        findings.append(Finding("login", "failed", exc.message, exc.hint or WRITE_IT))
    return findings


def _stages(address: BrokerAddress) -> Iterator[Finding]:
    yield _security(address)
    start_s = time.perf_counter()
    try:
        connection = socket.create_connection((address.host, address.port), timeout=REACH_S)
    except (OSError, UnicodeError) as exc:
        error = connect_error(exc, address, timeout_s=REACH_S)
        yield Finding("tcp", "failed", error.message, error.hint or "Check host, port and network.")
        return
    with connection:
        took_ms = (time.perf_counter() - start_s) * 1e3
        peer = str(connection.getpeername()[0])
        yield Finding("tcp", "ok", f"{address.host} is {peer}; connected in {took_ms:.1f} ms")
        yield _tls(address, connection)


def _security(address: BrokerAddress) -> Finding:
    try:
        replace(address, insecure=False).require_secure()
    except InsecureBrokerError as exc:
        if not address.insecure:
            return Finding("security", "failed", exc.message, exc.hint)
        return Finding("security", "warning", exc.message, WRITE_IT)
    if address.tls and address.username:
        return Finding("security", "ok", "TLS and a login")
    return Finding("security", "ok", "on this machine only, where TLS and a login are not asked for")


def _tls(address: BrokerAddress, connection: socket.socket) -> Finding:
    if not address.tls:
        return Finding("tls", "skipped", "the address says mqtt://, not mqtts://")
    try:
        context = ssl.create_default_context(cafile=address.ca_file)
        if address.cert_file is not None:
            context.load_cert_chain(address.cert_file, address.key_file)
    except OSError as exc:
        return Finding(
            "tls",
            "failed",
            f"The authority's file {address.ca_file}, or the account's certificate, can't be used: {exc}.",
            "Give the ca.pem that belongs to this broker: --ca-file.",
        )
    try:
        with context.wrap_socket(connection, server_hostname=address.host) as wrapped:
            version, certificate = wrapped.version(), wrapped.getpeercert() or {}
    except OSError as exc:
        error = connect_error(exc, address, timeout_s=REACH_S)
        return Finding("tls", "failed", error.message, error.hint or "Is it the broker's TLS port?")
    end = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    left_days = (end - datetime.now(UTC)).days
    detail = f"{version}, the certificate holds until {end:%Y-%m-%d}"
    if left_days < EXPIRES_SOON_DAYS:
        return Finding(
            "tls", "warning", f"{detail}, {left_days} days", "hsee broker renew, and restart the broker."
        )
    return Finding("tls", "ok", detail)


def _login_found(address: BrokerAddress) -> Finding:
    if address.username:
        return Finding("login", "ok", f"let in as {address.username!r}")
    return Finding("login", "ok", "let in without a login")


def _strangers(address: BrokerAddress) -> Iterator[Finding]:
    """Try to come in with no login, and with a wrong password."""
    anyone = replace(address.with_login("", ""), insecure=True)
    yield _stranger("anonymous login", anyone, is_local=address.is_loopback)
    if address.password:
        # An id of its own: on a broker that evicts before it authenticates, the account's own process would suffer.
        guessed = replace(address, password=secrets.token_urlsafe(24), insecure=True)
        yield _stranger("wrong password", guessed, is_local=False)


def _stranger(check: str, address: BrokerAddress, *, is_local: bool) -> Finding:
    try:
        Probe(address, client_id=f"hsee-check-{secrets.token_hex(6)}").close()
    except BrokerLoginError:
        return Finding(check, "ok", "refused")
    except BrokerError as exc:
        return Finding(check, "ok", f"refused ({exc.message})")
    fix = f"In mosquitto.conf: allow_anonymous false, and accounts. {WRITE_IT}"
    if is_local:
        return Finding(check, "warning", "let in; so is every user of this machine", fix)
    return Finding(check, "failed", "let in", fix)


def _deliveries(probe: Probe, topics: Topics) -> Iterator[Finding]:
    own = topics.check(probe.address.username or ANONYMOUS)
    probe.subscribe(own)
    if probe.echo(own, secrets.token_bytes(SMALL_BYTES)) is None:
        yield Finding(
            "own topics",
            "failed",
            f"what was sent to {own} did not come back within {probe.answer_s:g} s",
            f"Let the account publish and subscribe there, and on its own topics alone. {WRITE_IT}",
        )
        return
    small_s = _trip_s(probe, own, SMALL_BYTES)
    yield Finding("own topics", "ok", f"delivered; {small_s * 1e3:.1f} ms there and back")
    largest_s = _echo_largest(probe, own)
    if largest_s is None:
        yield Finding(
            "packet size",
            "failed",
            f"a packet of {MAX_MESSAGE_BYTES} bytes was not delivered"
            + ("" if probe.is_connected else "; the broker cut the connection off"),
            f"In mosquitto.conf: max_packet_size {MAX_MESSAGE_BYTES} or more; elsewhere make it 384 KiB.",
        )
        return
    yield Finding("packet size", "ok", f"{MAX_MESSAGE_BYTES} bytes delivered in {largest_s * 1e3:.0f} ms")
    yield _no_delay(probe, own, small_s)
    yield _burst(probe, own, largest_s)


def _trip_s(probe: Probe, topic: str, n_bytes: int) -> float:
    trips = [probe.echo(topic, secrets.token_bytes(n_bytes)) for _ in range(N_TRIPS)]
    return statistics.median([trip for trip in trips if trip is not None] or [probe.answer_s])


def _echo_largest(probe: Probe, topic: str) -> float | None:
    n_payload = MAX_MESSAGE_BYTES - publish_packet_bytes(topic, 0, 1)
    return probe.echo(topic, secrets.token_bytes(n_payload), timeout_s=4 * probe.answer_s)


def _no_delay(probe: Probe, topic: str, small_s: float) -> Finding:
    middle_s = _trip_s(probe, topic, MIDDLE_BYTES)
    twice_s = _trip_s(probe, topic, 2 * MIDDLE_BYTES)
    # What 64 KB cost on this link, whatever its speed; a fixed wait cancels out of the difference.
    bytes_s = max(0.0, twice_s - middle_s)
    wait_s = middle_s - small_s - bytes_s
    detail = f"64 KB there and back in {middle_s * 1e3:.1f} ms"
    if wait_s > NAGLE_S:
        return Finding(
            "nodelay",
            "warning",
            f"{detail}, of it {wait_s * 1e3:.0f} ms waiting: the broker holds small packets back",
            "In mosquitto.conf: set_tcp_nodelay true, and restart it.",
        )
    return Finding("nodelay", "ok", detail)


def _burst(probe: Probe, topic: str, largest_s: float) -> Finding:
    wanted = int(BURST_S / largest_s * MAX_MESSAGE_BYTES) // DEFAULT_CHUNK_BYTES
    n_chunks = max(MIN_BURST, min(BURST_BYTES // DEFAULT_CHUNK_BYTES, wanted))
    n_before = len(probe.received)
    tag = secrets.token_bytes(16)
    for i in range(n_chunks):
        probe.publish(topic, tag + i.to_bytes(4, "big") + bytes(DEFAULT_CHUNK_BYTES - 20))

    def n_arrived() -> int:
        return len({m.payload[16:20] for m in probe.received[n_before:] if m.payload.startswith(tag)})

    patience_s = max(STALL_S, 4 * largest_s)
    arrived = -1
    while n_arrived() > arrived and probe.is_connected:
        arrived = n_arrived()
        probe.wait_until(lambda: n_arrived() == n_chunks or not probe.is_connected, patience_s)
    arrived = n_arrived()
    del probe.received[n_before:]  # megabytes that nobody needs any more
    detail = f"{arrived} of {n_chunks} messages of 256 KiB, sent at once, were delivered"
    if arrived < n_chunks:
        return Finding(
            "queue limits",
            "failed",
            detail,
            f"In mosquitto.conf: max_queued_bytes {32 * BURST_BYTES} and max_queued_messages 10000, never 0.",
        )
    return Finding("queue limits", "ok", detail)


def _reconnect(again: Probe, topics: Topics) -> Finding:
    """Judge a second connection of the account, made with a clean session and the same client id."""
    own = topics.check(again.address.username or ANONYMOUS)
    again.subscribe(own)
    if again.session_present or again.echo(own, secrets.token_bytes(SMALL_BYTES)) is None:
        return Finding(
            "reconnect",
            "failed",
            "a second connection of the account got an old session, or nothing on its own topic",
            "hsee uses clean sessions and needs nothing kept: let the broker honour the clean-session flag.",
        )
    return Finding("reconnect", "ok", "a clean session each time; subscriptions hold at once")
