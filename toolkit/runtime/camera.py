"""Frames of a camera or a video file, by OpenCV where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from toolkit.errors import DataError, DataNotFoundError, require
from toolkit.runtime.arrays import CHECK_PATH, scale
from toolkit.runtime.labels import Sample

CAMERA = "camera:"
"""How a source that is a camera begins."""
_COLOURS = {1: "COLOR_BGR2GRAY", 3: "COLOR_BGR2RGB"}


def camera_frames(which: str, shape: tuple[int, ...]) -> Iterator[Sample]:
    """Read frames, each resized and its colours converted to fit; a camera's have no end.

    Args:
        which: the camera's number, a device, or a video file.
        shape: (C, H, W), C of 1 or 3.

    Raises:
        DataNotFoundError: there is no such camera or file, or nothing comes of it.
        DataError: the model takes no pictures.
        MissingPartError: OpenCV is not installed.
    """
    require("cv2", part="camera", purpose="Reading a camera")
    if len(shape) != 3 or shape[0] not in _COLOURS:  # noqa: PLR2004 - C, H, W
        raise DataError(
            f"The model takes samples of shape {shape}, which no camera gives.",
            hint="A camera gives pictures of 1 or 3 channels.",
        )
    import cv2

    is_file = not which.isdecimal()
    if is_file and not Path(which).exists():
        raise DataNotFoundError(f"{which} does not exist.", hint=CHECK_PATH, path=which)
    capture = cv2.VideoCapture(which if is_file else int(which))
    n_channels, height, width = shape
    number = 0
    try:
        while True:
            there, frame = capture.read()
            if not there:
                break
            number += 1
            sized = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
            coloured = cv2.cvtColor(sized, getattr(cv2, _COLOURS[n_channels]))
            planes = np.moveaxis(np.atleast_3d(coloured), 2, 0)
            yield Sample(f"frame {number}", np.ascontiguousarray(scale(planes)), None)
    finally:
        capture.release()
    if not number:
        raise DataNotFoundError(
            f"No frame comes from the camera {which!r}.",
            hint="Check that it is plugged in, that this user may read it (group 'video'), and that nobody else does.",
            path=which,
        )
