"""A board's way into a fleet by a join token: it knows the authority before it says a word, and leaves with an account."""

from __future__ import annotations

import hmac
import secrets
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from toolkit.access.account_folder import Credential, write_account_folder
from toolkit.access.accounts import JOIN_PREFIX
from toolkit.access.probe import ANSWER_S, Probe
from toolkit.access.tokens import digest_of, normalise_secret
from toolkit.disk import PRIVATE, write_atomically
from toolkit.errors import (
    BrokerError,
    BrokerLoginError,
    BrokerTlsError,
    RemoteProtocolError,
    UsageError,
    require,
)
from toolkit.link.base import BrokerAddress
from toolkit.link.refusals import connect_error
from toolkit.wire.joining import (
    JoinAnswer,
    JoinAsk,
    JoinDone,
    JoinRefusal,
    derive_password,
    derive_proof,
    encode_joining,
    read_answer,
)
from toolkit.wire.topics import Topics, check_name

REACH_S = 10.0
ASK_AGAIN_S = 2.0
ASK_FOR_S = 30.0
CONFIRM_FOR_S = 15.0
_NONCE_BYTES = 16


def join_fleet(
    address: BrokerAddress,
    topics: Topics,
    *,
    device: str,
    token: str,
    secret: str,
    authority: str,
    folder: Path,
    join_port: int | None = None,
    ask_for_s: float = ASK_FOR_S,
) -> bool:
    """Turn a token into an account, and write the account's folder once a login by it has worked.

    Args:
        address: of the broker, ``mqtts``.
        topics: of the fleet.
        device: as the token names it.
        token: its id.
        secret: of the token, as it was typed.
        authority: SHA-256 of the certificate that must have signed the broker's, hexadecimal.
        folder: to write; new or empty.
        join_port: where the broker asks for certificates: its port for tokens. The board then makes its key itself.
        ask_for_s: how long an answer may take.
    Returns: whether the token is known to be gone; it lapses by itself otherwise.

    Raises:
        UsageError: a name, secret or folder that can't be.
        BrokerTlsError: the broker's certificate was signed by another authority, or is for another name.
        BrokerLoginError: the token is used up or has lapsed, or its secret is another.
        BrokerError: nobody answers, the answer is not the inviter's, or the new account does not work.
        MissingPartError: a key is to be made, and cryptography is not installed.
    """
    check_name(device, what="The device id")
    check_name(token, what="The token")
    _require_room(folder)
    bare = normalise_secret(secret)
    request, key = _make_request(device) if join_port is not None else (b"", b"")
    entry = address if join_port is None else replace(address, port=join_port)
    ca = fetch_authority(entry, authority)
    with tempfile.TemporaryDirectory(prefix="hsee-join-") as scratch:
        pinned = Path(scratch) / "ca.pem"
        pinned.write_bytes(ca)
        with _login(replace(entry, ca_file=pinned).with_login(JOIN_PREFIX + token, bare)) as probe:
            nonce = secrets.token_hex(_NONCE_BYTES)
            answer = _ask(probe, topics, token, JoinAsk(nonce, request), ask_for_s=ask_for_s)
            values = {"token": token, "device": device, "nonce": nonce, "salt": answer.salt}
            if answer.device != device or not hmac.compare_digest(answer.proof, derive_proof(bare, **values)):
                raise BrokerError(
                    f"The answer is not from whoever made the token, or is for {answer.device!r}.",
                    hint="Ask for a new token: hsee broker invite",
                )
            credential = (
                _certified(answer, device, key) if key else Credential(derive_password(bare, **values))
            )
            _try_account(_as_account(address, device, credential, Path(scratch)), topics)
            write_account_folder(
                folder,
                device,
                fleet=topics.fleet,
                address=str(address),
                credential=credential,
                authority=ca,
            )
            return _confirm(probe, topics, token, nonce)


