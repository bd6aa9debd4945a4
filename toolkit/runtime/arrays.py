"""Arrays from files of unknown origin: .npy and .npz, and values brought to float32.

What a header claims is checked against the file's size before memory is taken for it; nothing is ever unpickled.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from toolkit.errors import DataError, DataNotFoundError, HseeError

MAX_FILE_BYTES = 2 * 1024**3
"""Of a file, and of what it unpacks to."""

CHECK_PATH = "Check the path; it starts from the folder in which the command runs."
DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
"""What numpy, zipfile and Pillow raise at a file that is not what it says."""


def scale(array: NDArray[Any], *, name: str = "The array") -> NDArray[np.float32]:
    """Bring raw values to float32: bytes to [0, 1], floats as they are.

    Args:
        array: uint8, or any float type; any shape.
        name: what messages call it.
    Raises: DataError: another type, whose scale nobody knows.
    """
    if array.dtype == np.float32:
        return array
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind != "f":
        raise DataError(
            f"{name} holds values of type {array.dtype}; expected uint8 (0 to 255) or floats.",
            hint="Save it as uint8, or as float32 in the value range the model was trained on.",
            expected="uint8 or float",
            got=str(array.dtype),
        )
    with np.errstate(over="ignore"):  # an overflow becomes Inf, which is refused by name later
        return np.asarray(array, np.float32)


def open_npy(path: Path) -> NDArray[Any]:
    """Read a .npy file.

    Raises: DataNotFoundError, DataError: missing, damaged, too large, or it holds Python objects.
    """
    n_bytes = file_bytes(path)
    try:
        with path.open("rb") as stream:
            return _read_npy(stream, n_bytes, str(path))
    except HseeError:
        raise
    except DAMAGED as exc:
        raise damaged(path, exc) from exc


def open_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of a .npz file.

    Raises: DataNotFoundError, DataError: missing, damaged, too large when unpacked, or it holds Python objects.
    """
    file_bytes(path)
    try:
        with path.open("rb") as file:
            return read_npz(file, path)
    except PermissionError as exc:
        raise damaged(path, exc) from exc


def read_npz(file: IO[bytes], path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of an opened .npz file.

    Args:
        file: seekable.
        path: what messages call it.
    Raises: DataError: damaged, too large when unpacked, or it holds Python objects.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            _check_bytes(sum(m.file_size for m in members), path)
            arrays = {}
            for member in members:
                key = member.filename.removesuffix(".npy")
                with archive.open(member) as stream:
                    arrays[key] = _read_npy(stream, member.file_size, f"{key!r} of {path}")
            return arrays
    except HseeError:
        raise
    except DAMAGED as exc:
        raise damaged(path, exc) from exc


def file_bytes(path: Path) -> int:
    """Size of a file that is about to be read.

    Raises: DataNotFoundError, DataError: missing, unreadable, no file, empty, or larger than ``MAX_FILE_BYTES``.
    """
    try:
        n_bytes = path.stat().st_size
    except FileNotFoundError as exc:
        raise DataNotFoundError(f"{path} does not exist.", hint=CHECK_PATH, path=str(path)) from exc
    except OSError as exc:
        raise DataNotFoundError(f"{path} can't be read: {exc.strerror}.", path=str(path)) from exc
    if not path.is_file():
        raise DataError(f"{path} is not a file.", path=str(path))
    if n_bytes == 0:
        raise DataError(f"{path} is empty.", path=str(path))
    _check_bytes(n_bytes, path)
    return n_bytes


def damaged(path: Path, exc: Exception) -> DataError:
    """Say that a file can't be read, and why."""
    if isinstance(exc, PermissionError):
        return DataNotFoundError(f"{path} can't be read: permission denied.", path=str(path))
    return DataError(f"{path} is damaged or not what its name says: {exc}.", path=str(path))


def _check_bytes(n_bytes: int, path: Path) -> None:
    if n_bytes > MAX_FILE_BYTES:
        raise DataError(
            f"{path} takes {n_bytes} bytes, more than the {MAX_FILE_BYTES} allowed.",
            hint="Split it into smaller files.",
            path=str(path),
        )


def _read_npy(stream: IO[bytes], n_bytes: int, name: str) -> NDArray[Any]:
    version = npy.read_magic(stream)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise DataError(f"{name} holds Python objects, which are never loaded.", hint="Save plain arrays.")
    if math.prod(shape) * dtype.itemsize != n_bytes - stream.tell():
        raise DataError(f"{name} is truncated or damaged: its header says {shape} of {dtype}.")
    return np.ndarray(shape, dtype, stream.read(), order="F" if fortran else "C")
