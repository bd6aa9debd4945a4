"""How far a board's saved training has come, read without torch: what its first hello of a run tells."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

CURSOR = "cursor"
"""Name of the tensor that says how far training has come."""
_FILES = ("training.safetensors", "training.before.safetensors")
_MAX_HEADER_BYTES = 1 << 24


class _Tensor(msgspec.Struct):
    data_offsets: tuple[int, int]


def saved_place(folder: Path) -> tuple[int, int]:
    """Read (round, seq) of what a device saved of a run; (0, 0) where there is nothing that can be read.

    It is told to people and to the coordinator, and nothing is trained by it: whether what was saved is whole is looked
    at when it is taken up.
    """
    for name in _FILES:
        try:
            with (folder / name).open("rb") as file:
                (n_header,) = struct.unpack("<Q", file.read(8))
                header = file.read(n_header) if n_header <= _MAX_HEADER_BYTES else b""
                places = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
                first, _ = msgspec.json.decode(places[CURSOR], type=_Tensor).data_offsets
                file.seek(8 + n_header + first)
                round_, seq = struct.unpack("<2q", file.read(16))
        except (OSError, KeyError, ValueError, struct.error):
            continue
        if round_ >= 0 and seq >= 0:
            return round_, seq
    return 0, 0
