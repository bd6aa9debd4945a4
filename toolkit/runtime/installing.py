"""A new bundle on a board: copied, checked, tested, and only then in place of the old one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle.folder import Bundle, open_bundle
from toolkit.bundle.manifest import MAX_FILE_BYTES
from toolkit.bundle.onnx_check import check_onnx
from toolkit.bundle.place import Place
from toolkit.bundle.signature import PublicKey, Statement, check_signature
from toolkit.disk import FileLock, sync_folder
from toolkit.errors import BundleError, BundleSignatureError, MachineError, RunError, writing
from toolkit.runtime.self_test import memory_cap, try_in_child

MAX_INSTALL_BYTES = 512 * 1024**2
_COPY_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class Installed:
    """What came of an installation.

    Attributes:
        place: where the bundle runs.
        digest: of the bundle.
        statement: what its operator says of it; None where this board trusts nobody in particular.
        found: by the self-test, in words.
        replaced: whether another one ran here before.
        unchanged: it ran here already.
    """

    place: Path
    digest: str
    statement: Statement | None
    found: str
    replaced: bool
    unchanged: bool = False


def install(
    archive: Path,
    into: Path,
    *,
    device: str,
    key: PublicKey | None,
    max_bytes: int = MAX_INSTALL_BYTES,
    again: bool = False,
    self_test: Callable[..., str] = try_in_child,
) -> Installed:
    """Bring an archive to a board's place; whatever fails, the bundle that runs there runs on.

    Args:
        archive: of the new bundle.
        into: the place, made if missing.
        device: this board's id; asked for where the bundle is signed.
        key: whose bundles this board takes; None takes anybody's.
        max_bytes: the largest archive that is looked at.
        again: take a bundle that was tried here before and went back, or whose release is lower.
        self_test: runs it in a child.

    Raises:
        BundleError: it is damaged, too large, of a newer version, hostile, or fails its self-test; it failed here before.
        BundleSignatureError: not signed by that key, not for this board, or older than what was here.
        RunError: another installation is under way. MachineError: the disk refuses it.
    """
    place = Place(into)
    lock = FileLock(
        into / "lock",
        taken=RunError(f"Another bundle is being installed into {into}.", hint="Wait for it to end."),
    )
    try:
        _copy(archive, place, max_bytes)
        new = open_bundle(place.incoming)
        statement = _check_trusted(new, place, device=device, key=key, again=again)
        running = _running(place)
        if running is not None and running.digest == new.digest:
            _rename_only(place, running, new)
            return Installed(
                place.current, new.digest, statement, "it runs here already", replaced=False, unchanged=True
            )
        if new.digest in place.state.failed and not again:
            raise BundleError(
                f"{archive} was tried here before, failed and was replaced by the one before it.",
                hint="Make a new one. To try this one again all the same: --again",
                digest=new.digest,
            )
        for segment in new.manifest.segments:
            for variant in segment.variant_names:
                file = segment.file_of(variant)
                check_onnx(new.read(file), where=str(archive / file))
        found = self_test(place.incoming, cap_bytes=memory_cap(new.manifest))
        place.put(digest=new.digest, release=0 if statement is None else statement.release)
        return Installed(place.current, new.digest, statement, found, replaced=running is not None)
    finally:
        place.incoming.unlink(missing_ok=True)
        lock.close()


def _copy(archive: Path, place: Place, max_bytes: int) -> None:
    """Copy first, check the copy: what is checked is what will run."""
    try:
        n_bytes = archive.stat().st_size
        source = archive.open("rb")
    except OSError as exc:
        raise BundleError(f"{archive} can't be read: {exc.strerror}.", hint="Give a .hsee file.") from exc
    with source:
        if n_bytes > min(max_bytes, MAX_FILE_BYTES):
            raise BundleError(
                f"{archive} has {n_bytes} bytes; at most {max_bytes} are looked at.",
                hint="Export a smaller one (--int8), or allow more: --max-mb",
                n_bytes=n_bytes,
            )
        free = shutil.disk_usage(place.folder).free
        if free < n_bytes:
            raise MachineError(
                f"{place.folder} has {free} bytes free; the new bundle takes {n_bytes}.",
                hint="Free some space on that disk. The old bundle runs on.",
            )
        with writing(place.incoming), place.incoming.open("wb") as copy:
            left = n_bytes
            while left > 0 and (piece := source.read(min(left, _COPY_BYTES))):
                copy.write(piece)
                left -= len(piece)
            copy.flush()
            os.fsync(copy.fileno())
        sync_folder(place.folder)


def _check_trusted(
    new: Bundle, place: Place, *, device: str, key: PublicKey | None, again: bool
) -> Statement | None:
    if key is None:
        return None
    statement = check_signature(new, key)
    if not statement.is_for(device):
        raise BundleSignatureError(
            f"This bundle was signed for {', '.join(statement.devices)}, and this board is {device}.",
            hint="Install the one that is for this board, or name the board with --id.",
            devices=statement.devices,
        )
    newest = place.state.release
    running = _running(place)
    if running is not None:
        try:
            newest = max(newest, check_signature(running, key).release)
        except BundleSignatureError:
            running = None  # put here before this board trusted an operator
    if statement.release < newest and not again:
        raise BundleSignatureError(
            f"This bundle is of release {statement.release}; {newest} was here already.",
            hint="An old bundle may have been sent again on purpose. If it was you: --again",
            release=statement.release,
            newest=newest,
        )
    if running is not None and statement.release == newest and running.digest != new.digest and not again:
        raise BundleSignatureError(
            f"Two bundles call themselves release {newest}.", hint="Sign the new one again.", release=newest
        )
    return statement


def _running(place: Place) -> Bundle | None:
    """The bundle that runs; None where there is none, or none that could be opened."""
    try:
        return open_bundle(place.current)
    except BundleError:
        return None


def _rename_only(place: Place, running: Bundle, new: Bundle) -> None:
    """The same bundle again: keep it, but take a new signature of it over."""
    if running.fetch_signature(MAX_FILE_BYTES) != new.fetch_signature(MAX_FILE_BYTES):
        with writing(place.current):
            place.incoming.replace(place.current)
            sync_folder(place.folder)
