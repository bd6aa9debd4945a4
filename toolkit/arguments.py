"""The parser of commands that load no typer: a mistake is an error like any other, in words or as JSON."""

from __future__ import annotations

import argparse
from typing import NoReturn

from toolkit.errors import UsageError


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, but that it raises where the other prints and leaves."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the words.

        Raises: UsageError: always.
        """
        raise UsageError(f"{message[0].upper()}{message[1:]}.", hint=f"See {self.prog} --help.")
