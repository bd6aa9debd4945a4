"""An agent's whole work on a batch, sending through the broker included: what its parts alone would not tell.

Code, buffers and the link's thread push each other out of the caches; on a board held to a fraction of a core that is
worth as much as the parts themselves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from toolkit.errors import BrokerError, BrokerUnreachableError
from toolkit.link.base import BrokerAddress, Connected, Disconnected, Link, chunk_bytes_of
from toolkit.link.connect import make_link
from toolkit.profile.exchange import BrokerWay
from toolkit.profile.measure_link import CONNECT_S, POLL_S
from toolkit.profile.timing import Pace, Timing, time_steps
from toolkit.wire import chunks

AHEAD_BYTES = 1024 * 1024
"""While the link has so much to do nothing is handed to it: its own time is measured apart, and must not look like work."""


def time_at_work(make_payload: Callable[[int], bytearray], way: BrokerWay, pace: Pace) -> Timing:
    """Time training and sending together, as an agent does them: nobody receives what is sent.

    Args:
        make_payload: trains on a batch and encodes it.
        way: to the broker.
        pace: how long.
    Raises: BrokerError: it can't be reached, or goes away.
    """
    address = BrokerAddress(
        host=way.host,
        port=way.port,
        tls=way.tls,
        username=way.username,
        password=way.password,
        ca_file=Path(way.ca_file) if way.ca_file else None,
        cert_file=Path(way.cert_file) if way.cert_file else None,
        key_file=Path(way.key_file) if way.key_file else None,
        insecure=way.insecure,
        max_packet_bytes=way.max_packet_bytes,
    )
    link = make_link(address, client_id=way.client, will=(way.topic, b""))
    link.start()
    try:
        _connect(link, str(address))

        def work(index: int) -> None:
            payload = make_payload(index)
            for chunk in chunks.split(payload, payload_id=os.urandom(16), chunk_bytes=chunk_bytes_of(link)):
                if link.outstanding_bytes < AHEAD_BYTES:
                    link.publish(way.topic, chunk)
            _hear(link, 0.0)

        return time_steps(work, pace)
    finally:
        link.close()


def _connect(link: Link, name: str) -> None:
    deadline_s = time.monotonic() + CONNECT_S
    while time.monotonic() < deadline_s:
        for event in link.poll(POLL_S):
            if isinstance(event, Connected):
                return
            if isinstance(event, Disconnected):
                raise event.error
    raise BrokerUnreachableError(f"{name} does not answer.", broker=name)


def _hear(link: Link, timeout_s: float) -> None:
    lost: list[BrokerError] = [e.error for e in link.poll(timeout_s) if isinstance(e, Disconnected)]
    if lost:
        raise lost[0]
