"""Offloaded inference on the wire: what a question and its answer may be, and what is refused."""

import hashlib

import msgspec
import numpy as np
import pytest

from tests.protocol.samples import NONCE
from toolkit.errors import LocalProtocolError, RemoteProtocolError
from toolkit.wire import frames, questions
from toolkit.wire.limits import MAX_ASK_BYTES, MAX_ASK_SAMPLES
from toolkit.wire.messages import TensorSpec
from toolkit.wire.tensors import CODECS
from toolkit.wire.topics import Topics

H = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
LOGITS = np.asarray([[1, 2], [3, 4], [5, 6]], np.float32)
ORIGIN = bytes(range(32))


ADDRESS = questions.AskAddress(
    boot_nonce=NONCE, device="dev1", run="run1", cut="layer1", round=3, origin=ORIGIN
)


def asked(h=H, codec="float32", address=ADDRESS):
    return questions.encode_ask(address, h, codec, n=7, ttl_ms=200)


def changed(frame, **fields):
    header, body = frames.decode(frame)
    return bytes(frames.encode(msgspec.structs.replace(header, **fields), [body]))


@pytest.mark.parametrize("codec", CODECS)
def test_a_question_arrives_as_it_was_asked(codec):
    ask, body = questions.decode_ask(asked(codec=codec), device="dev1")
    assert (ask.boot_nonce, ask.n, ask.run, ask.cut, ask.round) == (NONCE, 7, "run1", "layer1", 3)
    h = questions.to_activations(ask, body, activation_shape=[2, 4])
    np.testing.assert_allclose(h, H, atol=0.03 if "int8" in codec else 2e-3)


def test_an_answer_names_its_question():
    ask, _ = questions.decode_ask(asked(), device="dev1")
    answer, body = questions.decode_answer(questions.encode_answer(ask, LOGITS, theta_round=9))
    assert (answer.boot_nonce, answer.n, answer.origin, answer.theta_round) == (NONCE, 7, ORIGIN, 9)
    np.testing.assert_array_equal(questions.to_logits(answer, body, n_samples=3, n_classes=2), LOGITS)


def test_what_fits_one_question_fits_one_message():
    shape = (64, 32, 32)
    n = questions.samples_a_question(shape, 10)
    assert n == 15
    for codec in CODECS:
        h = np.random.default_rng(1).normal(size=(n, *shape)).astype(np.float32)
        assert len(asked(h, codec)) <= MAX_ASK_BYTES
    assert questions.samples_a_question((3,), 10) == MAX_ASK_SAMPLES
    assert questions.samples_a_question((1024, 1025), 10) == 0
    with pytest.raises(LocalProtocolError, match="exceeds"):
        asked(np.zeros((2, 1024, 1024), np.float32))


def test_values_that_are_not_finite_are_never_asked():
    with pytest.raises(LocalProtocolError, match="finite"):
        asked(np.full((1, 2, 4), np.nan, np.float32))


HOSTILE_ASKS = {
    "another's": lambda: asked(address=msgspec.structs.replace(ADDRESS, device="dev2")),
    "another body": lambda: bytes(asked()[:-1]) + b"\x55",
    "a body cut short": lambda: bytes(asked()[:-4]),
    "more behind the body": lambda: bytes(asked()) + b"\0",
    "no ask": lambda: questions.encode_answer(
        questions.decode_ask(asked(), device="dev1")[0], LOGITS, theta_round=1
    ),
    "another tensor": lambda: changed(
        asked(), tensors=[TensorSpec(name="y", shape=[3, 2, 4], codec="float32", n_bytes=96)]
    ),
    "another length": lambda: changed(
        asked(), tensors=[TensorSpec(name="h", shape=[3, 2, 4], codec="float32", n_bytes=97)]
    ),
}


@pytest.mark.parametrize("name", HOSTILE_ASKS)
def test_a_hostile_question_is_refused(name):
    with pytest.raises(RemoteProtocolError):
        questions.decode_ask(HOSTILE_ASKS[name](), device="dev1")


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec(name="h", shape=[3, 4, 2], codec="float32", n_bytes=96),
        TensorSpec(name="h", shape=[24], codec="float32", n_bytes=96),
        TensorSpec(name="h", shape=[], codec="float32", n_bytes=96),
        TensorSpec(name="h", shape=[MAX_ASK_SAMPLES + 1, 2, 4], codec="float32", n_bytes=96),
        TensorSpec(name="h", shape=[3, 2, 4], codec="int64", n_bytes=96),
        TensorSpec(name="h", shape=[2, 2, 4], codec="float32", n_bytes=96),
    ],
)
def test_activations_that_are_not_the_cuts_are_refused(spec):
    ask, body = questions.decode_ask(asked(), device="dev1")
    with pytest.raises(RemoteProtocolError):
        questions.to_activations(msgspec.structs.replace(ask, tensors=[spec]), body, activation_shape=[2, 4])


@pytest.mark.parametrize("logits", [LOGITS[:2], LOGITS[:, :1], np.full((3, 2), np.inf, np.float32)])
def test_logits_that_do_not_answer_the_question_are_refused(logits):
    ask, _ = questions.decode_ask(asked(), device="dev1")
    finite = np.nan_to_num(logits, posinf=0.0)
    frame = bytearray(questions.encode_answer(ask, finite, theta_round=1))
    if not np.isfinite(logits).all():
        frame[-4:] = np.float32("inf").tobytes()
        _, body = frames.decode(frame)
        frame = bytearray(changed(frame, sha256=hashlib.sha256(body).digest()))
    answer, body = questions.decode_answer(frame)
    with pytest.raises(RemoteProtocolError):
        questions.to_logits(answer, body, n_samples=3, n_classes=2)


def test_an_answer_with_another_body_is_refused():
    ask, _ = questions.decode_ask(asked(), device="dev1")
    frame = questions.encode_answer(ask, LOGITS, theta_round=1)
    for bad in (frame[:-1] + b"\x01", frame[:-4], bytes(asked())):
        with pytest.raises(RemoteProtocolError):
            questions.decode_answer(bad)


def test_the_asker_is_read_from_the_topic():
    topics = Topics("home")
    assert topics.device_of(topics.ask("dev1"), leaf="ask") == "dev1"
    for topic in (topics.answer("dev1"), topics.ask("de/v1"), topics.up("run1", "dev1"), topics.ask("-x")):
        with pytest.raises(RemoteProtocolError):
            topics.device_of(topic, leaf="ask")
