"""A bundle as a folder: written whole or not at all, and never trusted when opened.

A bundle that replaces another is built as ``.NAME.new``; the old one is renamed to ``.NAME.old``, the new one to
``NAME``, and the old one removed. A power cut between the two renames leaves no ``NAME``: it is then read from
``.NAME.old``, and the next write puts that back first.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from toolkit.bundle.card import CARD_FILE, model_card
from toolkit.bundle.manifest import (
    MANIFEST_FILE,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    decode_manifest,
    encode_manifest,
)
from toolkit.disk import sync_folder
from toolkit.errors import BundleDigestError, BundleError, BundleMissingError, MachineError

SIGNATURE_FILE = "manifest.sig"
MAX_SIGNATURE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle.

    Attributes:
        folder: where it lies; the file, where it is an archive.
        manifest: what it says about itself.
        digest: SHA-256 of its manifest, which holds the digests of all else: the identity of the bundle.
        fetch: reads a file of it by name, at most so many bytes.
    """

    folder: Path
    manifest: Manifest
    digest: str
    fetch: Callable[[str, int], bytes]

    def fetch_signature(self, at_most: int) -> bytes | None:
        """Read ``manifest.sig``, which no manifest names; None where there is none.

        Raises: BundleError: it is larger than ``at_most``, or no plain file.
        """
        try:
            return self.fetch(SIGNATURE_FILE, at_most)
        except BundleMissingError:
            return None

    def read(self, name: str) -> bytes:
        """Read a file of the bundle; what is returned is what was checked.

        Raises:
            BundleError: no such file in the manifest or the folder, or it has another size.
            BundleDigestError: its content is not what the manifest names.
        """
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{self.folder} has no file {name!r} in its manifest.", file=name)
        path = self.folder / name
        content = self.fetch(name, entry.n_bytes)
        got = hashlib.sha256(content).hexdigest()
        if len(content) != entry.n_bytes or got != entry.sha256:
            raise BundleDigestError(
                f"{path} is not the file its manifest names: SHA-256 {got[:12]}..., expected {entry.sha256[:12]}...",
                hint="It was changed or damaged: export or copy the bundle again.",
                file=name,
                expected=entry.sha256,
                got=got,
            )
        return content


def open_bundle(folder: Path, *, check_all: bool = True) -> Bundle:
    """Open a bundle and check every file of it.

    Args:
        folder: the bundle, or an archive of it.
        check_all: False leaves files unread that nobody asks for; what is read is checked all the same.

    Raises:
        BundleError: no bundle, of a newer version, incomplete, or a file of it is a link.
        BundleDigestError: a file is not the one its manifest names.
    """
    if folder.is_file():
        from toolkit.bundle.archive import ArchiveFiles

        return check_bundle(folder, ArchiveFiles(folder).fetch, check_all=check_all)
    if not folder.exists() and _beside(folder, "old").is_dir():
        folder = _beside(folder, "old")
    if not folder.is_dir():
        raise BundleError(
            f"{folder} does not exist.",
            hint="Give the folder or the archive that hsee export wrote.",
            folder=str(folder),
        )
    return check_bundle(
        folder, lambda name, at_most: _read_plain(folder / name, at_most=at_most), check_all=check_all
    )


def check_bundle(place: Path, fetch: Callable[[str, int], bytes], *, check_all: bool = True) -> Bundle:
    """Read a manifest and check every file that it names.

    Args:
        place: what messages call it.
        fetch: reads a file by name, at most so many bytes.
        check_all: as of :func:`open_bundle`.
    Raises: BundleError, BundleDigestError: as of :func:`open_bundle`.
    """
    content = fetch(MANIFEST_FILE, MAX_MANIFEST_BYTES)
    manifest = decode_manifest(content, where=str(place / MANIFEST_FILE))
    bundle = Bundle(place, manifest, hashlib.sha256(content).hexdigest(), fetch)
    _check_segments_named(manifest)
    for name in manifest.files if check_all else ():
        bundle.read(name)
    return bundle


def write_bundle(
    folder: Path, manifest: Manifest, files: Mapping[str, bytes], *, replace: bool = False
) -> Bundle:
    """Write a bundle with its manifest and model card: built beside, synced, then renamed.

    Args:
        folder: where it shall lie; its parent is created if need be.
        manifest: its ``files`` are filled in here.
        files: name to content, the segments' ONNX files among them.
        replace: take the place of a bundle that lies there already.
    Returns: the bundle, opened.

    Raises:
        BundleError: something else lies there, a bundle without ``replace``, or a segment's file is not given.
        MachineError: it can't be written.
    """
    content = {**files, CARD_FILE: model_card(manifest).encode()}
    entries = {
        name: FileEntry(n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in content.items()
    }
    # Through the decoder, so that nothing is written that could not be read back.
    manifest = decode_manifest(
        encode_manifest(msgspec.structs.replace(manifest, files=entries)), where="The manifest to be written"
    )
    _check_segments_named(manifest)
    beside, old = _beside(folder, "new"), _beside(folder, "old")
    try:
        _finish_swap(folder, old)
        _check_free(folder, replace=replace)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for name, data in {**content, MANIFEST_FILE: encode_manifest(manifest)}.items():
            _write_synced(beside / name, data)
        sync_folder(beside)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        beside.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as exc:
        shutil.rmtree(beside, ignore_errors=True)
        _finish_swap(folder, old)
        raise MachineError(
            f"The bundle can't be written to {folder}: {exc.strerror or exc}.",
            hint="Check the free space and the permissions of that folder.",
            folder=str(folder),
        ) from exc
    return open_bundle(folder)


def _beside(folder: Path, which: str) -> Path:
    return folder.with_name(f".{folder.name}.{which}")


def _finish_swap(folder: Path, old: Path) -> None:
    """Put back what a swap that was cut short between its two renames had moved away."""
    if old.is_dir() and not folder.exists():
        old.rename(folder)


def _check_segments_named(manifest: Manifest) -> None:
    for segment in manifest.segments:
        for file in {segment.file, *map(segment.file_of, segment.variant_names)}:
            if file not in manifest.files:
                raise BundleError(f"Segment {file} is not among the bundle's files.", file=file)


def _check_free(folder: Path, *, replace: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST_FILE).is_file()):
        raise BundleError(
            f"{folder} exists and is not a bundle.", hint="Give another folder.", folder=str(folder)
        )
    if not replace and (folder / MANIFEST_FILE).is_file():
        raise BundleError(
            f"{folder} holds a bundle already.", hint="Remove it or give another folder.", folder=str(folder)
        )


def _read_plain(path: Path, *, at_most: int) -> bytes:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} is not a plain file; a bundle holds no links.", file=path.name)
        if status.st_size > at_most:
            raise BundleError(
                f"{path} has {status.st_size} bytes; at most {at_most} are expected.", file=path.name
            )
        with path.open("rb") as file:
            return file.read(at_most + 1)
    except FileNotFoundError as exc:
        raise BundleMissingError(
            f"{path} is missing.",
            hint="This is not a bundle, or not a whole one: export or copy it again.",
            file=path.name,
        ) from exc
    except OSError as exc:
        raise BundleError(f"{path} can't be read: {exc.strerror}.", file=path.name) from exc


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
