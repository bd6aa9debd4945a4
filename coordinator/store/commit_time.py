"""How long a commit takes on the disk that holds the run: a plan counts it, for nobody is served meanwhile."""

from __future__ import annotations

import hashlib
import statistics
import time
from contextlib import suppress
from pathlib import Path

from toolkit.disk import SYSTEM_DISK, make_folder_durably
from toolkit.nn.weights import content_of
from toolkit.nn.zoo import build_network
from toolkit.wire.job import ModelSpec

_TIMES = 3
_FOLDER = "timing"


def time_commit_ms(folder: Path, model: ModelSpec) -> float:
    """Write, sync and rename a model and its momentum as a checkpoint does, and remove it again.

    Strategies that keep a copy a device commit more than that; which, nobody knows before there is a plan.

    Args:
        folder: on the run's disk; made if missing.
        model: that will be trained.
    Returns: the median of three, ms; 0 where the disk refuses it, for the real commit will say so.
    """
    network = build_network(model, seed=0)
    tensors = dict(network.named_parameters())
    tensors |= {f"momentum/{name}": tensor for name, tensor in tensors.items()}
    times_s: list[float] = []
    place, disk = folder / _FOLDER, SYSTEM_DISK
    with suppress(OSError):
        make_folder_durably(folder)
        for _ in range(_TIMES):
            began_s = time.monotonic()
            content = content_of(tensors)
            hashlib.sha256(content)
            beside = place.with_name(f"{_FOLDER}.new")
            disk.make_folder(beside)
            disk.write(beside / "model", content)
            disk.sync(beside / "model")
            disk.sync_folder(beside)
            disk.rename(beside, place)
            disk.sync_folder(folder)
            times_s.append(time.monotonic() - began_s)
            disk.remove(place)
    for left in (place, place.with_name(f"{_FOLDER}.new")):
        with suppress(OSError):
            disk.remove(left)
    return statistics.median(times_s) * 1e3 if times_s else 0.0
