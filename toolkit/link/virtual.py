"""A broker and its links in virtual time: what is published arrives once its bytes would have come through.

On top of the links in memory: still one thread and the same history every time. Each link has a clock of its own, which
whoever simulates moves; nothing here waits.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from toolkit.errors import BrokerError
from toolkit.link.base import MAX_MQTT_PACKET_BYTES, LinkEvent, Received
from toolkit.link.memory import MemoryBroker, MemoryLink

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Line:
    """What lies between a device and the broker.

    Attributes:
        up_bytes_per_s: to the broker.
        down_bytes_per_s: from it.
        delay_s: of each way.
    """

    up_bytes_per_s: float = float("inf")
    down_bytes_per_s: float = float("inf")
    delay_s: float = 0.0


class VirtualBroker(MemoryBroker):
    """A hub that knows when the message in its hands arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.arrival_s = 0.0


class VirtualLink(MemoryLink):
    """A ``Link`` whose messages take their time.

    Args:
        hub: the broker.
        client_id: whoever connects with it last has it.
        clock: seconds, of this end.
        line: between this end and the broker.
        on_arrival: called with the time at which a message will be here.
        will: topic and payload that the hub publishes, retained, when this link is cut off.
        max_packet_bytes: the packet limit.
    """

    def __init__(
        self,
        hub: VirtualBroker,
        client_id: str,
        *,
        clock: Clock,
        line: Line,
        on_arrival: Callable[[float], None] = lambda _: None,
        will: tuple[str, bytes] | None = None,
        max_packet_bytes: int = MAX_MQTT_PACKET_BYTES,
    ) -> None:
        super().__init__(hub, client_id, will=will, max_packet_bytes=max_packet_bytes)
        self._virtual_hub = hub
        self._clock = clock
        self._line = line
        self._on_arrival = on_arrival
        self._up_free_s = 0.0
        self._down_free_s = 0.0
        self._coming: list[tuple[float, int, Received]] = []
        self._n_coming = 0
        self.n_published_bytes = 0
        self.n_received_bytes = 0
        self.n_moves = 0

    @property
    def outstanding_bytes(self) -> int:
        """What the line has not carried to the broker yet."""
        left_s = self._up_free_s - self._clock()
        return int(left_s * self._line.up_bytes_per_s) if left_s > 0 else 0

    @property
    def next_arrival_s(self) -> float:
        """When the next message will be here; infinite where none is on its way."""
        return self._coming[0][0] if self._coming else float("inf")

    @property
    def up_free_s(self) -> float:
        """When all that was published will have left."""
        return self._up_free_s

    def publish(self, topic: str, payload: bytes | bytearray, *, qos: int = 1, retain: bool = False) -> None:
        """See ``Link.publish``."""
        self._up_free_s = max(self._clock(), self._up_free_s) + len(payload) / self._line.up_bytes_per_s
        self._virtual_hub.arrival_s = self._up_free_s + self._line.delay_s
        self.n_published_bytes += len(payload)
        self.n_moves += 1
        super().publish(topic, payload, qos=qos, retain=retain)

    def subscribe(self, *filters: str) -> None:
        """See ``Link.subscribe``."""
        self._virtual_hub.arrival_s = self._clock() + self._line.delay_s
        super().subscribe(*filters)

    def deliver(self, topic: str, payload: bytes) -> None:
        """Take a message from the hub; it comes out of ``poll`` when it has come through."""
        start_s = max(self._virtual_hub.arrival_s, self._down_free_s)
        self._down_free_s = start_s + len(payload) / self._line.down_bytes_per_s
        here_s = self._down_free_s + self._line.delay_s
        self._n_coming += 1
        heapq.heappush(self._coming, (here_s, self._n_coming, Received(topic, payload)))
        self.n_received_bytes += len(payload)
        self._on_arrival(here_s)

    def cut_off(self, error: BrokerError) -> None:
        """Lose the connection, and what was on its way."""
        self._coming.clear()
        super().cut_off(error)

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        """Return what is here by now. Never waits."""
        events = super().poll(timeout_s)
        while self.next_arrival_s <= self._clock():
            events.append(heapq.heappop(self._coming)[2])
        self.n_moves += len(events)
        return events
