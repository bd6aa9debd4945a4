"""How findings are shown: a line each with its fix below it, or as JSON; a failed one fails the command."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import typer

from toolkit.cli.output import console, emit_json, is_terminal
from toolkit.errors import HseeError
from toolkit.findings import Finding, has_failed

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}


def report_findings(
    findings: Sequence[Finding], *, facts: Mapping[str, Any], error: HseeError, as_json: bool
) -> None:
    """Print findings.

    Args:
        findings: in the order they were made.
        facts: further members of the JSON object.
        error: what the command ends with if a check failed; its message, code and exit status are told.
        as_json: print a JSON object and nothing else.
    Raises: typer.Exit: with the error's status, if a check failed.
    """
    failed = has_failed(findings)
    if as_json:
        told = {"code": error.code, "message": error.message, "hint": error.hint}
        outcome = {"success": False, "error": told} if failed else {}
        emit_json({**outcome, **facts, "findings": [msgspec.to_builtins(finding) for finding in findings]})
    else:
        _print(findings)
        counts = {v: sum(f.verdict == v for f in findings) for v in _COLOURS}
        told_counts = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
        typer.echo(f"\n{error.message if failed else 'Everything needed is there.'} ({told_counts})")
    if failed:
        raise typer.Exit(error.exit_status)


def _print(findings: Sequence[Finding]) -> None:
    width = max((len(finding.check) for finding in findings), default=0)
    for finding in findings:
        line = f"{finding.verdict:<8} {finding.check:<{width}}  {finding.detail}"
        fix = f"{'':<8} {'':<{width}}  fix: {finding.fix}" if finding.fix else ""
        if not is_terminal():
            sys.stdout.write("\n".join(filter(None, (line, fix))) + "\n")
            continue
        from rich.text import Text

        text = Text(line)
        text.stylize(_COLOURS[finding.verdict], 0, len(finding.verdict))
        console().print(text)
        if fix:
            console().print(Text(fix))
