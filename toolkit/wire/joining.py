"""What a board and an open join window say to each other: small JSON, by which a token becomes an account.

No credential travels. Both sides derive the account's password from the token's secret and two random numbers; where the
broker asks for certificates, the board makes its key itself and is given a certificate of it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Annotated

import msgspec
from msgspec import Meta

from toolkit.errors import RemoteProtocolError
from toolkit.wire.job import Name
from toolkit.wire.limits import MAX_JOINING_BYTES

JoinNonce = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Der = Annotated[bytes, Meta(max_length=1024)]
Proof = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_PASSWORD_BYTES = 24


class JoinAsk(msgspec.Struct, frozen=True, tag="ask", omit_defaults=True):
    """On ``join/<id>/req``: a board that holds the token's secret wants its account.

    Attributes:
        nonce: of this attempt.
        request: for a certificate of the board's own key, PKCS #10; empty where a password is wanted.
    """

    nonce: JoinNonce
    request: Der = b""


class JoinDone(msgspec.Struct, frozen=True, tag="done"):
    """On ``join/<id>/req``: the account works and is written down; the token can go."""

    nonce: JoinNonce


class JoinAnswer(msgspec.Struct, frozen=True, tag="answer", omit_defaults=True):
    """On ``join/<id>/ans``: there is an account now; its password can be derived, or its certificate is here.

    Attributes:
        nonce: of the ask.
        device: whose account it is.
        salt: the window's random number.
        proof: that the window knows the secret.
        certificate: X.509, for the key of the request; empty where the account has a password.
    """

    nonce: JoinNonce
    device: Name
    salt: JoinNonce
    proof: Proof
    certificate: Der = b""


class JoinRefusal(msgspec.Struct, frozen=True, tag="refusal"):
    """On ``join/<id>/ans``: there will be no account for this board by this token."""

    nonce: JoinNonce
    message: Annotated[str, Meta(max_length=512)]


def derive_password(secret: str, *, token: str, device: str, nonce: str, salt: str) -> str:
    """Derive an account's password.

    Args:
        secret: of the token, normalised.
        token: its id.
        device: whose account it becomes.
        nonce: the board's random number.
        salt: the window's.
    Returns: as many characters as any generated password.
    """
    digest = _derive(b"password", secret, token, device, nonce, salt)
    return base64.urlsafe_b64encode(digest[:_PASSWORD_BYTES]).decode()


def derive_proof(secret: str, *, token: str, device: str, nonce: str, salt: str) -> str:
    """Derive what shows a board that the answer comes from whoever made its token; arguments as above."""
    return _derive(b"proof", secret, token, device, nonce, salt).hex()


def encode_joining(message: JoinAsk | JoinDone | JoinAnswer | JoinRefusal) -> bytes:
    """Write a message of joining as JSON."""
    return msgspec.json.encode(message)


def read_request(payload: bytes) -> JoinAsk | JoinDone:
    """Read what a board said on ``req``.

    Raises: RemoteProtocolError: it is no such message.
    """
    _check_length(payload)
    try:
        return msgspec.json.decode(payload, type=JoinAsk | JoinDone)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"A request to join is none: {exc}") from exc


def read_answer(payload: bytes) -> JoinAnswer | JoinRefusal:
    """Read what a window said on ``ans``.

    Raises: RemoteProtocolError: it is no such message.
    """
    _check_length(payload)
    try:
        return msgspec.json.decode(payload, type=JoinAnswer | JoinRefusal)
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"An answer about joining is none: {exc}") from exc


def _check_length(payload: bytes) -> None:
    # PROTOCOL.md 17: "A receiver MUST refuse one that is longer than 4 KiB."
    if len(payload) > MAX_JOINING_BYTES:
        raise RemoteProtocolError(
            f"A message about joining of {len(payload)} bytes exceeds {MAX_JOINING_BYTES}."
        )


def _derive(purpose: bytes, secret: str, *values: str) -> bytes:
    # No value holds a zero byte, so that the parts can't be taken for others.
    text = b"\0".join([b"hsee join v1", purpose, *(value.encode() for value in values)])
    return hmac.new(secret.encode(), text, hashlib.sha256).digest()
