"""The bundle that a board's place holds: started, given up for the one before if it fails, replaced while it answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from toolkit.bundle.folder import Bundle, open_bundle
from toolkit.bundle.place import TRIAL_STARTS, Place
from toolkit.errors import BundleError, MachineError
from toolkit.runtime.cascade import Cascade


class Placed:
    """The cascade of a place.

    Args:
        place: holds a bundle.
        make: makes a cascade of an opened bundle, or raises :class:`BundleError`.
        say: takes each line that whoever watches should read.
    Raises: BundleError: neither the bundle nor the one before it can be run.
    """

    def __init__(self, place: Place, make: Callable[[Bundle], Cascade], say: Callable[[str], None]) -> None:
        self._place = place
        self._make = make
        self._say = say
        self._seen = _stamp(place)
        self.cascade = self._start()

    def _start(self) -> Cascade:
        digest = None
        try:
            bundle = open_bundle(self._place.current, check_all=False)
            digest = bundle.digest
            self._begin(digest)
            return self._make(bundle)
        except BundleError as exc:
            try:
                before = self._make(open_bundle(self._place.previous, check_all=False))
            except BundleError:
                raise exc from None
            # A disk that can't be written to must not cost an answer; the next start comes here again.
            with suppress(MachineError):
                self._place.go_back(digest)
                self._seen = _stamp(self._place)
            self._say(f"note: {exc.message} The bundle before it runs again.")
            return before

    def _begin(self, digest: str) -> None:
        may_start = True
        with suppress(MachineError):
            may_start = self._place.begin_start(digest)
        if not may_start:
            raise BundleError(
                f"The bundle in {self._place.folder} did not answer in {TRIAL_STARTS} starts.", digest=digest
            )

    def answered(self) -> None:
        """Note that the bundle works; then look whether another one was put in its place, and run that from now on.

        A new one with other classes, samples or exits waits for the next start.
        """
        running = self.cascade.bundle
        with suppress(MachineError):
            self._place.confirm(running.digest)
        stamp = _stamp(self._place)
        if stamp == self._seen:
            return
        self._seen = stamp
        cascade = self._start()
        if cascade.bundle.digest == running.digest:
            return
        if _kind(cascade) != _kind(self.cascade):
            self._say(
                "note: A bundle with other classes, samples or exits was installed: it runs from the next start on."
            )
            return
        self._say(f"note: The bundle {cascade.bundle.digest[:16]} runs from now on.")
        self.cascade = cascade


def _stamp(place: Place) -> tuple[int, int] | None:
    try:
        status = os.stat(place.current)  # noqa: PTH116 - as cheap as it gets: it is asked for every batch
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _kind(cascade: Cascade) -> tuple[object, ...]:
    return tuple(cascade.class_names), cascade.input_shape, cascade.exit_names
