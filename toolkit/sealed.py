"""Records that name the digest of what they hold, in a field ``sha256`` of theirs: a bit that flips in one is found."""

from __future__ import annotations

import hashlib

import msgspec


def digest_of(record: msgspec.Struct) -> str:
    """Digest of a record's JSON without white space, in which the field ``sha256`` is empty."""
    bare = msgspec.structs.replace(record, sha256="")
    return hashlib.sha256(msgspec.json.encode(bare)).hexdigest()


def digest_of_content(content: bytes) -> str:
    """Digest of a record as its file holds it, so that one written by a version with fewer or more fields has its own.

    Raises: msgspec.DecodeError: it is no JSON object.
    """
    bare = msgspec.json.decode(content, type=dict[str, object])
    bare["sha256"] = ""
    return hashlib.sha256(msgspec.json.encode(bare)).hexdigest()