def fetch_authority(address: BrokerAddress, sha256: str) -> bytes:
    """Fetch the authority that a broker shows beside its own certificate, if it is the expected one.

    Nothing is sent but a TLS greeting. Whether it has signed the broker's certificate is what the next connection
    checks, which trusts this authority alone.

    Args:
        address: of the broker.
        sha256: of the authority's certificate, hexadecimal.
    Returns: the authority's certificate, PEM.
    Raises: BrokerError: nobody answers in TLS. BrokerTlsError: another authority, or none, is shown.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=REACH_S) as connection,
            context.wrap_socket(connection, server_hostname=address.host) as wrapped,
        ):
            shown = [ssl.DER_cert_to_PEM_cert(der).encode() for der in _shown_chain(wrapped)]
    except (OSError, UnicodeError) as exc:
        raise connect_error(exc, address, timeout_s=REACH_S) from exc
    for certificate in shown:
        if hmac.compare_digest(digest_of(certificate), sha256.strip().lower().replace(":", "")):
            return certificate
    raise BrokerTlsError(
        f"{address} does not show the authority {sha256[:16]}...: this is not the broker that you were invited to.",
        hint="Nothing was sent. Compare the pasted line. A broker that hsee set up before it had join tokens needs:"
        " hsee broker renew, and a restart.",
        broker=str(address),
    )


def _shown_chain(wrapped: ssl.SSLSocket) -> list[bytes]:
    """Give all certificates that the other side showed, DER."""
    if sys.version_info >= (3, 13):
        return list(wrapped.get_unverified_chain())
    # The same call, which Python had for three versions before it was given a public name.
    import _ssl

    chain = wrapped._sslobj.get_unverified_chain() or []  # type: ignore[attr-defined]  # noqa: SLF001
    return [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in chain]


def _make_request(device: str) -> tuple[bytes, bytes]:
    require("cryptography", part="access", purpose="Making this board's key")
    from toolkit.access.authority import make_request

    return make_request(device)


def _certified(answer: JoinAnswer, device: str, key: bytes) -> Credential:
    from toolkit.access.authority import is_for

    certificate = ssl.DER_cert_to_PEM_cert(answer.certificate).encode() if answer.certificate else b""
    # PROTOCOL.md 17: "A board MUST NOT use a certificate for another device or another key."
    if not is_for(certificate, account=device, key=key):
        raise BrokerError(
            f"The answer holds no certificate of {device!r} for this board's key.",
            hint="Ask for a new token: hsee broker invite",
        )
    return Credential(certificate=certificate, key=key)


def _as_account(address: BrokerAddress, device: str, credential: Credential, scratch: Path) -> BrokerAddress:
    """Give the way in of an account whose folder is not written yet."""
    trusted = replace(address, ca_file=scratch / "ca.pem")
    if not credential.certificate:
        return trusted.with_login(device, credential.password)
    for name, content in (("cert.pem", credential.certificate), ("key.pem", credential.key)):
        write_atomically(scratch / name, content, mode=PRIVATE)
    return trusted.with_certificate(device, scratch / "cert.pem", scratch / "key.pem")


def _require_room(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} is there already and not empty.", hint="Choose another --folder, or move it away."
        )


def _login(address: BrokerAddress) -> Probe:
    try:
        return Probe(address)
    except BrokerLoginError as exc:
        raise BrokerLoginError(
            "The broker refused the token: it is used up, it has lapsed, or the secret is another.",
            hint="A token can be used once, within minutes. Ask for a new one: hsee broker invite",
            broker=str(address),
        ) from exc


def _ask(probe: Probe, topics: Topics, token: str, ask: JoinAsk, *, ask_for_s: float) -> JoinAnswer:
    found: list[JoinAnswer | JoinRefusal] = []

    def is_answered() -> bool:
        for message in probe.received:
            try:
                answer = read_answer(message.payload)
            except RemoteProtocolError:
                continue  # no message of joining
            if answer.nonce == ask.nonce:
                found.append(answer)
        return bool(found)

    deadline_s = time.monotonic() + ask_for_s
    while not found and time.monotonic() < deadline_s:
        # Again and again, subscription too: whatever was said on an earlier connection is lost.
        probe.subscribe(topics.join_answer(token))
        probe.publish(topics.join_request(token), encode_joining(ask))
        probe.wait_until(is_answered, min(ASK_AGAIN_S, max(0.0, deadline_s - time.monotonic())))
    if not found:
        raise BrokerError(
            f"Nobody answered the token within {ask_for_s:g} s.",
            hint="Does hsee broker invite still run? The token can be tried again until it lapses.",
        )
    if isinstance(found[0], JoinRefusal):
        raise BrokerError(
            f"The token was refused: {found[0].message}", hint="Ask for a new one: hsee broker invite"
        )
    return found[0]


def _try_account(address: BrokerAddress, topics: Topics) -> None:
    with Probe(address) as own:
        topic = topics.check(address.username)
        own.subscribe(topic)
        if not own.fence(topic):
            raise BrokerError(
                f"The new account {address.username!r} is let in, and what it sends to itself does not come back.",
                hint="On the broker's machine: hsee broker user list",
            )


def _confirm(probe: Probe, topics: Topics, token: str, nonce: str) -> bool:
    """Say that the token can go, until the broker refuses it."""
    is_gone: Callable[[], bool] = lambda: isinstance(probe.lost, BrokerLoginError)  # noqa: E731
    deadline_s = time.monotonic() + CONFIRM_FOR_S
    while not is_gone() and time.monotonic() < deadline_s:
        probe.publish(topics.join_request(token), encode_joining(JoinDone(nonce)))
        probe.wait_until(is_gone, ANSWER_S / 5)
    return is_gone()
