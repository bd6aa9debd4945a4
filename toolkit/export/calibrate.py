"""Thresholds that keep a promise: the exits may cost at most so many points against the final route.

Temperature first, then one threshold for all exits of the cascade, chosen from a grid that is fixed beforehand. The
grid is walked from the strictest threshold on, and ends at the first whose upper 95 % bound of the drop is above the
target. So the promise holds although many thresholds are looked at (fixed sequence testing: Angelopoulos et al.,
Learn then Test, arXiv 2110.01052). The temperature, one number an exit, comes from the same samples; that is not
accounted for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec
import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.card import CARD_FILE
from toolkit.bundle.folder import Bundle, write_bundle
from toolkit.bundle.manifest import Calibration, ExitAccuracy, PolicyRecord
from toolkit.errors import BundleError, DataError, PartialError
from toolkit.export.chain import exits_of_bundle, load_chain
from toolkit.export.curve_svg import curve_svg
from toolkit.export.drop_bound import BOUND, samples_needed
from toolkit.export.kept_samples import KeptSamples, read_kept, sample_ids
from toolkit.export.onnx_metadata import exit_properties, with_properties
from toolkit.export.temperature import fit_temperature
from toolkit.export.threshold_curve import Leg, Reference, choose_point, trace_curve
from toolkit.export.timing import interleaved_ms
from toolkit.runtime.exit_policy import gauge, passes, probabilities
from toolkit.runtime.samples import Samples
from toolkit.runtime.segment import OnnxSegment

CURVE_FILE = "calibration.svg"
_TIMED_RUNS = 20

Rows = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a calibration came to: the bundle as it is now, the record in it, and one temperature an exit."""

    bundle: Bundle
    record: Calibration
    temperatures: tuple[float, ...]


