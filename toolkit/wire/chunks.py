"""Large payloads in broker-sized pieces, put together within bounds.

Chunk i of n carries the bytes [i * size, (i + 1) * size) of the payload, where size = ceil(total / n).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from toolkit.errors import RemoteProtocolError
from toolkit.wire import frames
from toolkit.wire.limits import CHUNK_OVERHEAD_BYTES, MAX_OPEN_PAYLOADS, MAX_PAYLOAD_BYTES
from toolkit.wire.messages import Chunk


def split(payload: frames.Buffer, *, payload_id: bytes, chunk_bytes: int) -> Iterator[bytearray]:
    """Cut a payload frame into chunk frames.

    Args:
        payload: a whole payload frame.
        payload_id: 16 random bytes, one for each rendering.
        chunk_bytes: most payload bytes in a chunk.
    """
    view = memoryview(payload)
    n_chunks = -(-len(view) // chunk_bytes)
    for index in range(n_chunks):
        header = Chunk(payload_id=payload_id, index=index, n_chunks=n_chunks, total_bytes=len(view))
        start = index * header.chunk_bytes
        yield frames.encode(header, [view[start : start + header.chunk_bytes]])


class Assembler:
    """Collects one device's chunks by payload id; memory held is what arrived, never what was announced.

    Args:
        max_payload_bytes: of the largest payload that the device may send; more than two of them are never held.

    Attributes:
        held_bytes: of all pieces, with what each takes beside its content.
    """

    def __init__(self, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._max_payload_bytes = max_payload_bytes
        self._open: OrderedDict[bytes, tuple[Chunk, dict[int, frames.Buffer]]] = OrderedDict()
        self.held_bytes = 0
        self.n_abandoned = 0

    def add(self, chunk: Chunk, body: memoryview) -> bytes | None:
        """Take one chunk.

        Returns: the whole payload once its last piece is here, else None.
        Raises: RemoteProtocolError: the chunk contradicts itself or earlier ones of its payload, or announces more
            than the device may send.
        """
        expected = min(chunk.chunk_bytes, chunk.total_bytes - chunk.index * chunk.chunk_bytes)
        # PROTOCOL.md 4: "A receiver MUST refuse a chunk whose length does not follow from its header."
        if len(body) != expected:
            raise RemoteProtocolError(
                f"Chunk {chunk.index} of {chunk.n_chunks} has {len(body)} bytes, not {expected}."
            )
        # PROTOCOL.md 4: "A receiver MUST refuse a chunk of a payload that is longer than any batch of the job."
        if chunk.total_bytes > self._max_payload_bytes:
            raise RemoteProtocolError(
                f"A payload of {chunk.total_bytes} bytes; no batch of this job takes more than {self._max_payload_bytes}."
            )
        first, pieces = self._open.setdefault(chunk.payload_id, (chunk, {}))
        if (first.n_chunks, first.total_bytes) != (chunk.n_chunks, chunk.total_bytes):
            raise RemoteProtocolError("Two chunks of one payload announce different sizes.")
        if chunk.index not in pieces:
            pieces[chunk.index] = _kept(body)
            self.held_bytes += _cost(body)
        if len(pieces) == chunk.n_chunks:
            del self._open[chunk.payload_id]
            self.held_bytes -= sum(map(_cost, pieces.values()))
            return b"".join(pieces[index] for index in range(chunk.n_chunks))
        # PROTOCOL.md 4: "At most 8 payloads of one device are open at a time, and no more bytes than two batches take"
        while len(self._open) > MAX_OPEN_PAYLOADS or self.held_bytes > 2 * self._max_payload_bytes:
            _, (_, abandoned) = self._open.popitem(last=False)
            self.held_bytes -= sum(map(_cost, abandoned.values()))
            self.n_abandoned += 1
        return None


def _cost(piece: frames.Buffer) -> int:
    return len(piece) + CHUNK_OVERHEAD_BYTES


def _kept(body: memoryview) -> frames.Buffer:
    """The piece where it lies, if it is all but the whole of a message that nobody changes; else a copy of it."""
    message = body.obj
    if isinstance(message, bytes) and len(message) <= len(body) + CHUNK_OVERHEAD_BYTES:
        return body
    return bytes(body)
