"""Sends devices what they fetch, no faster than the link takes it: weights may be larger than all else together."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from coordinator.rounds.underway import Underway
from toolkit.errors import RemoteProtocolError
from toolkit.link.base import Link, chunk_bytes_of
from toolkit.wire import chunks
from toolkit.wire.messages import Fetch
from toolkit.wire.seats import Seat
from toolkit.wire.weights import LoweredAddress, encode_lowered

OUTSTANDING_BYTES = 8 * 1024 * 1024
"""No further chunk is handed to the link while it still holds so much."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A process of a device lacks what a round came to; it has what ``taken`` and earlier ones came to."""

    address: LoweredAddress
    taken: int


class HandingDown:
    """Wishes in the order in which they came, and what is still to be sent of the first.

    Args:
        link: to send on.
        topic_of: device id to its topic.
    """

    def __init__(self, link: Link, topic_of: Callable[[str], str]) -> None:
        self._link = link
        self._topic_of = topic_of
        self._wishes: OrderedDict[str, Wish] = OrderedDict()
        self._sending: Iterator[bytearray] | None = None

    def fetch(self, device: str, fetch: Fetch, *, seat: Seat, underway: Underway | None) -> None:
        """A device lacks what a closed round came to; asked under other orders, it is not answered.

        Raises: RemoteProtocolError: it names another device.
        """
        if fetch.device != device:
            raise RemoteProtocolError(f"A fetch on the topic of {device!r} names {fetch.device!r}.")
        if underway is None or device not in underway.state.jobs:
            return
        orders = (fetch.term, fetch.incarnation, fetch.round)
        if orders == (seat.term, seat.incarnation, underway.model.lowered_round):
            address = LoweredAddress(
                device=device,
                round=fetch.round,
                term=fetch.term,
                incarnation=fetch.incarnation,
                plan_version=underway.state.plan_version,
            )
            self.ask(Wish(address, fetch.taken))

    def ask(self, wish: Wish) -> None:
        """Take a wish; the same one again changes nothing while it is not fulfilled."""
        device = wish.address.device
        if self._wishes.get(device) == wish:
            return
        if device == next(iter(self._wishes), None):
            self._sending = None
        self._wishes[device] = wish

    def send_some(self, underway: Underway) -> bool:
        """Send chunks until the link has enough; whether any was sent."""
        n_sent = 0
        while self._wishes and self._link.outstanding_bytes < OUTSTANDING_BYTES:
            device, wish = next(iter(self._wishes.items()))
            if self._sending is None:
                self._sending = _chunks(wish, underway, chunk_bytes_of(self._link))
            chunk = next(self._sending, None)
            if chunk is None:
                del self._wishes[device]
                self._sending = None
                continue
            self._link.publish(self._topic_of(device), chunk)
            underway.loop.devices[device].lowered_bytes += len(chunk)
            n_sent += 1
        return n_sent > 0


def _chunks(wish: Wish, underway: Underway, chunk_bytes: int) -> Iterator[bytearray]:
    device, job = wish.address.device, underway.state.common
    if wish.address.round != underway.model.lowered_round:
        return iter(())  # a newer round's results are here; the device asks for them
    weights, logits = underway.model.lowered(device, taken=wish.taken)
    payload = encode_lowered(wish.address, weights, job.sync.codec, logits)
    return chunks.split(payload, payload_id=os.urandom(16), chunk_bytes=chunk_bytes)
