"""Under test an agent keeps what it sends, so that a run's ledger can be held to it.

``HSEE_TAPE=FOLDER`` makes it write every payload into that folder before its first chunk leaves, in a file named by the
digest that the ledger will name. Nobody reads it but the judge: it is no outbox.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from toolkit.errors import writing
from toolkit.wire import frames
from toolkit.wire.messages import Payload, Weights

VARIABLE = "HSEE_TAPE"


def tape_from_environment() -> Callable[[bytearray], None] | None:
    """Make the tape that the environment asks for, if it asks for one."""
    folder = os.environ.get(VARIABLE, "")
    return Tape(Path(folder)).keep if folder else None


class Tape:
    """A folder of payloads; any number of agents may share it.

    Args:
        folder: made if missing.

    Raises: MachineError: the disk refuses it; so does :meth:`keep`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def keep(self, payload: bytearray) -> None:
        """Keep one rendering, whole or not at all."""
        header, _ = frames.decode(payload)
        if not isinstance(header, Payload | Weights):
            return
        path = self._folder / f"{header.sha256.hex()}.{header.device}.{header.round}.{header.seq}"
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        with writing(path):
            beside.write_bytes(payload)
            beside.replace(path)
