"""What an account may do at a broker: topic filters that it may publish to, and that it may be sent messages of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from toolkit.disk import PRIVATE, write_atomically
from toolkit.errors import BrokerError
from toolkit.link.base import matches


class Grants(msgspec.Struct, frozen=True):
    """Topic filters of an account; all else is denied.

    Attributes:
        publish: that it may publish to.
        receive: that it may subscribe to and be sent.
    """

    publish: tuple[str, ...]
    receive: tuple[str, ...]

    def may_publish(self, topic: str) -> bool:
        """Tell whether a topic is within what it may publish to."""
        return any(matches(topic_filter, topic) for topic_filter in self.publish)

    def may_receive(self, topic: str) -> bool:
        """Tell whether a topic is within what it may be sent."""
        return any(matches(topic_filter, topic) for topic_filter in self.receive)


NOTHING = Grants((), ())


def write_grants(path: Path, grants: Mapping[str, Grants]) -> None:
    """Write grants by account, readable by this user only.

    Raises: MachineError: it can't be written.
    """
    write_atomically(path, msgspec.json.encode(grants), mode=PRIVATE)


def read_grants(path: Path) -> dict[str, Grants]:
    """Read grants by account.

    Raises: BrokerError: the file can't be read, or holds something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Grants])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BrokerError(
            f"The grants in {path} can't be read: {exc}.", hint="The broker's owner writes them at its start."
        ) from exc
