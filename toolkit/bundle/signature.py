"""Who made a bundle, for whom, and which of two is newer: ``manifest.sig``, two lines beside the manifest.

The first line is a statement in JSON, the second an Ed25519 signature of exactly these bytes, in base64. The statement
names the manifest by its SHA-256, and the manifest names every other file, so that the one signature covers all.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from toolkit.bundle.ed25519 import KEY_BYTES, verify
from toolkit.bundle.folder import MAX_SIGNATURE_BYTES, SIGNATURE_FILE, Bundle
from toolkit.bundle.manifest import Digest, Text
from toolkit.errors import BundleSignatureError, UsageError
from toolkit.user_files import user_config_file

SCHEMA = 1
MAX_KEY_FILE_BYTES = 4096
KEY_KIND = "hsee-ed25519"
KEY_FILE = "operator.pub"
KEY_VARIABLE = "HSEE_OPERATOR_KEY"
ANY_DEVICE = "*"
_CONTEXT = b"hsee bundle signature 1\n"


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator says of a bundle.

    Attributes:
        manifest: SHA-256 of its manifest.
        devices: whom it is for; ``*`` is anybody.
        release: grows with every bundle that shall replace an earlier one.
        signed: UTC, ISO 8601.
    """

    schema: Annotated[int, Meta(ge=1)] = SCHEMA
    manifest: Digest
    devices: Annotated[list[Text], Meta(min_length=1, max_length=4096)]
    release: Annotated[int, Meta(ge=1, le=2**53)]
    signed: Text

    def is_for(self, device: str) -> bool:
        """Whether a device may take it."""
        return ANY_DEVICE in self.devices or device in self.devices

    def age_days(self, now: datetime) -> float:
        """Days since it was signed, negative where that lies ahead of this clock."""
        return (now - datetime.fromisoformat(self.signed)).total_seconds() / 86_400

    def __post_init__(self) -> None:
        """Check the time.

        Raises: ValueError: it is none, or has no zone.
        """
        if datetime.fromisoformat(self.signed).tzinfo is None:
            msg = "signed must name its time zone"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An operator's public key.

    Attributes:
        content: 32 bytes.
        comment: whose it is, for people.
        origin: where it was read.
    """

    content: bytes
    comment: str = ""
    origin: str = ""

    @property
    def name(self) -> str:
        """Its fingerprint, and the comment."""
        return f"{hashlib.sha256(self.content).hexdigest()[:16]} {self.comment}".rstrip()

    def line(self) -> str:
        """The key file's one line."""
        return f"{KEY_KIND} {base64.b64encode(self.content).decode()} {self.comment}".rstrip() + "\n"


def signed_bytes(statement: bytes) -> bytes:
    """What is signed of a statement's line: a context first, so that no other signature can pass for one of these."""
    return _CONTEXT + statement


def encode_signature(statement: bytes, signature: bytes) -> bytes:
    """Write the file's content."""
    return statement + b"\n" + base64.b64encode(signature) + b"\n"


def check_signature(bundle: Bundle, key: PublicKey) -> Statement:
    """Check that a bundle is what the key's owner signed.

    Raises: BundleSignatureError: it is not signed, by somebody else, or the signature is of another bundle.
    """
    where = bundle.folder
    content = bundle.fetch_signature(MAX_SIGNATURE_BYTES)
    if content is None:
        raise BundleSignatureError(
            f"{where} is not signed, and this board takes only what {key.name} signed ({key.origin}).",
            hint="Sign it where the operator's key is, with hsee bundle sign.",
            key=key.name,
        )
    line, _, rest = content.partition(b"\n")
    try:
        signature = base64.b64decode(rest.strip(), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BundleSignatureError(f"{where / SIGNATURE_FILE} holds no signature: {exc}.") from exc
    if not verify(key.content, signed_bytes(line), signature):
        raise BundleSignatureError(
            f"{where} was not signed by {key.name}, whom this board trusts ({key.origin}).",
            hint="Don't use it unless you know where it comes from. Another operator's key is pinned with hsee bundle trust.",
            key=key.name,
        )
    try:
        statement = msgspec.json.decode(line, type=Statement)
    except (msgspec.DecodeError, ValueError) as exc:
        raise BundleSignatureError(f"{where / SIGNATURE_FILE} holds no statement: {exc}.") from exc
    if statement.schema > SCHEMA:
        raise BundleSignatureError(
            f"{where / SIGNATURE_FILE} has schema {statement.schema}; this hsee reads up to schema {SCHEMA}.",
            hint="Upgrade hsee on this machine.",
        )
    if statement.manifest != bundle.digest:
        raise BundleSignatureError(
            f"The signature in {where} is of another bundle: of {statement.manifest[:12]}..., not {bundle.digest[:12]}...",
            hint="Files of two bundles were mixed, or the manifest was changed: sign or copy it again.",
        )
    return statement


def read_public_key(path: Path) -> PublicKey:
    """Read a key file: one line, the kind, the key in base64, a comment.

    Raises: UsageError: it is none.
    """
    try:
        with path.open("rb") as file:
            words = file.read(MAX_KEY_FILE_BYTES).decode().split(maxsplit=2)
        content = base64.b64decode(words[1], validate=True) if words[:1] == [KEY_KIND] else b""
    except OSError as exc:
        raise UsageError(f"The key file {path} can't be read: {exc.strerror}.", path=str(path)) from exc
    except (UnicodeDecodeError, binascii.Error, ValueError, IndexError):
        content = b""
    if len(content) != KEY_BYTES:
        raise UsageError(
            f"{path} is no public key of an operator.",
            hint="Give the .pub file that hsee bundle key wrote.",
            path=str(path),
        )
    return PublicKey(content, words[2].strip() if len(words) > 2 else "", str(path))  # noqa: PLR2004 - kind, key, comment


def pinned_key(env: Mapping[str, str] | None = None) -> PublicKey | None:
    """The key that this board trusts: of HSEE_OPERATOR_KEY, the user's settings folder, /etc/hsee, or this folder.

    Returns: None where none was pinned; then nothing is checked.
    Raises: UsageError: the file is no key.
    """
    environment = os.environ if env is None else env
    named = environment.get(KEY_VARIABLE)
    if named:
        return read_public_key(Path(named))
    for folder in (own_key_folder(environment), Path("/etc/hsee"), Path()):
        if (folder / KEY_FILE).is_file():
            return read_public_key(folder / KEY_FILE)
    return None


def own_key_folder(env: Mapping[str, str]) -> Path:
    """Where a user's own pinned key stands, beside the user's settings."""
    return user_config_file(env).parent


def new_release(now: datetime) -> int:
    """A release number that grows by itself: the time of signing as YYYYMMDDHHMMSS, UTC."""
    return int(now.astimezone(UTC).strftime("%Y%m%d%H%M%S"))
