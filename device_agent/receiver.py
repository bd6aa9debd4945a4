"""Receives bundles on a board: fetches what is offered piece by piece, then has it installed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from toolkit.errors import HseeError, MachineError, RemoteProtocolError, writing
from toolkit.link.base import CONNECT_S, Connected, Disconnected, Link, LinkEvent, Received
from toolkit.link.contact import Contact
from toolkit.runtime.installing import MAX_INSTALL_BYTES, Installed
from toolkit.wire import frames
from toolkit.wire.limits import MAX_TEXT_CHARACTERS, PIECE_BYTES
from toolkit.wire.messages import Offer, Outcome, Piece, Receipt, Want
from toolkit.wire.topics import Topics

AHEAD_PIECES = 8
"""Pieces that may be under way at a time."""
AGAIN_S = 5.0


class _Fetching:
    """An archive on its way: what is here lies in a file that is named for it, and outlives the process."""

    def __init__(self, folder: Path, offer: Offer) -> None:
        self.offer = offer
        self.path = folder / f"receiving-{offer.archive.hex()[:32]}.part"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for other in folder.glob("receiving-*.part"):
                if other != self.path:
                    other.unlink()
            free = shutil.disk_usage(folder).free
            self.n_bytes = self.path.stat().st_size if self.path.exists() else 0
        if self.n_bytes > offer.n_bytes:
            self.path.unlink()
            self.n_bytes = 0
        if free < offer.n_bytes - self.n_bytes:
            raise MachineError(
                f"{folder} has {free} bytes free; the offered bundle takes {offer.n_bytes - self.n_bytes} more."
            )
        self.wanted_to = self.n_bytes
        self.heard = 0.0

    @property
    def is_whole(self) -> bool:
        return self.n_bytes == self.offer.n_bytes

    def take(self, piece: Piece, body: memoryview) -> bool:
        """Append a piece; whether it was the next one."""
        left = self.offer.n_bytes - self.n_bytes
        if piece.offset != self.n_bytes or len(body) != min(left, PIECE_BYTES):
            return False
        with writing(self.path), self.path.open("ab") as file:
            file.write(body)
        self.n_bytes += len(body)
        return True

    def is_what_was_offered(self) -> bool:
        digest = hashlib.sha256()
        with writing(self.path), self.path.open("rb") as file:
            while block := file.read(PIECE_BYTES):
                digest.update(block)
            os.fsync(file.fileno())
        return digest.digest() == self.offer.archive


class Receiver:
    """A board's process that waits for bundles.

    Args:
        link: not started yet; its account is this board's for inference.
        topics: of the fleet.
        device: this board's id.
        folder: for what is on its way.
        install: brings an archive to the board's place.
        clock: monotonic seconds.
        say: takes each line that whoever watches should read.
        max_bytes: the largest archive that is fetched.
        connect_s: how long the first connection may take; later ones are tried for ever.
    """

    def __init__(
        self,
        link: Link,
        *,
        topics: Topics,
        device: str,
        folder: Path,
        install: Callable[[Path], Installed],
        clock: Callable[[], float],
        say: Callable[[str], None],
        max_bytes: int = MAX_INSTALL_BYTES,
        connect_s: float = CONNECT_S,
    ) -> None:
        self._link = link
        self._topics = topics
        self._device = device
        self._folder = folder
        self._install = install
        self._clock = clock
        self._say = say
        self._max_bytes = max_bytes
        self._contact = Contact(clock, who="this board", connect_s=connect_s)
        self._fetching: _Fetching | None = None
        self._receipt: Receipt | None = None
        self.n_refused_messages = 0
        self.n_done = 0

    def start(self) -> None:
        """Begin to connect."""
        self._link.start()

    def poll(self, timeout_s: float) -> None:
        """Take what the link brought, waiting at most ``timeout_s`` for it.

        Raises: BrokerError: there was no first connection.
        """
        for event in self._link.poll(timeout_s):
            self._on_link(event)
        fetching = self._fetching
        if fetching is not None and self._clock() - fetching.heard >= AGAIN_S:
            self._want(fetching)

    def close(self) -> None:
        """Leave the broker; what is half here is kept."""
        self._link.close()

    def _on_link(self, event: LinkEvent) -> None:
        match event:
            case Connected():
                self._contact.made()
                self._link.subscribe(self._topics.offer(self._device))
                self._say("connected to the broker; waiting for bundles")
            case Disconnected(error=error):
                line = self._contact.lost(error)
                if line:
                    self._say(line)
            case Received(topic=topic, payload=payload):
                try:
                    self._on_message(payload)
                except RemoteProtocolError as exc:
                    self.n_refused_messages += 1
                    self._say(f"refused a message on {topic}: {exc.message}")

    def _on_message(self, payload: bytes) -> None:
        message, body = frames.decode(payload)
        match message:
            case Offer():
                self._on_offer(message)
            case Piece():
                self._on_piece(message, body)
            case _:
                raise RemoteProtocolError(f"An operator does not send a {type(message).__name__}.")

    def _on_offer(self, offer: Offer) -> None:
        if self._receipt is not None and self._receipt.archive == offer.archive:
            self._tell(self._receipt)
            return
        if self._fetching is not None and self._fetching.offer == offer:
            return
        if offer.n_bytes > self._max_bytes:
            self._done(offer, "refused", f"{offer.n_bytes} bytes; at most {self._max_bytes} are fetched.")
            return
        try:
            self._fetching = _Fetching(self._folder, offer)
        except MachineError as exc:
            self._done(offer, "refused", exc.message)
            return
        self._say(f"a bundle of {offer.n_bytes} bytes is offered; {self._fetching.n_bytes} of them are here")
        self._go_on(self._fetching)

    def _on_piece(self, piece: Piece, body: memoryview) -> None:
        fetching = self._fetching
        # PROTOCOL.md 20: "A board MUST ignore a piece that is not the next one of what it fetches"
        if fetching is None or piece.archive != fetching.offer.archive:
            return
        try:
            taken = fetching.take(piece, body)
        except MachineError as exc:
            self._done(fetching.offer, "refused", exc.message)
            return
        if taken:
            fetching.heard = self._clock()
            self._go_on(fetching)

    def _go_on(self, fetching: _Fetching) -> None:
        if not fetching.is_whole:
            if fetching.n_bytes >= fetching.wanted_to:
                self._want(fetching)
            return
        # PROTOCOL.md 20: "An archive whose SHA-256 is not that of its offer MUST be dropped."
        if not fetching.is_what_was_offered():
            self._done(fetching.offer, "refused", "What arrived is not what was offered.")
            return
        self._say(f"all {fetching.n_bytes} bytes are here; checking and testing them")
        try:
            done = self._install(fetching.path)
        except HseeError as exc:
            self._done(fetching.offer, "refused", f"{exc.message} ({exc.code})")
        else:
            self._done(fetching.offer, "unchanged" if done.unchanged else "installed", done.found)

    def _want(self, fetching: _Fetching) -> None:
        fetching.heard = self._clock()
        fetching.wanted_to = min(fetching.offer.n_bytes, fetching.n_bytes + AHEAD_PIECES * PIECE_BYTES)
        want = Want(archive=fetching.offer.archive, offset=fetching.n_bytes, n_pieces=AHEAD_PIECES)
        self._link.publish(self._topics.want(self._device), frames.encode(want))

    def _done(self, offer: Offer, outcome: Outcome, message: str) -> None:
        if self._fetching is not None:
            self._fetching.path.unlink(missing_ok=True)
            self._fetching = None
        self._receipt = Receipt(archive=offer.archive, outcome=outcome, message=message[:MAX_TEXT_CHARACTERS])
        self.n_done += 1
        self._say(f"{outcome}: {message}")
        self._tell(self._receipt)

    def _tell(self, receipt: Receipt) -> None:
        self._link.publish(self._topics.want(self._device), frames.encode(receipt))
