"""A link that hands everything on to another one: what stands between a link and its user begins as this."""

from __future__ import annotations

from toolkit.link.base import Link, LinkEvent


class ForwardingLink:
    """Does what the link behind it does; see ``Link``. Subclasses change what they are there for.

    Args:
        link: behind this one.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def outstanding_bytes(self) -> int:
        """See ``Link``."""
        return self._link.outstanding_bytes

    @property
    def max_packet_bytes(self) -> int:
        """See ``Link``."""
        return self._link.max_packet_bytes

    @property
    def n_dropped(self) -> int:
        """See ``Link``."""
        return self._link.n_dropped

    def start(self) -> None:
        """See ``Link``."""
        self._link.start()

    def subscribe(self, *filters: str) -> None:
        """See ``Link``."""
        self._link.subscribe(*filters)

    def publish(self, topic: str, payload: bytes | bytearray, *, qos: int = 1, retain: bool = False) -> None:
        """See ``Link``."""
        self._link.publish(topic, payload, qos=qos, retain=retain)

    def poll(self, timeout_s: float) -> list[LinkEvent]:
        """See ``Link``."""
        return self._link.poll(timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """See ``Link``."""
        self._link.close(timeout_s)
