"""``python -m toolkit.runtime``, and what the console script calls for ``hsee infer``: room first, then numpy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from toolkit.errors import MachineError, report_error
from toolkit.runtime.memory import error_of_import, prepare_start

if TYPE_CHECKING:
    from toolkit.runtime.options import Connect


def main(argv: Sequence[str], connect: Connect | None = None) -> int:
    """Run ``hsee infer``; see :func:`toolkit.runtime.command.main`.

    Args:
        argv: without the program's name.
        connect: makes the way to the coordinator where a broker is named.
    Returns: the exit status.
    """
    try:
        prepare_start()
        from toolkit.runtime.command import main as infer
    except MachineError as exc:
        return report_error(exc, as_json="--json" in argv)
    except (ImportError, MemoryError) as exc:
        error = error_of_import(exc)
        if error is None:
            raise
        error.__cause__ = exc
        return report_error(error, as_json="--json" in argv)
    return infer(argv, connect)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
