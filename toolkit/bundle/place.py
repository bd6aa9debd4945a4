"""Where a board keeps the bundle that it runs: one file, replaced by one rename, and the one before it beside it.

bundle.hsee     runs                    incoming.hsee   not checked yet; never opened to answer
previous.hsee   ran before              place.json      what was put here, and whether it has answered yet

At any instant ``bundle.hsee`` is the old bundle or the new one, whole; a reader that opened it keeps what it opened. A
new one is on trial until it has answered: one that never does, start after start, goes back to the one before.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from toolkit.bundle.manifest import Digest
from toolkit.disk import sync_folder, write_atomically
from toolkit.errors import BundleError, writing

CURRENT, PREVIOUS, INCOMING = "bundle.hsee", "previous.hsee", "incoming.hsee"
STATE_FILE = "place.json"
MAX_STATE_BYTES = 64 * 1024
TRIAL_STARTS = 3
"""Starts that a new bundle has to answer in."""


class PlaceState(msgspec.Struct, frozen=True, kw_only=True):
    """What a place remembers.

    Attributes:
        release: the greatest ever put here; a lower one is a roll-back.
        on_trial: the bundle that has not answered yet, by its digest; None: the one that runs has.
        starts: of the one on trial.
        failed: digests of bundles that were tried and went back, latest last.
    """

    schema: int = 1
    release: Annotated[int, Meta(ge=0)] = 0
    on_trial: Digest | None = None
    starts: Annotated[int, Meta(ge=0)] = 0
    failed: Annotated[list[Digest], Meta(max_length=64)] = []


class Place:
    """A board's place for its bundle.

    Args:
        folder: of the place; :meth:`put` makes it if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.current = folder / CURRENT
        self.previous = folder / PREVIOUS
        self.incoming = folder / INCOMING

    @classmethod
    def at(cls, path: Path) -> Place | None:
        """The place that a folder is; None where it is something else."""
        place = cls(path)
        return place if place.current.is_file() or place.previous.is_file() else None

    @property
    def state(self) -> PlaceState:
        """What is remembered; nothing where the file is missing or damaged, for an answer matters more."""
        try:
            with (self.folder / STATE_FILE).open("rb") as file:
                return msgspec.json.decode(file.read(MAX_STATE_BYTES), type=PlaceState)
        except (OSError, msgspec.DecodeError):
            return PlaceState()

    def remember(self, **changes: object) -> None:
        """Change what is remembered, durably.

        Raises: MachineError: the disk refuses it.
        """
        state = msgspec.structs.replace(self.state, **changes)
        write_atomically(self.folder / STATE_FILE, msgspec.json.encode(state) + b"\n")

    def put(self, *, digest: str, release: int) -> None:
        """Let the incoming bundle, checked and synced, take the place of the one that runs.

        Raises: MachineError: the disk refuses it; the old one runs on.
        """
        state = self.state
        self.remember(release=max(release, state.release), on_trial=digest, starts=0)
        with writing(self.current):
            if self.current.exists():
                self._keep_as_previous()
            self.incoming.replace(self.current)
            sync_folder(self.folder)

    def go_back(self, digest: str | None) -> None:
        """Let the bundle before this one run again.

        Args:
            digest: of the one that failed, where it could be read.

        Raises:
            BundleError: there is none.
            MachineError: the disk refuses it.
        """
        if not self.previous.exists():
            raise BundleError(
                f"{self.folder} holds no earlier bundle to go back to.", hint="Install another one."
            )
        with writing(self.current):
            beside = self._linked(self.previous)
            beside.replace(self.current)
            sync_folder(self.folder)
        failed = [one for one in self.state.failed if one != digest][-15:]
        self.remember(on_trial=None, starts=0, failed=[*failed, *([digest] if digest else [])])

    def begin_start(self, digest: str) -> bool:
        """Count a start of the bundle that runs, if it is on trial.

        Returns: whether it may start; False: it was given its chances.
        """
        state = self.state
        if state.on_trial != digest:
            return True
        if state.starts >= TRIAL_STARTS:
            return False
        self.remember(starts=state.starts + 1)
        return True

    def confirm(self, digest: str) -> None:
        """Note that the bundle that runs has answered."""
        if self.state.on_trial == digest:
            self.remember(on_trial=None, starts=0)

    def _keep_as_previous(self) -> None:
        self._linked(self.current).replace(self.previous)

    def _linked(self, path: Path) -> Path:
        """A second name for a file, to be renamed: the first one stays where it is at every instant."""
        beside = path.with_name(f".{path.name}.link")
        beside.unlink(missing_ok=True)
        os.link(path, beside)
        return beside
