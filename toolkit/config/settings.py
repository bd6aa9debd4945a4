"""What loading a configuration gives: sections of values, and the origin of each value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from toolkit.config.sections import Document

OriginKind = Literal["flag", "environment", "file", "user file", "preset", "default"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from.

    Attributes:
        kind: the layer that gave it.
        where: a flag, a variable, or a file.
        line: in the file, from 1; None where there is no line.
    """

    kind: OriginKind
    where: str = ""
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.where}:{self.line}" if self.line else self.where or self.kind


DEFAULT = Origin("default")


class Settings(Document, frozen=True, kw_only=True):
    """The configuration in force.

    Attributes:
        origins: by ``section.key``; a key that is not in it has its default.
    """

    origins: Mapping[str, Origin] = {}

    def origin(self, key: str) -> Origin:
        """Say where the value of ``section.key`` came from."""
        return self.origins.get(key, DEFAULT)
