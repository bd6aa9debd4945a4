"""Delivers a bundle to boards: offers it until each has said what became of it, and sends the pieces they want."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from coordinator.beside.service import Publish, Service
from toolkit.errors import BundleError, RemoteProtocolError
from toolkit.wire import frames
from toolkit.wire.limits import MAX_BUNDLE_BYTES, PIECE_BYTES
from toolkit.wire.messages import Offer, Piece, Receipt, Want
from toolkit.wire.topics import Topics

OFFER_EVERY_S = 5.0


class BundleDelivery(Service):
    """One archive, for some boards.

    Args:
        archive: of the bundle; read as it is wanted.
        devices: whom it is for.
        topics: of the fleet.
        clock: monotonic seconds.
        say: takes each line that whoever watches should read.
    Raises: BundleError: the archive can't be read, or is too large to travel.
    """

    def __init__(
        self,
        archive: Path,
        devices: Sequence[str],
        *,
        topics: Topics,
        clock: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        try:
            self._file = archive.open("rb")
            digest = hashlib.file_digest(self._file, "sha256").digest()
            n_bytes = self._file.tell()
        except OSError as exc:
            raise BundleError(f"{archive} can't be read: {exc.strerror}.", hint="Give a .hsee file.") from exc
        if not 0 < n_bytes <= MAX_BUNDLE_BYTES:
            self._file.close()
            raise BundleError(f"{archive} has {n_bytes} bytes; 1 to {MAX_BUNDLE_BYTES} can travel.")
        self._offer = Offer(archive=digest, n_bytes=n_bytes)
        self._topics = topics
        self._clock = clock
        self._say = say
        self._next_offer: dict[str, float] = dict.fromkeys(devices, 0.0)
        self._wanted: deque[tuple[str, int]] = deque()
        self.receipts: dict[str, Receipt] = {}

    @property
    def filters(self) -> tuple[str, ...]:
        """What its boards want."""
        return tuple(self._topics.want(device) for device in self._next_offer)

    @property
    def waiting(self) -> list[str]:
        """Boards that have not said what became of it."""
        return [device for device in self._next_offer if device not in self.receipts]

    def take(self, topic: str, payload: bytes) -> None:
        """Take a board's want or receipt; see :meth:`coordinator.beside.service.Service.take`."""
        device = self._topics.device_of(topic, leaf="want")
        message, _ = frames.decode(payload)
        if not isinstance(message, Want | Receipt):
            raise RemoteProtocolError(f"A board does not want a {type(message).__name__}.")
        if message.archive != self._offer.archive:
            return
        if isinstance(message, Receipt):
            if device not in self.receipts:
                self.receipts[device] = message
                self._say(f"{device}: {message.outcome}: {message.message}")
            return
        self._next_offer[device] = self._clock() + OFFER_EVERY_S
        # The last want says all: what an earlier one asked for is dropped.
        self._wanted = deque(piece for piece in self._wanted if piece[0] != device)
        stop = min(self._offer.n_bytes, message.offset + message.n_pieces * PIECE_BYTES)
        self._wanted.extend((device, offset) for offset in range(message.offset, stop, PIECE_BYTES))

    def tick(self, publish: Publish) -> bool:
        """Offer where it is due, and send one piece; see :meth:`coordinator.beside.service.Service.tick`."""
        now = self._clock()
        for device in self.waiting:
            if now >= self._next_offer[device]:
                self._next_offer[device] = now + OFFER_EVERY_S
                publish(self._topics.offer(device), frames.encode(self._offer))
        if self._wanted:
            device, offset = self._wanted.popleft()
            self._file.seek(offset)
            piece = Piece(archive=self._offer.archive, offset=offset)
            publish(self._topics.offer(device), frames.encode(piece, [self._file.read(PIECE_BYTES)]))
        return bool(self._wanted)

    def close(self) -> None:
        """Let the archive go."""
        self._file.close()
