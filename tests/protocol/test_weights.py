"""Weights made to hurt: every row that does not fit what the job says is refused, before any of it is taken."""

import msgspec
import numpy as np
import pytest

from tests.protocol.samples import FLAT, LOGITS, LOWERED_ADDRESS, ROWS, WEIGHTS_ADDRESS
from toolkit.errors import LocalProtocolError, RemoteProtocolError
from toolkit.nn.layout import SegmentLayout
from toolkit.wire import payloads, weights
from toolkit.wire.weights import FlatWeights


def lowered(**rows):
    """What is handed down with other rows, as the device reads it."""
    given = {"values": FLAT.values, "counters": FLAT.counters, "momentum": FLAT.momentum} | rows
    frame = weights.encode_lowered(LOWERED_ADDRESS, FlatWeights(**given), "float32", LOGITS)
    return weights.decode_lowered(frame, device="dev1")


BENT = {
    "a value too many": {"values": np.zeros(4, np.float32)},
    "a value too few": {"values": np.zeros(2, np.float32)},
    "values in a matrix": {"values": np.zeros((3, 1), np.float32)},
    "no momentum": {"momentum": np.zeros(0, np.float32)},
    "a momentum too many": {"momentum": np.zeros(3, np.float32)},
    "no counters": {"counters": np.zeros(0, np.int64)},
    "a counter below zero": {"counters": np.array([-1])},
}


@pytest.mark.parametrize("rows", BENT.values(), ids=BENT)
def test_rows_that_do_not_fit_are_refused(rows):
    with pytest.raises(RemoteProtocolError):
        weights.to_weights(*lowered(**rows), ROWS)


def renamed(index: int, **changes):
    header, body = lowered()
    specs = list(header.tensors)
    specs[index] = msgspec.structs.replace(specs[index], **changes)
    return msgspec.structs.replace(header, tensors=specs), body


@pytest.mark.parametrize(
    ("index", "changes"),
    [
        (0, {"name": "weights"}),
        (0, {"name": "momentum"}),
        (0, {"codec": "int8"}),
        (0, {"n_bytes": 8}),
        (0, {"shape": [2**31, 2]}),
        (1, {"codec": "float32", "shape": [2]}),
        (2, {"codec": "int64", "shape": [1]}),
    ],
)
def test_headers_that_lie_are_refused(index, changes):
    with pytest.raises(RemoteProtocolError):
        weights.to_weights(*renamed(index, **changes), ROWS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_neither_sent_nor_taken(value):
    with pytest.raises(LocalProtocolError, match="finite"):
        lowered(values=np.array([0, value, 0], np.float32))
    header, body = lowered()
    bent = bytearray(body)
    bent[:4] = np.float32(value).tobytes()
    with pytest.raises(RemoteProtocolError, match="not finite"):
        weights.to_weights(header, memoryview(bent), ROWS)


def test_every_flipped_byte_and_every_cut_is_found():
    frame = weights.encode_lowered(LOWERED_ADDRESS, FLAT, "float32", LOGITS)
    n_body = len(weights.decode_lowered(frame, device="dev1")[1])
    for index in range(len(frame) - n_body, len(frame)):
        flipped = bytearray(frame)
        flipped[index] ^= 1
        with pytest.raises(RemoteProtocolError, match="digest"):
            weights.decode_lowered(flipped, device="dev1")
    for end in range(len(frame)):
        with pytest.raises(RemoteProtocolError):
            weights.decode_lowered(frame[:end], device="dev1")


def test_what_is_for_another_is_refused():
    down = weights.encode_lowered(LOWERED_ADDRESS, FLAT, "float32")
    with pytest.raises(RemoteProtocolError, match="'dev1', not 'dev2'"):
        weights.decode_lowered(down, device="dev2")
    up = weights.encode_weights(WEIGHTS_ADDRESS, FLAT, "float32")
    with pytest.raises(RemoteProtocolError, match="in the name of"):
        payloads.decode_up(up, device="dev2")
    with pytest.raises(RemoteProtocolError, match="hands down no Weights"):
        weights.decode_lowered(up, device="dev1")
    with pytest.raises(RemoteProtocolError, match="not a batch"):
        payloads.decode(up, device="dev1")


@pytest.mark.parametrize("logits", [np.zeros((1, 3), np.float32), np.zeros(2, np.float32)])
def test_logits_of_other_classes_are_refused(logits):
    frame = weights.encode_lowered(LOWERED_ADDRESS, None, "float32", logits)
    with pytest.raises(RemoteProtocolError, match="classes"):
        weights.to_logits(*weights.decode_lowered(frame, device="dev1"), n_classes=2)


def test_a_running_variance_below_zero_is_refused():
    layout = SegmentLayout((("segment.0.running_var", (3,)),), (), ())
    with pytest.raises(RemoteProtocolError, match=r"running variance.*segment\.0\.running_var"):
        layout.named(
            FlatWeights(np.array([1, -1, 1], np.float32), np.empty(0, np.int64), np.empty(0, np.float32))
        )


@pytest.mark.parametrize("codec", ["float32", "float16", "float32+zstd", "float16+zstd"])
def test_no_payload_is_longer_than_its_rows_allow(codec):
    rng = np.random.default_rng(0)
    for n in (3, 1000, 100_000):
        flat = FlatWeights(rng.normal(size=n).astype(np.float32), FLAT.counters, FLAT.momentum)
        frame = weights.encode_lowered(LOWERED_ADDRESS, flat, codec, LOGITS)
        assert len(frame) <= weights.RowLengths(n, 1, 2).payload_bytes(LOGITS.size)
