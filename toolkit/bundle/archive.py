"""A bundle as one file: a zip whose members are stored as they are, the same bytes for the same bundle.

It is read in place and never unpacked, so no name in it can reach any other file. Only what :func:`write_archive`
writes is read: no compression, no comment, no zip64, a directory of at most 64 KiB.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

from toolkit.bundle.folder import MAX_SIGNATURE_BYTES, SIGNATURE_FILE, Bundle, open_bundle
from toolkit.bundle.manifest import MANIFEST_FILE, MAX_FILES, MAX_MANIFEST_BYTES
from toolkit.errors import BundleError, BundleMissingError, MachineError

SUFFIX = ".hsee"
MAX_ARCHIVE_BYTES = 2**32 - 2**20
"""Below what zip can address without zip64."""
_MAX_DIRECTORY_BYTES = 64 * 1024
_END = struct.Struct("<4s4H2LH")
_END_MAGIC = b"PK\x05\x06"
_ZIP64_MAGIC = b"PK\x06\x07"
_ZIP64_LOCATOR_BYTES = 20
_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNIX, _MODE = 3, 0o644 << 16
_ENCRYPTED = 1


def write_archive(
    bundle: Bundle, path: Path, *, replace: bool = False, signature: bytes | None = None
) -> Path:
    """Write a bundle as one file, atomically; nothing in it depends on when or where.

    Args:
        bundle: opened, so checked; each file is checked again as it is read.
        path: of the archive to be.
        replace: take the place of a file that lies there already.
        signature: instead of the bundle's own, if it has one.
    Returns: ``path``.

    Raises:
        BundleError: a file lies there, or the bundle is too large.
        MachineError: it can't be written.
    """
    if path.is_dir() or (path.exists() and not replace):
        raise BundleError(f"{path} exists already.", hint="Remove it or give another name.", file=str(path))
    n_bytes = sum(entry.n_bytes for entry in bundle.manifest.files.values())
    if n_bytes > MAX_ARCHIVE_BYTES - MAX_MANIFEST_BYTES:
        raise BundleError(f"{bundle.folder} has {n_bytes} bytes: too many for one archive.")
    beside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                manifest = bundle.fetch(MANIFEST_FILE, MAX_MANIFEST_BYTES)
                archive.writestr(_member(MANIFEST_FILE), manifest)
                signature = signature or bundle.fetch_signature(MAX_SIGNATURE_BYTES)
                if signature is not None:
                    archive.writestr(_member(SIGNATURE_FILE), signature)
                for name in sorted(bundle.manifest.files):
                    archive.writestr(_member(name), bundle.read(name))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as exc:
        beside.unlink(missing_ok=True)
        raise MachineError(
            f"The archive {path} can't be written: {exc.strerror or exc}.",
            hint="Check the free space and the permissions of that folder.",
            file=str(path),
        ) from exc
    return open_bundle(path).folder


class ArchiveFiles:
    """The files of an archive, read one at a time; they stay the same ones though another takes the archive's place.

    Args:
        path: of the archive.
    Raises: BundleError: not an archive of a bundle, or one that does what ours never do.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("rb")
        except OSError as exc:
            raise self._refused(exc.strerror or str(exc)) from exc
        self._check_end()
        with self._opened() as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if len(set(names)) != len(names):
                raise self._refused("a name stands twice in it")
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                    raise self._refused(f"{member.filename!r} is compressed")
                if member.flag_bits & _ENCRYPTED:
                    raise self._refused(f"{member.filename!r} is encrypted")
        self._sizes = {member.filename: member.file_size for member in members}

    def fetch(self, name: str, at_most: int) -> bytes:
        """Read a member whole.

        Raises: BundleError: it is not there, larger than ``at_most``, or damaged.
        """
        size = self._sizes.get(name)
        if size is None:
            raise BundleMissingError(
                f"{self._path} holds no {name}.",
                hint="This is not a bundle, or not a whole one: export or copy it again.",
                file=name,
            )
        if size > at_most:
            raise BundleError(
                f"{self._path / name} has {size} bytes; at most {at_most} are expected.", file=name
            )
        with self._opened() as archive:
            try:
                return archive.read(name)
            except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as exc:
                raise self._refused(f"{name} can't be read from it: {exc}") from exc

    def __del__(self) -> None:
        """Let the archive go with whoever read from it."""
        if file := vars(self).get("_file"):
            file.close()

    def _opened(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._file)
        except (zipfile.BadZipFile, struct.error, OSError, ValueError, NotImplementedError) as exc:
            raise self._refused(str(exc)) from exc

    def _check_end(self) -> None:
        """Refuse by the last bytes what would cost memory to parse: a long directory, zip64, a comment."""
        n_bytes = self._file.seek(0, io.SEEK_END)
        if not _END.size <= n_bytes <= MAX_ARCHIVE_BYTES:
            raise self._refused(f"it has {n_bytes} bytes")
        tail = min(n_bytes, _END.size + _ZIP64_LOCATOR_BYTES)
        self._file.seek(-tail, io.SEEK_END)
        last = self._file.read(tail)
        magic, _, _, _, n_members, directory_bytes, _, n_comment = _END.unpack(last[-_END.size :])
        if magic != _END_MAGIC or n_comment or last.startswith(_ZIP64_MAGIC):
            raise self._refused("it does not end as one")
        if n_members > MAX_FILES + 2 or directory_bytes > _MAX_DIRECTORY_BYTES:
            raise self._refused(f"it lists {n_members} files in {directory_bytes} bytes")

    def _refused(self, why: str) -> BundleError:
        return BundleError(
            f"{self._path} is not an archive of a bundle: {why}.",
            hint="Give what hsee export --archive wrote, or copy it again.",
            file=str(self._path),
        )


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _EPOCH)
    member.create_system, member.external_attr = _UNIX, _MODE
    return member
