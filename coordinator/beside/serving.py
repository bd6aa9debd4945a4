"""Services without training: the loop that serves a run which is over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from coordinator.beside.service import Service
from toolkit.errors import RemoteProtocolError
from toolkit.link.base import CONNECT_S, Connected, Disconnected, Link, LinkEvent, Received, matches
from toolkit.link.contact import Contact


class Server:
    """Gives services a link and turns, until it is closed.

    Args:
        link: not started yet.
        services: closed with it.
        clock: monotonic seconds.
        say: takes each line that whoever watches should read.
        connect_s: how long the first connection may take; later ones are tried for ever.
    """

    def __init__(
        self,
        link: Link,
        services: Sequence[Service],
        *,
        clock: Callable[[], float],
        say: Callable[[str], None],
        connect_s: float = CONNECT_S,
    ) -> None:
        self._link = link
        self._services = tuple(services)
        self._say = say
        self._contact = Contact(clock, who="this coordinator", connect_s=connect_s)
        self.n_refused_messages = 0

    def start(self) -> None:
        """Begin to connect."""
        self._link.start()

    def poll(self, timeout_s: float) -> None:
        """Give every service a turn, then take what the link brought; wait at most ``timeout_s`` if all is done.

        Raises: BrokerError: there was no first connection.
        """
        busy = False
        for service in self._services:
            busy |= service.tick(self._link.publish)
        for event in self._link.poll(0.0 if busy else timeout_s):
            self._on_link(event)

    def close(self) -> None:
        """Leave the broker and let the services go."""
        self._link.close()
        for service in self._services:
            service.close()

    def _on_link(self, event: LinkEvent) -> None:
        match event:
            case Connected():
                self._contact.made()
                self._link.subscribe(*(topics for service in self._services for topics in service.filters))
                self._say("connected to the broker")
            case Disconnected(error=error):
                line = self._contact.lost(error)
                if line:
                    self._say(line)
            case Received(topic=topic, payload=payload):
                for service in self._services:
                    if any(matches(topic_filter, topic) for topic_filter in service.filters):
                        self._give(service, topic, payload)

    def _give(self, service: Service, topic: str, payload: bytes) -> None:
        try:
            service.take(topic, payload)
        except RemoteProtocolError as exc:
            self.n_refused_messages += 1
            self._say(f"refused a message on {topic}: {exc.message}")
