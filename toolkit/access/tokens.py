"""Join tokens: a name that says when it lapses, a secret that a person can copy, the line to paste on a board."""

from __future__ import annotations

import base64
import hashlib
import secrets
import shlex
import ssl
from dataclasses import dataclass, field

from toolkit.access.accounts import JOIN_PREFIX, WINDOW_SUFFIX
from toolkit.errors import UsageError

_SECRET_BYTES = 16
_ALPHABET = frozenset("abcdefghijklmnopqrstuvwxyz234567")
_N_CHARACTERS = 26
_GROUP = 5
_EXPIRY_DIGITS = 8


@dataclass(frozen=True, slots=True)
class Token:
    """A board's ticket into a fleet.

    Attributes:
        id: its account at the broker is ``join-<id>``; begins with the second at which it lapses, in hexadecimal.
        device: whose account it becomes.
        secret: 128 random bits, normalised.
    """

    id: str
    device: str
    secret: str = field(repr=False)

    @property
    def account(self) -> str:
        """At the broker."""
        return JOIN_PREFIX + self.id

    @property
    def shown_secret(self) -> str:
        """The secret in groups, as a person copies it."""
        return "-".join(self.secret[i : i + _GROUP] for i in range(0, _N_CHARACTERS, _GROUP))


def draw_token(device: str, *, lapses_s: float) -> Token:
    """Draw a token.

    Args:
        device: whose account it becomes.
        lapses_s: when, in seconds since 1970.
    """
    secret = base64.b32encode(secrets.token_bytes(_SECRET_BYTES)).decode().rstrip("=").lower()
    return Token(_dated_id(lapses_s), device, secret)


def window_account(*, lapses_s: float) -> str:
    """Draw a name for the account of the process that answers tokens until ``lapses_s``, seconds since 1970."""
    return f"{JOIN_PREFIX}{_dated_id(lapses_s)}{WINDOW_SUFFIX}"


def has_lapsed(account: str, *, now_s: float) -> bool:
    """Tell whether an account was made for a join window that should have ended by now, seconds since 1970."""
    if not account.startswith(JOIN_PREFIX):
        return False
    date = account.removeprefix(JOIN_PREFIX)[:_EXPIRY_DIGITS]
    try:
        return int(date, 16) < now_s
    except ValueError:  # none of ours
        return False


def normalise_secret(text: str) -> str:
    """Read a secret as a person typed it: groups, spaces and capitals don't matter.

    Raises: UsageError: it can't be one; the message does not show it.
    """
    bare = text.strip().lower().replace("-", "").replace(" ", "")
    if len(bare) != _N_CHARACTERS or not _ALPHABET.issuperset(bare):
        raise UsageError(
            f"The token's secret has {_N_CHARACTERS} letters and digits from 2 to 7; this has {len(bare)} signs.",
            hint="Copy it from where hsee broker invite runs.",
        )
    return bare


def digest_of(certificate: bytes) -> str:
    """Give a certificate's SHA-256 in hexadecimal.

    Args:
        certificate: PEM.
    Raises: UsageError: it is none.
    """
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode("ascii").strip())).hexdigest()
    except (ValueError, UnicodeDecodeError) as exc:
        raise UsageError(
            f"This is no certificate in PEM: {exc}.", hint="Restore ca.pem from a copy."
        ) from exc


def paste_line(
    token: Token, *, address: str, fleet: str, authority: str, join_port: int | None = None
) -> str:
    """Write the line to paste on the board; it holds no secret.

    Args:
        token: for the board.
        address: of the broker, as boards reach it.
        fleet: to join.
        authority: SHA-256 of its certificate.
        join_port: where it lets tokens in, if accounts log in by certificates; else None.
    """
    words = ["hsee", "agent", "join", token.device, "--broker", address, "--fleet", fleet]
    words += ["--join-port", str(join_port)] if join_port is not None else []
    return shlex.join([*words, "--token", token.id, "--authority", authority])


def _dated_id(lapses_s: float) -> str:
    return f"{int(lapses_s):0{_EXPIRY_DIGITS}x}{secrets.token_hex(4)}"
