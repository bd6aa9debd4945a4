"""``hsee broker invite``: a join window, in which a board becomes a member by one pasted line and a secret."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from toolkit.cli.broker_control import DEFAULT_FOLDER, DEFAULT_OPERATOR, Folder, MovedBroker, Operator
from toolkit.cli.options import Json, Quiet
from toolkit.cli.output import is_terminal
from toolkit.cli.talking import hush_link
from toolkit.disk import PRIVATE, PRIVATE_FOLDER, write_atomically
from toolkit.errors import PartialError, UsageError, writing

if TYPE_CHECKING:
    from toolkit.access.broker_folder import BrokerRecord
    from toolkit.access.join_window import WindowEvent
    from toolkit.access.tokens import Token

POLL_S = 1.0


def invite(
    devices: Annotated[
        list[str], typer.Argument(metavar="DEVICE...", help="Names of the boards; none has an account yet.")
    ],
    *,
    minutes: Annotated[
        float, typer.Option(min=0.05, max=24 * 60, help="How long the tokens can be used.")
    ] = 15,
    folder: Folder = DEFAULT_FOLDER,
    broker: MovedBroker = None,
    operator: Operator = DEFAULT_OPERATOR,
    show_secret: Annotated[
        bool,
        typer.Option(
            "--show-secret",
            help="Print the secrets even where nobody watches a terminal; they stand in files all the while.",
        ),
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Let boards in: print a line to paste on each, and answer it while this runs.

    A line holds no secret; the board asks for it. A token can be used once; all that is not used is taken back when the
    time is up or this is stopped. With --json: an object a line. Exit status 5 if a board did not come.

    Example: hsee broker invite hall-camera
    """
    from toolkit.access.accounts import check_new, kind_of
    from toolkit.access.broker_folder import BrokerFolder
    from toolkit.access.join_window import open_window
    from toolkit.access.joining import fetch_authority
    from toolkit.access.tokens import digest_of
    from toolkit.link.base import parse_broker

    for device in devices:
        if kind_of(check_new(device)) != "device":
            raise UsageError(
                f"{device!r} is no device's name: it stands for another kind of account.",
                hint="hsee broker user add makes the others.",
            )
    # At its end the window takes its own account away; that the broker then refuses it is what it waits for.
    hush_link()
    opened = BrokerFolder.open(folder)
    address = opened.login(operator, parse_broker(broker, ca_file=opened.path / "ca.pem") if broker else None)
    authority = digest_of((opened.path / "ca.pem").read_bytes())
    entry = opened.entry(address)
    fetch_authority(entry, authority)  # as boards will: the broker must show it
    secrets_folder = opened.path / "invites"
    joined = []
    say = _Speaker(as_json=json, quiet=quiet)
    with open_window(
        address,
        opened.topics,
        list(dict.fromkeys(devices)),
        lasts_s=60 * minutes,
        entry=entry,
        certifier=opened if opened.record.by_certificate else None,
    ) as window:
        try:
            files = _write_secrets(secrets_folder, window.tokens)
            say.opened(
                window.tokens,
                files,
                record=opened.record,
                authority=authority,
                minutes=minutes,
                shows_secret=show_secret or (is_terminal() and not json),
            )
            while not window.is_over:
                for event in window.poll(min(POLL_S, window.left_s)):
                    say.happened(event)
                    joined += [event.device] if event.outcome == "joined" else []
            for event in window.close():
                say.happened(event)
        finally:
            shutil.rmtree(secrets_folder, ignore_errors=True)
    if missing := [device for device in devices if device not in joined]:
        raise PartialError(
            f"{len(joined)} of {len(devices)} joined; not {', '.join(missing)}.",
            hint=f"Invite again: hsee broker invite {' '.join(missing)}",
        )
    say.ended(joined)


def _write_secrets(folder: Path, tokens: Sequence[Token]) -> dict[str, Path]:
    with writing(folder):
        folder.mkdir(exist_ok=True, mode=PRIVATE_FOLDER)
    files = {token.device: folder / token.device for token in tokens}
    for token in tokens:
        write_atomically(files[token.device], f"{token.shown_secret}\n".encode(), mode=PRIVATE)
    return files


class _Speaker:
    """Tells what happens, in words or as an object a line."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self._as_json = as_json
        self._quiet = quiet

    def opened(
        self,
        tokens: Sequence[Token],
        files: Mapping[str, Path],
        *,
        record: BrokerRecord,
        authority: str,
        minutes: float,
        shows_secret: bool,
    ) -> None:
        from toolkit.access.tokens import paste_line

        for token in tokens:
            line = paste_line(
                token,
                address=record.address,
                fleet=record.fleet,
                authority=authority,
                join_port=record.join_port,
            )
            told = {"device": token.device, "line": line, "secret_file": str(files[token.device])}
            if self._as_json:
                self._object(
                    {"event": "invited", **told, **({"secret": token.shown_secret} if shows_secret else {})}
                )
                continue
            secret = token.shown_secret if shows_secret else f"in {files[token.device]}"
            self._line(f"Paste on {token.device}:\n\n  {line}\n\nIt asks for the secret:  {secret}\n")
        if not self._as_json and not self._quiet:
            self._line(f"Waiting {minutes:g} min for {len(tokens)}; Ctrl-C takes the tokens back.")

    def happened(self, event: WindowEvent) -> None:
        if self._quiet:
            return
        if self._as_json:
            self._object({"event": event.outcome, "device": event.device, "detail": event.detail})
        else:
            self._line(f"{event.device}: {event.detail}")

    def ended(self, joined: Sequence[str]) -> None:
        if self._as_json:
            self._object({"success": True, "joined": joined})

    def _object(self, told: Mapping[str, object]) -> None:
        self._line(msgspec.json.encode(told).decode())

    def _line(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
