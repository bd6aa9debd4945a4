"""Encode and decode of int8 with zstd against the library calls alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from tests.bench.wire_load import (
    SHAPE,
    activations,
)
from toolkit.wire import tensors


def bench_codec(_folder: Path) -> dict[str, Any]:
    """Encode and decode against the same calls of numpy and zstandard alone."""
    h = activations().h
    encoded = tensors.encode_activations("h", h, "int8+zstd")
    content = memoryview(encoded.content)
    n_scales = SHAPE[0]

    def library_encode() -> None:
        scales = np.maximum(np.abs(h).max(axis=(0, 2, 3), keepdims=True) / 127, np.finfo(np.float32).tiny)
        codes = np.rint(h / scales).astype(np.int8)
        zstandard.ZstdCompressor(level=1).compress(scales.tobytes() + codes.tobytes())

    def library_decode() -> None:
        raw = zstandard.ZstdDecompressor().decompress(content)
        scales = np.frombuffer(raw, "<f4", count=n_scales).reshape(1, n_scales, 1, 1)
        np.frombuffer(raw, np.int8, offset=4 * n_scales).reshape(h.shape).astype(np.float32) * scales

    ways: dict[str, Callable[[], object]] = {
        "encode": lambda: tensors.encode_activations("h", h, "int8+zstd"),
        "library_encode": library_encode,
        "decode": lambda: tensors.decode(encoded.spec, content),
        "library_decode": library_decode,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(30):
        for name, way in ways.items():
            began_s = time.perf_counter()
            way()
            times[name].append(1000 * (time.perf_counter() - began_s))
    found: dict[str, Any] = {f"{name}_ms": statistics.median(each) for name, each in times.items()}
    for name in ("encode", "decode"):
        pairs = zip(times[name], times[f"library_{name}"], strict=True)
        found[f"{name}_ratio"] = statistics.median(ours / bare for ours, bare in pairs)
    return found
