"""Where profiles of boards, links and models are found by name: HSEE_PROFILES, the packaged copy, the repository's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from toolkit.errors import ProfileError, did_you_mean

HERE = Path(__file__).resolve().parent
KINDS = {"links": "link", "models": "model profile"}
"""Folders whose files are no boards' profiles, and what they are."""


def profile_folders(folder: Path | None = None) -> list[Path]:
    """List the folders that are searched, first one first.

    Args:
        folder: given by a flag; ``None`` when it was not.
    """
    from_environment = os.environ.get("HSEE_PROFILES", "")
    candidates = [
        *([folder] if folder else []),
        *(Path(part) for part in from_environment.split(os.pathsep) if part),
        HERE / "shipped",
        # An editable install has no packaged copy.
        HERE.parents[1] / "profiles",
    ]
    return [path for path in candidates if path.is_dir()]


def find_profile(name: str, *, folder: Path | None = None) -> Path:
    """Find a board's profile: a path to a file, or the name of one in a searched folder.

    Raises: ProfileError: there is none.
    """
    return _find(name, kind="profile", folder=folder)


def find_link(name: str, *, folder: Path | None = None) -> Path:
    """Find a link: a path to a file, or the name of one in a ``links`` folder.

    Raises: ProfileError: there is none.
    """
    return _find(name, kind="link", folder=folder)


def find_model(name: str, *, folder: Path | None = None) -> Path:
    """Find a model's profile: a path to a file, or the name of one in a ``models`` folder.

    Raises: ProfileError: there is none.
    """
    return _find(name, kind="model profile", folder=folder)


def _find(name: str, *, kind: str, folder: Path | None) -> Path:
    # A name is what has neither a folder nor the ending of a file; anything else is taken at its word.
    if name.endswith(".toml") or os.sep in name:
        path = Path(name).expanduser()
        if path.is_file():
            return path
        raise ProfileError(f"There is no {kind} file {name}.", hint="Check the path.", file=name)
    known: dict[str, Path] = {}
    for path in _files(kind, folder):
        known.setdefault(path.stem, path)
    if name not in known:
        raise ProfileError(f"There is no {kind} named {name!r}.", hint=did_you_mean(name, known), name=name)
    return known[name]


def _files(kind: str, folder: Path | None) -> Iterator[Path]:
    for place in profile_folders(folder):
        for path in sorted(place.rglob("*.toml")):
            folders = path.relative_to(place).parts[:-1]
            if kind == next((KINDS[part] for part in folders if part in KINDS), "profile"):
                yield path
