"""The console script: hands boards' commands on before typer is loaded, and turns errors into answers.

Only here is ``HseeError`` caught. Exit statuses: 0 ok, 1 failed, 2 usage, 3 config, 4 broker, 5 partial,
6 environment, 7 dismissed (refused or fenced), 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

from toolkit.errors import FULL, HseeError, MachineError, MissingPartError, UsageError, report_error

if TYPE_CHECKING:
    import argparse

    from toolkit.bundle.manifest import Manifest
    from toolkit.cli.offloading import BrokerOffloading

INTERRUPTED = 130
PARTS = {
    "PIL": "pictures",
    "amqtt": "broker",
    "cryptography": "access",
    "cv2": "camera",
    "onnx": "export",
    "onnxscript": "export",
    "paho": "agent",
    "safetensors": "agent",
    "torch": "agent",
    "torchvision": "datasets",
    "zstandard": "agent",
}
"""Import names of optional packages, and the part of hsee that brings each."""
TERMINATED = 143


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: its words, without the program's name; by default this process's.
    Returns: the exit status.
    """
    words = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = _run(words)
        sys.stdout.flush()
    except HseeError as exc:
        return report_error(exc, as_json="--json" in words)
    except (ImportError, MemoryError) as exc:
        lacking = _what_lacks(exc)
        if lacking is None:
            raise
        lacking.__cause__ = exc
        return report_error(lacking, as_json="--json" in words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone
        _drop_output()
        return 1
    except OSError as exc:
        # Files are written within toolkit.errors.writing; what is full here is where the output goes.
        if exc.errno not in FULL:
            raise
        _drop_output()
        full = MachineError(
            f"What this command prints can't be written: {exc.strerror}.",
            hint="Free some space on the disk that its output goes to.",
        )
        return report_error(full, as_json=False)
    return status


def _drop_output() -> None:
    """Let what is left in the buffer not complain at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _what_lacks(exc: ImportError | MemoryError) -> HseeError | None:
    """Say which part or how much memory a command lacks; None where an import failed for another reason."""
    if isinstance(exc, MemoryError):
        return MachineError(
            "This machine has too little free memory for that.",
            hint="End other programs, or give it less to do.",
        )
    if not isinstance(exc, ModuleNotFoundError):
        from toolkit.runtime.memory import error_of_import

        return error_of_import(exc)
    part = PARTS.get((exc.name or "").partition(".")[0])
    if part is None:
        return None
    return MissingPartError(
        f"This command needs the package {exc.name!r}, which is not installed.",
        hint=f"Install it with: pip install 'hsee[{part}]'",
        module=exc.name,
        part=part,
    )


def _run(words: list[str]) -> int:
    if words[:2] == ["agent", "start"]:
        from device_agent.__main__ import main as agent_start

        return agent_start(words[2:])
    if words[:1] == ["infer"]:
        from toolkit.runtime.__main__ import main as infer

        return infer(words[1:], _connect_offload)
    return _run_typer(words)


def _connect_offload(options: argparse.Namespace, manifest: Manifest) -> BrokerOffloading:
    """Load what offloading takes only where somebody offloads."""
    from toolkit.cli.offloading import connect_offload

    return connect_offload(options, manifest)


def _run_typer(words: list[str]) -> int:
    import typer

    from toolkit.cli.app import app

    try:
        status = app(words, prog_name="hsee", standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except typer.TyperException as exc:
        message = exc.format_message()
        if not message:  # no command was named, and help has been printed instead
            return UsageError.exit_status
        context = getattr(exc, "ctx", None)
        command = context.command_path if context is not None else "hsee"
        raise UsageError(
            message if message.endswith("?") else f"{message.rstrip('.')}.",
            hint=f"{command} -h shows what it takes.",
        ) from exc
    return status if isinstance(status, int) else 0


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    # An exception, so that every ``finally`` on the way out runs and no child is left behind.
    raise SystemExit(TERMINATED)


if __name__ == "__main__":
    sys.exit(main())
