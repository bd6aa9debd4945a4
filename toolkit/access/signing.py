"""The operator's key: made, kept, and used to sign bundles. It never leaves the machine it was made on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from toolkit.bundle.archive import write_archive
from toolkit.bundle.folder import SIGNATURE_FILE, Bundle
from toolkit.bundle.signature import (
    PublicKey,
    Statement,
    encode_signature,
    new_release,
    read_public_key,
    signed_bytes,
)
from toolkit.disk import PRIVATE, write_atomically
from toolkit.errors import UsageError, require, writing

require("cryptography", part="access", purpose="Signing bundles")

from cryptography.exceptions import UnsupportedAlgorithm  # noqa: E402 (only after the friendly refusal above)
from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402

OPEN_TO_OTHERS = 0o077
MAX_KEY_BYTES = 16 * 1024


class OperatorKey:
    """A private key that signs bundles.

    Args:
        key: of ``cryptography``.
        comment: whose it is, for people.
    """

    def __init__(self, key: Ed25519PrivateKey, comment: str) -> None:
        self._key = key
        self._comment = comment

    @classmethod
    def create(cls, path: Path, *, comment: str) -> OperatorKey:
        """Make a key and write it, readable by its owner only, and its public half beside it with the ending .pub.

        Raises: UsageError: one of these is there already. MachineError: they can't be written.
        """
        for file in (path, public_file(path)):
            if file.exists():
                raise UsageError(
                    f"{file} exists already.",
                    hint="A key is never replaced by a command: move it away first.",
                )
        made = cls(Ed25519PrivateKey.generate(), comment)
        content = made._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content, mode=PRIVATE)
        write_atomically(public_file(path), made.public.line().encode())
        return made

    @classmethod
    def read(cls, path: Path) -> OperatorKey:
        """Read a key that :meth:`create` wrote.

        Raises: UsageError: it is none, or others may read it.
        """
        try:
            with path.open("rb") as file:
                is_open = os.fstat(file.fileno()).st_mode & OPEN_TO_OTHERS
                content = file.read(MAX_KEY_BYTES)
        except OSError as exc:
            raise UsageError(f"The key {path} can't be read: {exc.strerror}.", path=str(path)) from exc
        if is_open:
            raise UsageError(f"Others than its owner may read {path}.", hint=f"chmod 600 {path}")
        try:
            key = serialization.load_pem_private_key(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise _no_key(path) from exc
        if not isinstance(key, Ed25519PrivateKey):
            raise _no_key(path)
        public = public_file(path)
        return cls(key, read_public_key(public).comment if public.exists() else path.stem)

    @property
    def public(self) -> PublicKey:
        """Its public half."""
        content = self._key.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        return PublicKey(content, self._comment)

    def sign(
        self, bundle: Bundle, *, now: datetime, devices: Sequence[str] = (), release: int | None = None
    ) -> Statement:
        """Sign a bundle where it lies, in place of an earlier signature; an archive is written anew.

        Args:
            bundle: opened, so checked.
            now: the time, with its zone.
            devices: whom it is for; by default the device that trained it. ``*`` is anybody.
            release: by default the time.
        Raises: MachineError: the disk refuses it.
        """
        statement = Statement(
            manifest=bundle.digest,
            devices=list(devices) or [bundle.manifest.provenance.device],
            release=release or new_release(now),
            signed=now.isoformat(timespec="seconds"),
        )
        line = msgspec.json.encode(statement)
        content = encode_signature(line, self._key.sign(signed_bytes(line)))
        if bundle.folder.is_dir():
            write_atomically(bundle.folder / SIGNATURE_FILE, content)
        else:
            write_archive(bundle, bundle.folder, signature=content, replace=True)
        return statement


def public_file(path: Path) -> Path:
    """Where the public half of a key file stands."""
    return path.with_name(path.name + ".pub")


def _no_key(path: Path) -> UsageError:
    return UsageError(
        f"{path} is no operator's key.", hint="Give the file that hsee bundle key wrote.", path=str(path)
    )
