"""Pictures from files of unknown origin, as arrays with channels first. Pillow is imported when one is read."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError, DataNotFoundError, HseeError, require
from toolkit.runtime.arrays import CHECK_PATH, DAMAGED, damaged, file_bytes, scale

MAX_PIXELS = 64 * 1024**2
"""Of one picture."""
PICTURE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Named one by one: Pillow would hand an EPS to another program.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, which Pillow's own conversion to grey uses


def read_picture(path: Path, *, fit: Sequence[int] | None = None) -> NDArray[np.float32]:
    """Read a picture.

    Args:
        path: a file in one of the formats of ``PICTURE_SUFFIXES``.
        fit: resize to this (C, H, W), C of 1 or 3, turning colour to grey or grey to colour; None leaves all as it is.
    Returns: (C, H, W) in [0, 1]: C is 1 for grey pictures, else 3 (a palette is resolved, transparency dropped).

    Raises:
        DataNotFoundError, DataError: missing, damaged, truncated, too large, or not a picture.
        MissingPartError: Pillow is not installed.
    """
    file_bytes(path)
    require("PIL", part="pictures", purpose="Reading pictures")
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise DataError(
                        f"{path} has {picture.width} x {picture.height} pixels, more than the {MAX_PIXELS} allowed."
                    )
                if picture.mode.startswith("I;16"):
                    values = np.asarray(picture, np.float32) / np.float32(65535)
                else:
                    grey = picture.mode in ("1", "L", "LA")
                    values = scale(np.asarray(picture.convert("L" if grey else "RGB")))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as exc:
        raise DataError(f"{path} is refused: {exc}.") from exc
    except HseeError:
        raise
    except DAMAGED as exc:
        raise damaged(path, exc) from exc
    planes = values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0)  # noqa: PLR2004 - height and width
    return np.ascontiguousarray(planes if fit is None else _fitted(planes, fit))


def list_class_folders(path: Path) -> dict[str, list[Path]]:
    """List a folder of class folders.

    Returns: class name to its pictures, both in the order of their names; a class may have none.
    Raises: DataNotFoundError, DataError: the folder is missing, can't be read, or has no pictures in class folders.
    """
    classes = {folder.name: list_pictures(folder) for folder in _children(path) if folder.is_dir()}
    if not any(classes.values()):
        raise DataError(
            f"{path} holds no pictures in class folders.",
            hint=f"Expected {path / 'CLASS NAME'}/picture.png, one folder a class ({', '.join(PICTURE_SUFFIXES)}).",
            path=str(path),
        )
    return classes


def list_pictures(path: Path) -> list[Path]:
    """List the pictures that lie directly in a folder, in the order of their names.

    Raises: DataNotFoundError: the folder is missing or can't be read.
    """
    return [file for file in _children(path) if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file()]


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    except FileNotFoundError as exc:
        raise DataNotFoundError(f"{folder} does not exist.", hint=CHECK_PATH, path=str(folder)) from exc
    except OSError as exc:
        raise DataNotFoundError(
            f"{folder} can't be read as a folder: {exc.strerror}.",
            hint="It must be a folder that this user may list.",
            path=str(folder),
        ) from exc


def _fitted(planes: NDArray[np.float32], shape: Sequence[int]) -> NDArray[np.float32]:
    from PIL import Image

    if len(shape) != 3 or shape[0] not in (1, 3):  # noqa: PLR2004 - C, H, W; grey or colour
        raise DataError(
            f"A picture can't be made to fit the shape {tuple(shape)}.",
            hint="Pictures have 1 or 3 channels: give samples of this shape as .npz.",
        )
    n_channels, height, width = shape
    if n_channels < len(planes):
        planes = np.tensordot(np.asarray(_LUMA, np.float32), planes, axes=1)[None]
    elif n_channels > len(planes):
        planes = np.repeat(planes, n_channels, axis=0)
    resized: list[NDArray[Any]] = [
        np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
        for plane in planes
    ]
    return np.stack(resized)
