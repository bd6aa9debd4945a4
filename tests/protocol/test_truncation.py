"""Every frame cut at every index, and with a byte behind it."""

import pytest

from tests.protocol.samples import ADDRESS, BATCH, CHUNK, MESSAGES
from toolkit.errors import RemoteProtocolError
from toolkit.wire import chunks, frames, payloads, tensors
from toolkit.wire.words import BridgeWord, DeviceWord, encode_word, read_bridge_word, read_device_word


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_frame_cut_anywhere_is_refused(message):
    frame = frames.encode(message)
    for end in range(len(frame)):
        with pytest.raises(RemoteProtocolError):
            frames.decode(frame[:end])


@pytest.mark.parametrize("codec", tensors.CODECS)
def test_a_payload_cut_or_lengthened_anywhere_is_refused(codec):
    """A frame does not know how long its body is; the payload's digest does."""
    frame = payloads.encode(ADDRESS, BATCH, codec)
    for wrong in (*(frame[:end] for end in range(len(frame))), frame + b"\0"):
        with pytest.raises(RemoteProtocolError):
            payloads.decode(wrong, device=ADDRESS.device)


def test_a_chunk_cut_or_lengthened_anywhere_is_refused():
    frame = frames.encode(CHUNK, [b"xy"])
    assert chunks.Assembler().add(*frames.decode(frame)) is None
    for wrong in (*(frame[:end] for end in range(len(frame))), frame + b"\0"):
        with pytest.raises(RemoteProtocolError):
            chunks.Assembler().add(*frames.decode(wrong))


@pytest.mark.parametrize(
    ("word", "read"),
    [
        (BridgeWord("online", "run1", 2), read_bridge_word),
        (DeviceWord("online", "0" * 32), read_device_word),
    ],
)
def test_a_word_cut_anywhere_is_refused(word, read):
    payload = encode_word(word)
    for end in range(len(payload)):
        with pytest.raises(RemoteProtocolError):
            read(payload[:end])


def test_every_flipped_bit_of_a_payloads_body_is_found():
    frame = payloads.encode(ADDRESS, BATCH, "int8")
    n_body = len(frames.decode(frame)[1])
    for index in range(len(frame) - n_body, len(frame)):
        for bit in range(8):
            flipped = bytearray(frame)
            flipped[index] ^= 1 << bit
            with pytest.raises(RemoteProtocolError, match="digest"):
                payloads.decode(flipped, device=ADDRESS.device)
