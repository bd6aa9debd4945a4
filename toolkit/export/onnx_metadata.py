"""What a segment's ONNX file says of its exit to whoever opens it alone: key-value metadata, kept true after calibration."""

from __future__ import annotations

from collections.abc import Mapping

from toolkit.bundle.manifest import Exit
from toolkit.bundle.protobuf import encode_field, fields, text, view

_METADATA = 14
"""Field of ModelProto: repeated key (1) and value (2). Source: onnx.proto3."""
_KEY, _VALUE = 1, 2


def exit_properties(exit_: Exit) -> dict[str, str]:
    """What is told of an exit; a sample may leave where the gauge of the softmax, scaled by the temperature, passes."""
    told = {
        "hsee.exit": exit_.name,
        "hsee.policy": exit_.policy.kind,
        "hsee.threshold": f"{exit_.policy.threshold:.6g}",
        "hsee.temperature": f"{exit_.policy.temperature:.6g}",
    }
    if exit_.measured is not None:
        told["hsee.accuracy"] = f"{exit_.measured.accuracy:.6f}"
    return told


def with_properties(content: bytes, changes: Mapping[str, str]) -> bytes:
    """Replace or add key-value metadata of a serialised ONNX model; all else stays, and no ONNX package is needed.

    Raises: ValueError: it is no protocol buffer.
    """
    kept = [
        encode_field(number, value)
        for number, value in fields(memoryview(content))
        if number != _METADATA or _key_of(view(value)) not in changes
    ]
    added = [
        encode_field(_METADATA, encode_field(_KEY, key.encode()) + encode_field(_VALUE, word.encode()))
        for key, word in changes.items()
    ]
    return b"".join(kept + added)


def _key_of(entry: memoryview) -> str:
    return next((text(value) for number, value in fields(entry) if number == _KEY), "")