def calibrate(
    bundle: Bundle,
    data: Samples | None,
    *,
    target_drop: float,
    data_name: str = "",
    machine: str = "",
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Calibrated:
    """Find temperatures and thresholds, and write them, the whole curve and its drawing into the bundle.

    Args:
        bundle: in a folder; what runs by default is calibrated.
        data: raw held-out samples; None takes what the export kept of its own.
        target_drop: points of accuracy that may be lost.
        data_name: what the record calls ``data``.
        machine: that times it, in words.
        now: the time.

    Raises:
        BundleError: an archive, or a bundle that kept no samples where none are given.
        DataError: too few samples to promise so little, or nothing to compare answers with.
        PartialError: no threshold keeps the target; nothing is changed.
        MachineError: the bundle can't be written.
    """
    if not bundle.folder.is_dir():
        raise BundleError(
            f"{bundle.folder} is an archive, which is never changed.",
            hint="Calibrate the folder that it was made of, with --archive.",
        )
    chain = load_chain(bundle)
    kept = _known(bundle, chain, data)
    needed = samples_needed(target_drop / 100)
    if len(kept) < needed:
        raise DataError(
            f"Too few samples: {len(kept)}. To promise a drop of at most {_points(target_drop)} at 95 %, at least "
            f"{needed} are needed, even if none is lost.",
            hint="Give more held-out samples with --data, or allow a larger --target-drop.",
            n_samples=len(kept),
            needed=needed,
        )
    reference = make_reference(kept)
    temperatures = tuple(fit_temperature(logits, reference.truth) for logits in kept.exits)
    kind = next(s.exit.policy.kind for s in bundle.manifest.segments if s.exit is not None)
    gauged = [
        gauge(kind, probabilities(logits, temperature=t))
        for logits, t in zip(kept.exits, temperatures, strict=True)
    ]
    curve = trace_curve(
        kind,
        gauged,
        [logits.argmax(axis=1) for logits in kept.exits],
        reference,
        legs=_legs(bundle, chain),
        macs_beyond=bundle.manifest.n_macs_beyond,
    )
    chosen = choose_point(curve, target_drop)
    if chosen is None:
        best = min((p.drop_upper for p in curve if p.exit_rate > 0), default=100.0)
        raise PartialError(
            f"No threshold that lets samples leave early keeps the drop within {_points(target_drop)} on {len(kept)} "
            f"samples: the upper 95 % bound is {best:.2f} points at best. The bundle is as it was.",
            hint="Give more held-out samples, or allow a larger --target-drop.",
            n_samples=len(kept),
        )
    name = data_name if data is not None else f"held-out samples of {bundle.manifest.provenance.device}"
    record = Calibration(
        data=name or "samples given",
        n_samples=len(kept),
        reference=reference.origin,
        reference_accuracy=reference.accuracy,
        target_drop=target_drop,
        bound=BOUND,
        chosen=chosen,
        curve=curve,
        created=now().isoformat(timespec="seconds"),
        machine=machine or "not named",
    )
    sure = [passes(kind, of_exit, curve[chosen].threshold) for of_exit in gauged]
    measured = _accuracies(kept, sure, record.data)
    return Calibrated(_write(bundle, record, temperatures, measured), record, temperatures)


def make_reference(kept: KeptSamples) -> Reference:
    """Decide what to hold the cascade against: its last exit, the kept final route, or at worst the labels.

    Raises: DataError: a one-exit bundle, and neither labels nor the final route's answers are known.
    """
    logits, origin = kept.reference, kept.reference_origin
    if logits is None and len(kept.exits) > 1:
        logits, origin = kept.exits[-1], "the last exit of the cascade"
    if logits is None:
        if kept.labels is None:
            raise DataError(
                "There is nothing to compare this exit with: no labels, and no answers of the final route.",
                hint="Give labelled samples.",
            )
        return Reference(
            np.ones(len(kept), np.bool_),
            kept.labels,
            None,
            "the labels: the server's accuracy is unknown here, so it is taken to be always right, and the drop told "
            "is the largest possible",
            None,
        )
    answers = logits.argmax(axis=1)
    if kept.labels is None:
        return Reference(
            np.ones(len(kept), np.bool_),
            answers,
            answers,
            f"{origin}; no labels: its answers are taken for right",
            None,
        )
    right = answers == kept.labels
    return Reference(right, kept.labels, answers, origin, float(right.mean()))


def _known(bundle: Bundle, chain: Sequence[OnnxSegment], data: Samples | None) -> KeptSamples:
    """What is known of the samples: the export's own record of them, or the exits run anew on ``data``."""
    kept = read_kept(bundle)
    if data is None:
        if kept is None:
            raise BundleError(
                f"{bundle.folder} keeps no samples of its export.", hint="Give some: --data npz:FILE"
            )
        return kept
    exits = tuple(exits_of_bundle(chain, bundle, data.x))
    ids = sample_ids(data.x)
    reference, origin = None, ""
    if kept is not None and kept.reference is not None:
        place = {int(id_): row for row, id_ in enumerate(kept.ids)}
        rows = [place.get(int(id_)) for id_ in ids]
        if None not in rows:  # all of them or none: a mixture would be two references
            reference = kept.reference[np.asarray(rows, np.int64)]
            origin = kept.reference_origin
    return KeptSamples(ids, exits, data.labels, reference, origin)


def _legs(bundle: Bundle, chain: Sequence[OnnxSegment]) -> list[Leg]:
    def timed(segment: OnnxSegment) -> Callable[[], object]:
        sample = np.random.default_rng(0).standard_normal((1, *segment.record.input.shape)).astype(np.float32)
        record = segment.record
        ports = [] if record.exit is None else [record.exit.logits]
        ports += [] if record.activations is None else [record.activations]
        return lambda: segment.run(sample, *ports)

    timings = interleaved_ms([timed(segment) for segment in chain], n_times=_TIMED_RUNS)
    return [
        # At the network's end nobody leaves early.
        Leg(segment.n_macs, taken_ms, gated=segment.exit is not None and segment.activations is not None)
        for segment, taken_ms in zip(bundle.manifest.segments, timings, strict=True)
    ]


def _accuracies(kept: KeptSamples, sure: Sequence[Rows], data: str) -> list[ExitAccuracy | None]:
    """How good each exit is alone, on all samples and on those that it is sure of."""
    if kept.labels is None:
        return [None] * len(sure)
    measured: list[ExitAccuracy | None] = []
    for logits, of_exit in zip(kept.exits, sure, strict=True):
        right = logits.argmax(axis=1) == kept.labels
        measured.append(
            ExitAccuracy(
                data=f"{data}; the threshold was chosen on them",
                n_samples=len(kept),
                accuracy=float(right.mean()),
                n_sure=int(np.count_nonzero(of_exit)),
                sure_accuracy=float(right[of_exit].mean()) if of_exit.any() else None,
            )
        )
    return measured


def _write(
    bundle: Bundle,
    record: Calibration,
    temperatures: Sequence[float],
    measured: Sequence[ExitAccuracy | None],
) -> Bundle:
    point = record.curve[record.chosen]
    origin = (
        f"calibrated {record.created[:10]} on {record.n_samples} {record.data}: drop {point.drop:.2f} points, at most "
        f"{point.drop_upper:.2f} at 95 % (allowed {record.target_drop:g}), against {record.reference}"
    )
    files = {name: bundle.read(name) for name in bundle.manifest.files if name != CARD_FILE}
    segments = []
    found = zip(temperatures, measured, strict=True)
    for segment in bundle.manifest.segments:
        if segment.exit is None:
            segments.append(segment)
            continue
        temperature, accuracy = next(found)
        policy = PolicyRecord(
            kind=segment.exit.policy.kind, threshold=point.threshold, temperature=temperature, origin=origin
        )
        exit_ = msgspec.structs.replace(segment.exit, policy=policy, measured=accuracy)
        segments.append(msgspec.structs.replace(segment, exit=exit_))
        for variant in segment.variant_names:
            file = segment.file_of(variant)
            files[file] = with_properties(files[file], exit_properties(exit_))
    manifest = msgspec.structs.replace(bundle.manifest, segments=segments, calibration=record)
    files[CURVE_FILE] = curve_svg(record).encode()
    return write_bundle(bundle.folder, manifest, files, replace=True)


def _points(number: float) -> str:
    return f"{number:g} {'point' if number == 1 else 'points'}"
