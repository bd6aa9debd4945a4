"""What a check found out: a verdict, what was seen, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

Verdict = Literal["ok", "warning", "failed", "skipped"]


class Finding(msgspec.Struct, frozen=True):
    """One line of ``hsee doctor`` or ``hsee broker check``.

    Attributes:
        check: what was looked at, in a word or two.
        verdict: ``skipped`` where it could not be judged; the detail says why.
        detail: what was seen.
        fix: what to type or change; never empty for a warning or a failure.
    """

    check: str
    verdict: Verdict
    detail: str
    fix: str = ""

    def __post_init__(self) -> None:
        if self.verdict in ("warning", "failed") and not self.fix:
            raise ValueError(f"The finding {self.check!r} is {self.verdict} and names no fix.")


def has_failed(findings: Iterable[Finding]) -> bool:
    """Tell whether anything failed."""
    return any(finding.verdict == "failed" for finding in findings)
