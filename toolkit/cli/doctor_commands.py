"""``hsee doctor``: everything that commonly goes wrong on a machine, looked at in seconds, each with its fix."""

from __future__ import annotations

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from toolkit.cli.finding_display import report_findings
from toolkit.cli.options import Broker, Json
from toolkit.cli.talking import hush_link
from toolkit.errors import BrokerError, HseeError, MachineError, UsageError
from toolkit.findings import Finding, has_failed

if TYPE_CHECKING:
    from toolkit.config import Settings

BROKER = "broker: "


def doctor(
    *,
    broker: Broker = None,
    data: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Data to look at: folder:PATH, csv:FILE, npz:FILE.")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a support archive (.tar.gz) too, with secrets masked."),
    ] = None,
    json: Json = False,
) -> None:
    """Look at this machine, the installed parts, the broker and the data; each failed line names its fix.

    Exit status 4 if only the broker failed, 6 if anything else did.

    Example: hsee doctor --data folder:pictures
    """
    from toolkit.config import load_config
    from toolkit.doctor.local_data import check_data
    from toolkit.doctor.machine import check_machine
    from toolkit.doctor.parts import check_parts
    from toolkit.doctor.support_archive import write_archive

    if bundle is not None and bundle.exists():
        raise UsageError(f"{bundle} is there already.", hint="Name a new file.")
    settings = load_config({"broker.address": broker, "device.data": data})
    root = Path(settings.device.root) if settings.device.root else None
    findings = [
        *check_machine(Path(settings.fleet.home), save_every_s=settings.device.checkpoint_every_s),
        *check_parts(),
        *_check_broker(settings),
        *check_data(settings.device.data, root=root),
    ]
    written = write_archive(bundle, settings, findings) if bundle is not None else []
    if bundle is not None and not json:
        typer.echo(
            f"Wrote {bundle}: {', '.join(written)}. Secrets are masked; look through it before you send it.\n"
        )
    facts = {"bundle": {"file": bundle, "holds": written}} if bundle is not None else {}
    report_findings(findings, facts=facts, error=_verdict(findings), as_json=json)


def _check_broker(settings: Settings) -> list[Finding]:
    from toolkit.access.broker_check import check_broker
    from toolkit.link.connect import broker_of
    from toolkit.wire.topics import Topics

    # Refusals are what is looked for; a warning for each would bury the findings.
    hush_link()
    try:
        address = broker_of(settings, default_username=settings.device.id)
    except HseeError as exc:
        return [
            Finding(f"{BROKER}address", "failed", exc.message, exc.hint or "See: hsee config show --origin")
        ]
    runs = _who_runs(settings)
    findings = check_broker(address, Topics(settings.fleet.name), log_in=not runs)
    is_there = not any(finding.check == "tcp" and finding.verdict == "failed" for finding in findings)
    if settings.origin("broker.address").kind == "default" and not is_there:
        detail = f"no broker is named, and at {address}, the default, there is none"
        return [
            Finding(f"{BROKER}tcp", "skipped", f"{detail}; --broker HOST, or hsee broker init to make one")
        ]
    if runs and not has_failed(findings):
        detail = f"{runs} runs with this account now, and a second login would cut it off"
        findings.append(Finding("login", "skipped", detail))
    return [msgspec.structs.replace(finding, check=f"{BROKER}{finding.check}") for finding in findings]


def _who_runs(settings: Settings) -> str:
    """Name the process of this machine that a login by this account would cut off; empty if there is none."""
    from toolkit.access.accounts import COORDINATOR_PREFIX

    home, account = Path(settings.fleet.home), settings.broker.username
    if not home.is_dir():
        return ""
    if account.startswith(COORDINATOR_PREFIX):
        return "a coordinator" if _is_locked(home / account.removeprefix(COORDINATOR_PREFIX) / "lock") else ""
    return "an agent" if _agent_runs(settings, home) else ""


def _agent_runs(settings: Settings, home: Path) -> bool:
    from device_agent.identity import device_id, is_held

    try:
        return is_held(home, fleet=settings.fleet.name, device=device_id(settings.device.id))
    except (UsageError, MachineError):  # no such identity can be held here
        return False


def _is_locked(path: Path) -> bool:
    try:
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _verdict(findings: Sequence[Finding]) -> HseeError:
    hint = "Each failed line names its fix."
    if has_failed(finding for finding in findings if not finding.check.startswith(BROKER)):
        return MachineError("This machine is not ready.", hint=hint)
    return BrokerError("The broker is not ready.", hint=hint)
