"""What each command answers with ``--json``: the definitions that tests hold commands to, and that docs/schemas publishes.

    python -m tests.layout.answers      writes docs/schemas

Commands that go on for a while print an object a line instead; the last says ``success``, the others ``event``.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from coordinator.watching.log_ring import LogEntry
from coordinator.watching.status import RunStatus
from toolkit.cli.device_commands import DeviceFacts
from toolkit.cli.run_commands import RunFacts
from toolkit.findings import Finding
from toolkit.profile.schema import Profile

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"
Object = dict[str, Any]
Objects = list[Object]


class Told(msgspec.Struct, forbid_unknown_fields=True):
    """What went wrong: a stable code, what and where, and what to do next."""

    code: str
    message: str
    hint: str


class Failure(msgspec.Struct, forbid_unknown_fields=True):
    """What any command answers that fails."""

    success: bool
    error: Told


def answer(**fields: object) -> type[msgspec.Struct]:
    """A schema: these keys, of these types, and no others; one that may be absent ends in an underscore."""
    typed = [
        (name.removesuffix("_"), kind, *([None] if name.endswith("_") else []))
        for name, kind in fields.items()
    ]
    return msgspec.defstruct("Answer", [("success", bool), *typed], forbid_unknown_fields=True, kw_only=True)


def answer_like(shape: type[msgspec.Struct], **fields: object) -> type[msgspec.Struct]:
    """A schema: all that a struct holds, and further keys."""
    named = {field.encode_name: field.type for field in msgspec.structs.fields(shape)}
    return answer(**named, **fields)


ACCOUNTS = list[dict[str, str]]
JUDGED = {"findings": list[Finding], "error_": Told | None}
ANSWERS: dict[str, type[msgspec.Struct]] = {
    "agent install": answer(unit=str, file=str, text=str, commands=list[str], installed=bool),
    "agent join": answer(device=str, folder=str, start=str, token_used_up=bool),
    "agent status": answer(
        device=str,
        runs=bool,
        by_hand=bool,
        unit=str,
        installed=bool,
        state=str,
        detail=str,
        boots=bool,
        pid=int,
        n_restarts=int,
        memory_bytes=int,
        since=str,
    ),
    "agent uninstall": answer(unit=str, file=str, removed=bool),
    "broker check": answer(broker=str, account=str, **JUDGED),
    "broker init": answer(
        folder=str,
        address=str,
        authority_sha256=str,
        accounts=ACCOUNTS,
        verified=bool,
        start=tuple[str, str],
    ),
    "broker renew": answer(folder=str, hosts=list[str]),
    "broker user add": answer(accounts=ACCOUNTS),
    "broker user list": answer(accounts=list[dict[str, str | bool]]),
    "broker user refresh": answer(accounts=list[str]),
    "broker user remove": answer(removed=list[str], would_remove=list[str]),
    "bundle install": answer(installed=Object),
    "bundle key": answer(key=str, public_key=str, name=str),
    "bundle revert": answer(place=str, digest=str, before=str),
    "bundle show": answer(
        bundle=str,
        digest=str,
        n_bytes=int,
        exits=list[str],
        provenance=Object,
        signature_=Object | None,
    ),
    "bundle sign": answer(signed=Objects),
    "bundle trust": answer(pinned=str, name=str),
    "calibrate": answer(folder=str, digest=str, temperatures=Object, calibration=Object),
    "config check": answer(files=dict[str, bool], settings_given=int, has_password=bool),
    "config schema": answer(schema=Object),
    "config show": answer(settings=dict[str, Object], origins_=dict[str, Object] | None),
    "demo": answer(run=str, seconds=float, boards=Objects),
    "device group": answer(device=str, groups=list[str]),
    "device list": answer(devices=list[DeviceFacts]),
    "device remove": answer(device=str, revoked=list[str], would_revoke=list[str]),
    "device rename": answer(device=str, label=str),
    "device show": answer_like(DeviceFacts),
    "doctor": answer(bundle_=Object | None, **JUDGED),
    "export": answer(bundles_=Objects | None, files_=list[str] | None),
    "infer": answer(samples=Objects, summary=Object),
    "init": answer(file=str, template=str, next=str),
    "logs": answer(lines=list[LogEntry]),
    "model show": answer(model=Object, stages=Objects, flop=int, n_parameters=int),
    "plan": answer(file=str, plan=Object, server_influences_devices=bool),
    "profile": answer(file=str, profile=Profile),
    "run compare": answer(runs=list[RunFacts], differences=dict[str, list[Any]]),
    "run export": answer(run=str, format=str, files=list[str], n_values=int),
    "run list": answer(home=str, runs=list[RunFacts]),
    "run rewind": answer(run=str, from_round=int, to_round=int, dry_run=bool),
    "run show": answer(folder=str, runs=Objects, devices=Objects, pictures=list[str], left_out=list[str]),
    "simulate": answer(
        folder=str, scenario=Object, summary=Object, seeds=Objects, pictures=list[str], left_out=list[str]
    ),
    "status": answer_like(RunStatus, is_good=bool),
}
"""By command."""
LINES = {
    "agent start",
    "broker invite",
    "bundle receive",
    "bundle send",
    "coordinator serve",
    "coordinator start",
    "run resume",
}
"""Commands that print an object a line."""


def command_of(words: list[str]) -> str:
    """Say which command a line of words is; empty if it is none of these."""
    for n in (3, 2, 1):
        if (name := " ".join(words[:n])) in ANSWERS or name in LINES:
            return name
    return ""


def check_answer(words: list[str], said: str) -> None:
    """Hold what a command printed to its schema, if it succeeded, printed JSON, and printed it once.

    Raises: msgspec.ValidationError: it is something else.
    """
    own = words[: words.index("--")] if "--" in words else words
    command = command_of(own)
    if "--json" in own and command in ANSWERS and not {"-f", "--follow", "-w", "--watch"} & set(own):
        msgspec.json.decode(said, type=ANSWERS[command])


def schema_files() -> dict[str, str]:
    """Make the published files: by name, JSON Schema."""
    kinds = {**ANSWERS, "failure": Failure}
    return {
        f"{command.replace(' ', '-')}.json": msgspec.json.format(
            msgspec.json.encode(
                {
                    "$schema": "https://json-schema.org/draft/2020-12/schema",
                    "title": f"hsee {command} --json"
                    if command in ANSWERS
                    else "what any command answers that fails",
                    **msgspec.json.schema(kind),
                },
                order="deterministic",
            ),
            indent=1,
        ).decode()
        + "\n"
        for command, kind in kinds.items()
    }


def main() -> None:
    """Write the files anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    for name, text in schema_files().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
