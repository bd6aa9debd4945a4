"""What a bundle says about itself: ``manifest.json``, typed and validated when made or read."""

from __future__ import annotations

import hashlib
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
VariantName = Literal["float32", "int8"]
Milliseconds = Annotated[float, Meta(ge=0)]
Points = Annotated[float, Meta(ge=-100, le=100)]
"""Percentage points of accuracy."""


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


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A segment's file in one number format, and what the exporter found out about it.

    Attributes:
        accuracy: of the segment's exit on the exporter's held-out samples, answering all; None without labels.
        ms: one sample, batch 1, one thread, median, on the machine that exported; both variants in one run.
    """

    name: VariantName
    file: FileName
    accuracy: Share | None
    ms: Milliseconds


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """One ONNX file of the cascade: stages in a row, and the exit behind them if there is one.

    Attributes:
        file: in float32; always there.
        activations: what the next segment takes, or what is offloaded; a segment that ends the network has none.
        n_macs: multiply-accumulates of one sample, exit included; 0 where nobody counted.
        variants: where there is more than ``file``: all of them, float32 first.
        default: the variant that the runtime loads unless told otherwise, and in words why.
    """

    file: FileName
    first_stage: Text
    last_stage: Text
    input: Port
    activations: Port | None = None
    exit: Exit | None = None
    n_parameters: Count = 0
    opset: Count = 0
    n_macs: Count = 0
    variants: Annotated[list[Variant], Meta(max_length=2)] = []
    default: VariantName = "float32"
    default_reason: str = ""

    @property
    def variant_names(self) -> tuple[VariantName, ...]:
        """Number formats that this segment is there in."""
        return tuple(variant.name for variant in self.variants) or ("float32",)

    def file_of(self, variant: VariantName | None = None) -> str:
        """Name the file of a variant, the default one for None.

        Raises: BundleError: this segment is not there in that format.
        """
        wanted = variant or self.default
        files = {"float32": self.file} | {v.name: v.file for v in self.variants}
        if wanted not in files:
            raise BundleError(
                f"{self.file} has no {wanted} variant, only {', '.join(files)}.",
                hint="hsee export --int8 makes one." if wanted == "int8" else "",
                variant=wanted,
            )
        return files[wanted]


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a threshold comes to on the calibration samples.

    Attributes:
        exit_rate: share answered by an exit that is sure.
        accuracy: of the whole policy; None where only the exits' own answers are known.
        drop: against the reference, points; ``drop_upper`` is its upper 95 % bound.
        mean_macs: multiply-accumulates a sample, with what unsure samples cost beyond this bundle where that is known.
        mean_ms: a sample, batch 1, of what runs on the machine that calibrated.
    """

    threshold: Annotated[float, Meta(gt=0, le=1)]
    exit_rate: Share
    accuracy: Share | None
    drop: Points
    drop_upper: Points
    mean_macs: Annotated[float, Meta(ge=0)]
    mean_ms: Milliseconds


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """How the thresholds were found.

    Attributes:
        data: which samples, in words, and ``n_samples`` of them.
        reference: what the drop is taken against, in words; ``reference_accuracy`` if that is known.
        target_drop: what was allowed, points.
        bound: how ``drop_upper`` is computed, in words.
        chosen: the point of ``curve`` whose threshold the exits have now.
        created: UTC, ISO 8601; ``machine`` timed it.
    """

    data: Text
    n_samples: Count
    reference: Annotated[str, Meta(max_length=1024)]
    reference_accuracy: Share | None
    target_drop: Annotated[float, Meta(gt=0, le=100)]
    bound: Annotated[str, Meta(max_length=1024)]
    chosen: Count
    curve: Annotated[list[CurvePoint], Meta(min_length=1, max_length=1024)]
    created: Text
    machine: Text

    def __post_init__(self) -> None:
        """Check that the chosen point is one of the curve.

        Raises: BundleError: it is not.
        """
        if self.chosen >= len(self.curve):
            raise BundleError(f"The calibration chose point {self.chosen} of {len(self.curve)}.")


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True):
    """What is done to raw input: ``(x - mean) / std`` per channel; channels stand first.

    ``value_range`` is the smallest and largest raw value that the exit was measured on.
    """

    mean: list[float]
    std: list[Annotated[float, Meta(gt=0)]]
    value_range: tuple[float, float]
    layout: Literal["CHW"] = "CHW"


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """Where the weights come from.

    Attributes:
        round: that the device's part was taken from.
        created: UTC, ISO 8601.
        weights: SHA-256 of the file with the device's part as it was trained.
        codec: in which its activations travelled in training.
    """

    run: Text
    device: Text
    model: Text
    cut: Text
    round: Count
    created: Text
    software: dict[str, str]
    weights: Digest | None = None
    codec: Text = "float32"

    def origin(self) -> bytes:
        """Name the device's part as trained: a digest of run, device, cut, round and weights (PROTOCOL.md 15).

        Raises: BundleError: the bundle does not say which weights it was made of.
        """
        if self.weights is None:
            raise BundleError(
                "This bundle does not name the weights that it was made of, so nobody can answer for it.",
                hint="Export it again with this version of hsee.",
            )
        words = ("hsee segment 1", self.run, self.device, self.cut, str(self.round), self.weights)
        return hashlib.sha256("\n".join(words).encode()).digest()


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle's manifest; ``segments`` stand in the order in which they run.

    ``n_macs_beyond`` is what a sample costs after the last segment on the final route, 0 where that is not known.
    """

    schema: Annotated[int, Meta(ge=1)] = SCHEMA
    class_names: Annotated[list[Text], Meta(min_length=2, max_length=65_536)]
    input_shape: Shape
    preprocessing: Preprocessing
    segments: Annotated[list[Segment], Meta(min_length=1, max_length=32)]
    provenance: Provenance
    n_macs_beyond: Count = 0
    calibration: Calibration | None = None
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
            if segment.default not in segment.variant_names or "float32" not in segment.variant_names:
                raise BundleError(f"{segment.file} is not there as {segment.default}, or not as float32.")
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
