"""What a bundle says about itself: ``manifest.json``, typed and validated when made or read."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from toolkit.errors import BundleError

SCHEMA = 1
MANIFEST_FILE = "manifest.json"
MAX_MANIFEST_BYTES = 8 * 1024**2
MAX_FILE_BYTES = 1024**3
MAX_FILES = 64

FileName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")]
"""A plain name: no separators, so that no file of a bundle lies outside its folder."""
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Text = Annotated[str, Meta(min_length=1, max_length=256)]
Size = Annotated[int, Meta(ge=1, le=2**31)]
Shape = Annotated[tuple[Size, ...], Meta(min_length=1, max_length=7)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
PolicyKind = Literal["entropy", "max_softmax", "margin"]


class FileEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Size and SHA-256 of a file of the bundle."""

    n_bytes: Annotated[int, Meta(ge=0, le=MAX_FILE_BYTES)]
    sha256: Digest


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output of an ONNX file: float32, ``shape`` is one sample's, the batch axis comes before it."""

    name: Text
    shape: Shape


class PolicyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """When an exit answers.

    Attributes:
        kind: what is measured of the softmax.
        threshold: entropy: answers below this normalised entropy; max_softmax, margin: answers from this value on.
        temperature: logits are divided by it before the softmax.
        origin: where the threshold comes from, in words.
    """

    kind: PolicyKind = "entropy"
    threshold: Annotated[float, Meta(gt=0, le=1)]
    temperature: Annotated[float, Meta(gt=0)] = 1.0
    origin: str


class ExitAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """How good an exit is on labelled samples that it was not trained on.

    Attributes:
        data: which samples, in words.
        n_samples: how many.
        accuracy: share answered right when the exit answers all.
        n_sure: those that its policy lets leave.
        sure_accuracy: share of these answered right; None if there are none.
    """

    data: str
    n_samples: Count
    accuracy: Share
    n_sure: Count
    sure_accuracy: Share | None


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """An exit: its name, the output with its logits, when it answers, and how well."""

    name: Text
    logits: Port
    policy: PolicyRecord
    measured: ExitAccuracy | None = None


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """One ONNX file of the cascade: stages in a row, and the exit behind them if there is one.

    ``activations`` is what the next segment takes, or what is offloaded; a segment that ends the network has none.
    """

    file: FileName
    first_stage: Text
    last_stage: Text
    input: Port
    activations: Port | None = None
    exit: Exit | None = None
    n_parameters: Count = 0
    opset: Count = 0


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True):
    """What is done to raw input: ``(x - mean) / std`` per channel; channels stand first.

    ``value_range`` is the smallest and largest raw value that the exit was measured on.
    """

    mean: list[float]
    std: list[Annotated[float, Meta(gt=0)]]
    value_range: tuple[float, float]
    layout: Literal["CHW"] = "CHW"


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where the weights come from; ``created`` is UTC, ISO 8601."""

    run: Text
    device: Text
    model: Text
    cut: Text
    round: Count
    created: Text
    software: dict[str, str]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle's manifest; ``segments`` stand in the order in which they run."""

    schema: Annotated[int, Meta(ge=1)] = SCHEMA
    class_names: Annotated[list[Text], Meta(min_length=2, max_length=65_536)]
    input_shape: Shape
    preprocessing: Preprocessing
    segments: Annotated[list[Segment], Meta(min_length=1, max_length=32)]
    provenance: Provenance
    files: Annotated[dict[FileName, FileEntry], Meta(max_length=MAX_FILES)] = {}

    def __post_init__(self) -> None:
        """Check what spans several fields.

        Raises: BundleError: the segments do not chain, or something has the wrong number of parts.
        """
        if len(set(self.class_names)) != len(self.class_names):
            raise BundleError("A class name stands twice in the manifest.")
        n_channels = self.input_shape[0]
        normalisation = [*self.preprocessing.mean, *self.preprocessing.std]
        if not len(self.preprocessing.mean) == len(self.preprocessing.std) == n_channels:
            raise BundleError(
                f"The manifest normalises another number of channels than the input's {n_channels}."
            )
        if not all(map(math.isfinite, normalisation)):
            raise BundleError("The manifest's normalisation holds NaN or Inf.")
        flowing: Shape | None = self.input_shape
        for segment in self.segments:
            if segment.input.shape != flowing:
                raise BundleError(
                    f"Segment {segment.file} takes {segment.input.shape}; what comes before it gives {flowing}."
                )
            if segment.exit is not None and segment.exit.logits.shape != (len(self.class_names),):
                raise BundleError(
                    f"The exit of {segment.file} gives {segment.exit.logits.shape}, not {len(self.class_names)} logits."
                )
            flowing = segment.activations.shape if segment.activations is not None else None
        if self.segments[-1].exit is None:
            raise BundleError("The last segment has no exit: nobody would answer.")


class _SchemaOnly(msgspec.Struct):
    schema: int


def encode_manifest(manifest: Manifest) -> bytes:
    """Write a manifest as indented JSON, for people to read too."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode_manifest(content: bytes, *, where: str) -> Manifest:
    """Read a manifest.

    Args:
        content: of ``manifest.json``.
        where: what messages call it.
    Raises: BundleError: not a manifest, of a newer version, or it contradicts itself.
    """
    try:
        schema = msgspec.json.decode(content, type=_SchemaOnly).schema
        if schema > SCHEMA:
            raise BundleError(
                f"{where} has schema {schema}; this hsee reads up to schema {SCHEMA}.",
                hint="Upgrade hsee on this machine, or export the bundle with an older version.",
                schema=schema,
                known=SCHEMA,
            )
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BundleError(
            f"{where} is not a valid manifest: {exc}.", hint="Export or copy the bundle again.", file=where
        ) from exc
