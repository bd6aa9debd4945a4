"""amqtt's broker as hsee runs it: credentials before effects, one connection an account, grants at every delivery.

Every override here leans on inner methods of amqtt 0.12.1; ``tests/integration/test_broker_upstream.py`` fails when one
of them changes. Only the broker's own process imports this module.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.errors import AMQTTError, MQTTError, NoDataError
from amqtt.mqtt.connack import NOT_AUTHORIZED, ConnackPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler

from toolkit.link.base import matches
from toolkit.link.grants import NOTHING, Grants

if TYPE_CHECKING:
    from amqtt.adapters import ReaderAdapter, WriterAdapter
    from amqtt.contexts import ListenerConfig
    from amqtt.session import Session

LOOPBACK = "127.0.0.1"
CONNECT_TIMEOUT_S = 10.0
TAKE_OVER_TIMEOUT_S = 1.0


class LoopbackBroker(Broker):  # type: ignore[misc]  # amqtt is not typed for us
    """A broker for one machine: it listens on loopback, knows accounts only, and keeps no session.

    Args:
        accounts: the file that ``toolkit.link.broker.write_accounts`` wrote.
        port: 0 for one that is free.
        grants: what each account may send and be sent, all else is denied; None where every account may do all.
    """

    def __init__(self, accounts: Path, port: int, *, grants: Mapping[str, Grants] | None = None) -> None:
        self._grants = grants
        super().__init__(
            {
                "listeners": {"default": {"type": "tcp", "bind": f"{LOOPBACK}:{port}"}},
                # The only plugin, so no anonymous login and none of amqtt's loggers.
                "plugins": {"amqtt.plugins.authentication.FileAuthPlugin": {"password_file": str(accounts)}},
            }
        )

    @property
    def port(self) -> int:
        """The port that it listens on, once started."""
        (server,) = self._servers.values()
        port: int = server.instance.sockets[0].getsockname()[1]
        return port

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, remote_address: str, remote_port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        """Read the CONNECT and authenticate it, before it has any effect on anybody.

        Upstream deletes and rewrites the session of a client id before it looks at the password.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                handler, session = await BrokerProtocolHandler.init_from_connect(
                    reader, writer, self.plugins_manager
                )
        except (AMQTTError, MQTTError, NoDataError, TimeoutError) as exc:
            await _close(writer)
            raise AMQTTError(f"{remote_address}:{remote_port}: {exc or 'no CONNECT in time'}") from exc
        if not await super()._authenticate(session, self.listeners_config["default"]):
            await ConnackPacket.build(0, NOT_AUTHORIZED).to_stream(writer)
            await _close(writer)
            raise AMQTTError(f"login refused: user {session.username!r}, client id {session.client_id!r}")
        # One account is one connection, whatever client id it names: nobody can take another's over.
        session.client_id = session.username
        # Sessions end with their connection here: the protocol relies on none, and a kept one can be stolen.
        session.clean_session = True
        session.parent = 0
        return handler, session

    async def _authenticate(self, session: Session, _: ListenerConfig) -> bool:
        """Take the client id over from whoever holds it, for a session that is authenticated already.

        Upstream registers the session in the same step as this returns: nobody comes between. It would leave an older
        connection of a clean session open, deaf.
        """
        client_id = session.client_id
        while (held := self._sessions.get(client_id)) is not None and held[
            0
        ].transitions.state == "connected":
            await self._evict(*held)
        await self._delete_session(client_id)
        return True

    async def _evict(self, session: Session, handler: BrokerProtocolHandler) -> None:
        """End a connection as if its socket had closed: its own task publishes its will, before the newcomer speaks."""
        deadline_s = self._loop.time() + TAKE_OVER_TIMEOUT_S
        while session.transitions.state == "connected":
            if self._loop.time() > deadline_s:
                # Its task hangs, in a last write to a peer that reads nothing, or in a reader that missed its
                # cancellation; the id is free all the same.
                session.transitions.disconnect()
                handler.reader.feed_eof()
                return
            # Again and again, because a connection that is only starting does not hear it yet.
            await handler.handle_connection_closed()
            await asyncio.sleep(0.001)

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        """Send what is retained under a filter, to a session that subscribed it.

        Upstream also calls this at every connect, with the filters of everybody else.
        """
        topic_filter, qos = subscription
        if not any(holder is session for holder, _ in self._subscriptions.get(topic_filter, ())):
            return
        send = super()._publish_retained_messages_for_subscription
        # Upstream asks nobody here: given each topic as its own filter, it sends that and nothing else.
        topics = [
            topic
            for topic in self._retained_messages
            if matches(topic_filter, topic) and self._may(session, topic, Action.RECEIVE)
        ]
        await asyncio.gather(*(send((topic, qos), session) for topic in topics))

    async def _topic_filtering(self, session: Session, topic: str, action: Action) -> bool:
        """Tell whether an account may do so. Subscribing is free: what counts is what is delivered."""
        return action == Action.SUBSCRIBE or self._may(session, topic, action)

    def _may(self, session: Session, topic: str, action: Action) -> bool:
        if self._grants is None:
            return True
        own = self._grants.get(session.username, NOTHING)
        return own.may_publish(topic) if action == Action.PUBLISH else own.may_receive(topic)

    async def _broadcast_message(
        self,
        session: Session | None,
        topic: str | None,
        data: bytes | bytearray | None,
        force_qos: int | None = None,
    ) -> None:
        # Here too, because a last will comes by no other way.
        if session is not None and not self._may(session, str(topic), Action.PUBLISH):
            return
        message = _Broadcast(session=session, topic=topic, data=data)
        if force_qos is not None:
            message["qos"] = force_qos
        await self._broadcast_queue.put(message)

    async def retain_message(
        self,
        source_session: Session | None,
        topic_name: str | None,
        data: bytes | bytearray | None,
        qos: int | None = None,
    ) -> None:
        """Keep a message that its sender may send."""
        if source_session is None or self._may(source_session, str(topic_name), Action.PUBLISH):
            await super().retain_message(source_session, topic_name, data, qos)


class _Broadcast(dict[str, Any]):
    """A queued message whose text leaves the payload out: upstream formats each for a debug line, at any log level."""

    def __repr__(self) -> str:
        return f"<message on {self['topic']!r}>"


async def _close(writer: WriterAdapter) -> None:
    with suppress(OSError):
        await writer.close()
