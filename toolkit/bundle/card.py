"""The model card of a bundle: README.md, for whoever finds the folder."""

from __future__ import annotations

from toolkit.bundle.manifest import Manifest, Segment

CARD_FILE = "README.md"


def model_card(manifest: Manifest) -> str:
    """Describe a bundle in Markdown: what it answers, how well, where it comes from, how to run it."""
    made = manifest.provenance
    low, high = manifest.preprocessing.value_range
    rows = "\n".join(_segment_row(segment) for segment in manifest.segments)
    software = ", ".join(f"{name} {version}" for name, version in sorted(made.software.items()))
    names = ", ".join(manifest.class_names[:20])
    more = len(manifest.class_names) - 20
    return f"""# {made.model}, cut after {made.cut}, trained on {made.device}

An early-exit classifier of {len(manifest.class_names)} classes: {names}{f" and {more} more" if more > 0 else ""}.

Run it with `hsee infer FOLDER SAMPLES`, where FOLDER is the one this file lies in.

| file | stages | exit | accuracy of all answers | sure answers | accuracy of these |
|---|---|---|---|---|---|
{rows}

- Input: float32 of shape {manifest.input_shape} (channels first), raw values from {low:g} to {high:g};
  the runtime normalises them with the mean and deviation in `manifest.json`.
{_exit_lines(manifest)}
{_variant_lines(manifest)}{_calibration_lines(manifest)}- Trained in run `{made.run}`, taken from round {made.round}, exported {made.created} ({software}).
- Every file's SHA-256 stands in `manifest.json` and is checked before the file is used.
"""


def _segment_row(segment: Segment) -> str:
    stages = segment.first_stage
    if segment.last_stage != segment.first_stage:
        stages += f" to {segment.last_stage}"
    if segment.exit is None:
        return f"| {segment.file} | {stages} | none | | | |"
    measured = segment.exit.measured
    if measured is None:
        return f"| {segment.file} | {stages} | {segment.exit.name} | not measured | | |"
    sure = "" if measured.sure_accuracy is None else f"{measured.sure_accuracy:.1%}"
    return (
        f"| {segment.file} | {stages} | {segment.exit.name} | {measured.accuracy:.1%} of {measured.n_samples} | "
        f"{measured.n_sure} | {sure} |"
    )


def _variant_lines(manifest: Manifest) -> str:
    lines = []
    for segment in manifest.segments:
        if segment.variants:
            each = ", ".join(f"{v.file} ({v.ms:.3g} ms)" for v in segment.variants)
            lines.append(f"- {each}: {segment.default} runs by default; {segment.default_reason}.\n")
    return "".join(lines)


def _calibration_lines(manifest: Manifest) -> str:
    record = manifest.calibration
    if record is None:
        return ""
    point = record.curve[record.chosen]
    return (
        f"- Calibrated {record.created} on {record.n_samples} {record.data}: {point.exit_rate:.1%} leave early, which "
        f"costs {point.drop:.2f} points, at most {point.drop_upper:.2f} at 95 % ({record.target_drop:g} were allowed).\n"
        f"  Held against {record.reference}. The curve is in `manifest.json`, drawn in `calibration.svg`.\n"
        "  The thresholds in `manifest.json` count; the ONNX files' own metadata still names those of the export.\n"
    )


def _exit_lines(manifest: Manifest) -> str:
    lines = []
    for segment in manifest.segments:
        if segment.exit is not None:
            policy = segment.exit.policy
            lines.append(
                f"- Exit `{segment.exit.name}`: policy {policy.kind}, threshold {policy.threshold:.4g} ({policy.origin})."
            )
            if segment.exit.measured is not None:
                lines.append(f"  Measured on {segment.exit.measured.data}.")
    return "\n".join(lines)
