"""The list of rows: each part of it enters its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.scene import Scene

Play = Callable[[Scene], str]


@dataclass(frozen=True)
class Row:
    """One row of the promises.

    Attributes:
        name: as in the list, with a letter where one has several parts.
        what: in a few words.
        play: raises AssertionError where it does not hold, SkippedRowError where it can't be judged here.
        quick: part of the quick tier too.
        in_suite: tests of the suite hold it as they are.
    """

    name: str
    what: str
    play: Play
    quick: bool
    in_suite: bool = False


ROWS: dict[str, Row] = {}


def row(name: str, what: str, *, quick: bool = True, in_suite: bool = False) -> Callable[[Play], Play]:
    """Enter a row."""

    def enter(play: Play) -> Play:
        ROWS[name] = Row(name, what, play, quick, in_suite)
        return play

    return enter
