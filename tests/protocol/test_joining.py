"""Messages of joining: golden bytes, cut anywhere, hostile ones, and the derivations as PROTOCOL.md has them."""

import base64
import hashlib
import hmac
import re
from pathlib import Path

import msgspec
import pytest

from toolkit.errors import RemoteProtocolError
from toolkit.wire.joining import (
    JoinAnswer,
    JoinAsk,
    JoinDone,
    JoinRefusal,
    derive_password,
    derive_proof,
    encode_joining,
    read_answer,
    read_request,
)
from toolkit.wire.topics import Topics

NONCE, SALT = "00112233445566778899aabbccddeeff", "ff" * 16
SECRET = "abcdefghijklmnopqrstuvwxyz"  # noqa: S105 (golden)
VALUES = {"token": "6925f3a01a2b3c4d", "device": "dev1", "nonce": NONCE, "salt": SALT}
PROOF = "77" * 32
_NONCE = NONCE.encode()
GOLDEN = [
    (JoinAsk(NONCE), b'{"type":"ask","nonce":"' + _NONCE + b'"}', read_request),
    (
        JoinAsk(NONCE, b"\x30\x00\xff"),
        b'{"type":"ask","nonce":"' + _NONCE + b'","request":"MAD/"}',
        read_request,
    ),
    (JoinDone(NONCE), b'{"type":"done","nonce":"' + _NONCE + b'"}', read_request),
    (
        JoinAnswer(NONCE, "dev1", SALT, PROOF),
        b'{"type":"answer","nonce":"%b","device":"dev1","salt":"%b","proof":"%b"}'
        % (_NONCE, b"ff" * 16, b"77" * 32),
        read_answer,
    ),
    (
        JoinAnswer(NONCE, "dev1", SALT, PROOF, b"\x30\x01\xfe"),
        b'{"type":"answer","nonce":"%b","device":"dev1","salt":"%b","proof":"%b","certificate":"MAH+"}'
        % (_NONCE, b"ff" * 16, b"77" * 32),
        read_answer,
    ),
    (
        JoinRefusal(NONCE, "No."),
        b'{"type":"refusal","nonce":"' + _NONCE + b'","message":"No."}',
        read_answer,
    ),
]
ZEROS = b"0" * 32


@pytest.mark.parametrize(("message", "golden", "read"), GOLDEN)
def test_a_message_is_written_and_read_as_it_was(message, golden, read):
    assert encode_joining(message) == golden
    assert read(golden) == message
    assert read(golden[:-1] + b',"more":[1]}') == message


@pytest.mark.parametrize(("golden", "read"), [row[1:] for row in GOLDEN])
def test_a_message_cut_anywhere_is_refused(golden, read):
    for length in range(len(golden)):
        with pytest.raises(RemoteProtocolError):
            read(golden[:length])


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        b"null",
        b"\xff\xfe",
        b'{"type":"ask"}',
        b'{"type":"welcome","nonce":"' + ZEROS + b'"}',
        b'{"type":"ask","nonce":"00112233445566778899AABBCCDDEEFF"}',
        b'{"type":"ask","nonce":"' + ZEROS + b'\\n"}',
        b'{"type":"ask","nonce":5}',
        b'{"type":"answer","nonce":"%b","device":"a/b","salt":"%b","proof":"%b"}' % (ZEROS, ZEROS, 2 * ZEROS),
        b'{"type":"refusal","nonce":"%b","message":"%b"}' % (ZEROS, b"x" * 513),
        b'{"type":"ask","nonce":"' + ZEROS + b'"}' + b" " * 4096,
        b'{"type":"ask","nonce":"' + ZEROS + b'","request":"%%%"}',
        b'{"type":"ask","nonce":"' + ZEROS + b'","request":"' + b"AAAA" * 342 + b'"}',
        b'{"type":"ask","nonce":"' + ZEROS + b'","request":[1]}',
        b"[" * 1000,
    ],
    ids=lambda payload: payload[:40].decode(errors="replace"),
)
def test_a_hostile_message_is_refused(payload):
    for read in (read_request, read_answer):
        with pytest.raises(RemoteProtocolError):
            read(payload)


def test_neither_side_takes_its_own_kind_of_message():
    for message, _, read in GOLDEN:
        other = read_answer if read is read_request else read_request
        with pytest.raises(RemoteProtocolError):
            other(encode_joining(message))


def test_the_derivations_are_those_of_the_page():
    def by_hand(purpose: str) -> bytes:
        text = "\0".join(["hsee join v1", purpose, *VALUES.values()])
        return hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).digest()

    password = base64.urlsafe_b64encode(by_hand("password")[:24]).decode()
    assert derive_password(SECRET, **VALUES) == password == "UWSucrUTPdth7W-2q8Xct0ANCb4Hc4rs"
    assert derive_proof(SECRET, **VALUES) == by_hand("proof").hex()


@pytest.mark.parametrize("changed", VALUES)
def test_every_value_counts(changed):
    other = VALUES | {changed: "other"}
    assert derive_password(SECRET, **VALUES) != derive_password(SECRET, **other)
    assert derive_proof(SECRET, **VALUES) != derive_proof(SECRET, **other)


def test_every_key_stands_in_the_page():
    page = (Path(__file__).parents[2] / "toolkit/wire/PROTOCOL.md").read_text()
    section = page[page.index("## 17.") :]
    rows = re.findall(r"^\| (?:`(\w+)`)? *\|[^|]*\| `(\w+)` \|", section, flags=re.MULTILINE)
    written: dict[str, list[str]] = {}
    for name, key in rows:
        written.setdefault(name or list(written)[-1], []).append(key)
    assert written == {
        kind.__struct_config__.tag: [field.encode_name for field in msgspec.structs.fields(kind)]
        for kind in (JoinAsk, JoinAnswer, JoinRefusal, JoinDone)
    }


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "hsee/v1/home/join//req",
        "hsee/v1/home/join/a/ans",
        "hsee/v1/yard/join/a/req",
        "hsee/v1/home/join/a/req/b",
    ],
)
def test_a_topic_that_is_no_request_is_refused(topic):
    assert Topics("home").token_of("hsee/v1/home/join/a/req") == "a"
    with pytest.raises(RemoteProtocolError):
        Topics("home").token_of(topic)
