"""Every error hsee raises on purpose: a stable code, an exit status, and what to do next.

Exit statuses: 0 ok, 1 failed, 2 usage, 3 config, 4 broker, 5 partial, 6 environment, 7 dismissed (a service manager must
not start it again), 130/143 interrupted.
Only the command line catches ``HseeError``; ``HSEE_DEBUG=1`` brings the traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar


class HseeError(Exception):
    """Root of the tree.

    Args:
        message: what went wrong and where, in one sentence.
        hint: what to type or change next; empty: the class's usual one, if it has any.
        facts: the values behind the message, for callers and ``--json``.
    """

    code: ClassVar[str] = "HSEE-E000"
    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    usual_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "", **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint
        self.facts = facts

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class UsageError(HseeError, ValueError):
    """A command or call was given something that makes no sense."""

    code = "HSEE-E200"
    exit_status = 2


class ConfigError(HseeError, ValueError):
    """A configuration file, variable or flag is wrong; facts name file, line and key."""

    code = "HSEE-E300"
    exit_status = 3


class ProfileError(ConfigError):
    """A profile file is missing, damaged, or for another model."""

    code = "HSEE-E310"


class PlanError(HseeError, ValueError):
    """No cut layer satisfies the limits; facts name the constraint that failed."""

    code = "HSEE-E320"
    exit_status = 3


class DataError(HseeError, ValueError):
    """A data source can't be used for what was asked."""

    code = "HSEE-E110"


class DataNotFoundError(DataError, FileNotFoundError):
    """A data source is not there or can't be read."""

    code = "HSEE-E111"


class ShapeError(DataError):
    """An array has another shape or type than the model takes; facts: expected, got."""

    code = "HSEE-E112"


class ModelError(HseeError, ValueError):
    """An unknown model, or options it does not take."""

    code = "HSEE-E120"


class CutError(ModelError):
    """A cut layer that the model does not have or that can't be cut."""

    code = "HSEE-E121"


class ExitPolicyError(HseeError, ValueError):
    """A threshold or policy that can't gate an exit."""

    code = "HSEE-E122"


class StrategyError(HseeError, ValueError):
    """An unknown strategy, or one that answers out of its contract."""

    code = "HSEE-E123"


class TrainingError(HseeError, ArithmeticError):
    """Training can't go on; facts name device, round and step."""

    code = "HSEE-E125"


class ProtocolError(HseeError):
    """Abstract: somebody broke PROTOCOL.md."""

    code = "HSEE-E130"


class LocalProtocolError(ProtocolError, RuntimeError):
    """We broke it: a bug of ours."""

    code = "HSEE-E131"


class RemoteProtocolError(ProtocolError, ValueError):
    """They broke it: drop the message, count it, go on."""

    code = "HSEE-E132"


class BundleError(HseeError, ValueError):
    """A bundle is damaged, incomplete, or of a version this runtime does not know."""

    code = "HSEE-E140"


class BundleDigestError(BundleError):
    """A file of the bundle is not the one its manifest names; facts: file, expected, got."""

    code = "HSEE-E141"


class BundleMissingError(BundleError, FileNotFoundError):
    """A bundle has no such file."""

    code = "HSEE-E143"


class BundleSignatureError(BundleError, PermissionError):
    """A bundle is not what the pinned operator's key signed, or not for this device; facts: key."""

    code = "HSEE-E142"


class RunError(HseeError):
    """A run can't start, go on, or be read."""

    code = "HSEE-E150"


class RefusedError(RunError, PermissionError):
    """The coordinator refused this device; facts: reason."""

    code = "HSEE-E151"
    exit_status = 7


class FencedError(RunError):
    """Another process took over this device id; this one stops for good."""

    code = "HSEE-E152"
    exit_status = 7


class CheckpointError(RunError, ValueError):
    """Saved state is damaged or does not fit."""

    code = "HSEE-E153"


class DamagedError(CheckpointError):
    """Bytes of saved state are not those that were written."""

    code = "HSEE-E154"
    usual_hint = "Put the folder back from a copy of it, or begin again under another name."


class BrokerError(HseeError, ConnectionError):
    """The broker can't be used."""

    code = "HSEE-E400"
    exit_status = 4


class BrokerUnreachableError(BrokerError):
    """Nobody answers at that host and port."""

    code = "HSEE-E401"
    retryable = True


