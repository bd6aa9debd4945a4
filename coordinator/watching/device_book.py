"""What people call their devices: a label and groups for each, in one small file of the fleet's home.

A device id is an identity: a topic, an account, a folder of saved training. It never changes; its label may.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from toolkit.disk import FileLock, write_atomically
from toolkit.errors import ConfigError, RunError

BOOK_FILE = "devices.json"
MAX_LABEL_CHARACTERS = 64


class Named(msgspec.Struct):
    """What a device is called."""

    label: str = ""
    groups: list[str] = []


class DeviceBook(msgspec.Struct):
    """All that were ever named, by device id."""

    schema: int = 1
    devices: dict[str, Named] = {}

    def label(self, device: str) -> str:
        """A device's label; empty where it has none."""
        return self.devices[device].label if device in self.devices else ""

    def groups(self, device: str) -> list[str]:
        """A device's groups."""
        return self.devices[device].groups if device in self.devices else []


def read_book(home: Path) -> DeviceBook:
    """Read the book; it is empty where there is none.

    Raises: ConfigError: it is damaged.
    """
    path = home / BOOK_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=DeviceBook)
    except FileNotFoundError:
        return DeviceBook()
    except (OSError, msgspec.DecodeError) as exc:
        raise ConfigError(
            f"{path} can't be read: {exc}.", hint="Mend or remove it: it holds labels and groups only."
        ) from exc


@contextmanager
def changed_book(home: Path) -> Iterator[DeviceBook]:
    """Hand the book out to be changed, and write it at the block's end.

    Raises: ConfigError: it is damaged. RunError: another command changes it now. MachineError: the disk refuses it.
    """
    path = home / BOOK_FILE
    taken = RunError(f"Another command changes {path} now.", hint="Try again.")
    lock = FileLock(path.with_suffix(".lock"), taken=taken)
    try:
        book = read_book(home)
        yield book
        write_atomically(path, msgspec.json.format(msgspec.json.encode(book), indent=1))
    finally:
        lock.close()