class BrokerLoginError(BrokerError, PermissionError):
    """The broker refused the login."""

    code = "HSEE-E402"


class InsecureBrokerError(BrokerError):
    """Off loopback without TLS or credentials, and no flag said so."""

    code = "HSEE-E403"


class IdentityConflictError(BrokerError):
    """Two processes use one client id and evict each other."""

    code = "HSEE-E404"


class PacketTooLargeError(BrokerError, ValueError):
    """A message exceeds the broker's packet limit; facts: n_bytes, limit_bytes."""

    code = "HSEE-E405"


class BrokerTlsError(BrokerError):
    """The broker can't be trusted, or does not speak TLS at that port."""

    code = "HSEE-E406"


class BrokerLostError(BrokerError):
    """A connection that stood is gone; the link is making another."""

    code = "HSEE-E407"
    retryable = True


class PartialError(HseeError):
    """Only a part of what was asked came about: too few devices, say."""

    code = "HSEE-E500"
    exit_status = 5


class MachineError(HseeError, OSError):
    """The machine lacks something: disk, memory, permission, time."""

    code = "HSEE-E600"
    exit_status = 6


class MissingPartError(HseeError, ImportError):
    """An optional part is not installed; the hint is the command that installs it."""

    code = "HSEE-E601"
    exit_status = 6


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Say the nearest known word as a question, or list what is known.

    Args:
        word: what the user wrote.
        known: what would have been right.
    Returns: one short sentence.
    """
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(names)}." if names else ""


def require(module: str, *, part: str, purpose: str) -> None:
    """Check that an optional package is installed, without importing it.

    Args:
        module: its import name.
        part: the extra of hsee that brings it.
        purpose: what it is needed for, as a noun phrase.
    Raises: MissingPartError: it is not installed.
    """
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise MissingPartError(
            f"{purpose} needs the package {module!r}, which is not installed.",
            hint=f"Install it with: pip install 'hsee[{part}]'",
            module=module,
            part=part,
        )


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when a disk has no room left."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate what the system says when it won't let something be written below ``path``.

    Raises: MachineError: the disk is full, or the place can't be written to; facts: path, errno, and free_bytes of a
        full disk.
    """
    try:
        yield
    except HseeError:  # some are an OSError too
        raise
    except OSError as exc:
        hint = (
            "Free some space on that disk. What was saved before is whole."
            if exc.errno in FULL
            else "Check the path and who may write there, or choose another folder with --home."
        )
        free_bytes = _free_bytes(path) if exc.errno == errno.ENOSPC else None
        left = "" if free_bytes is None else f"; {free_bytes} bytes are free there"
        raise MachineError(
            f"{path} can't be written: {exc.strerror or exc}{left}.",
            hint=hint,
            path=str(path),
            errno=exc.errno,
            free_bytes=free_bytes,
        ) from exc


def _free_bytes(path: Path) -> int | None:
    """What may still be written to a path's disk; None where nobody can say."""
    for folder in path.absolute().parents:
        with suppress(OSError):
            found = os.statvfs(folder)
            return found.f_bavail * found.f_frsize
    return None


def report_error(error: HseeError, *, as_json: bool) -> int:
    """Answer a command's user: on stderr in words, or on stdout as a line of JSON; a traceback only under HSEE_DEBUG=1.

    Returns: the error's exit status.
    """
    try:
        _report(error, as_json=as_json)
    except MemoryError:  # nothing can be loaded or built any more: what is there already must do
        os.write(2, b"error: no memory is left, not even to say what for\n")
    except OSError:  # the stream takes nothing any more: the status has to tell it
        return error.exit_status
    return error.exit_status


def _report(error: HseeError, *, as_json: bool) -> None:
    from toolkit.journal import in_journal, is_journal, printable

    if os.environ.get("HSEE_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    if as_json:
        import json

        told = {"code": error.code, "message": error.message, "hint": error.hint}
        sys.stdout.write(json.dumps({"success": False, "error": told}) + "\n")
    else:
        plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        error_word, fix_word = (
            ("error:", "fix:") if plain else ("\x1b[1;31merror:\x1b[0m", "\x1b[1;31mfix:\x1b[0m")
        )
        text = f"{error_word} {printable(error.message)} ({error.code})"
        if error.hint:
            text += f"\n{fix_word}   {printable(error.hint)}"
        sys.stderr.write((in_journal(text, "error") if is_journal(sys.stderr) else text) + "\n")
