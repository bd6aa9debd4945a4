"""What ``hsee infer`` says: a line a sample, and a summary; or one JSON object."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from toolkit.runtime.cascade import Answer, Answers, Cascade
from toolkit.runtime.energy import EnergyMeter
from toolkit.runtime.options import Offloading, is_live
from toolkit.runtime.preprocess import n_far_outside
from toolkit.runtime.samples import Samples

_LATEST_TIMES = 100_000


class _Tally:
    """What the summary needs of all batches, in memory that does not grow with them."""

    def __init__(self, cascade: Cascade) -> None:
        self._cascade = cascade
        self._n = self._n_unsure = self._n_labelled = self._n_right = self._n_sure_right = 0
        self._n_offloaded = self._n_fallback = 0
        self._by_exit = np.zeros(len(cascade.exit_names), np.int64)
        self._ms: deque[float] = deque(maxlen=_LATEST_TIMES)

    def add(self, answers: Answers, labels: NDArray[np.int64] | None) -> None:
        """Count a batch in."""
        self._n += len(answers)
        self._n_unsure += int(np.count_nonzero(answers.unsure))
        self._n_offloaded += int(np.count_nonzero(answers.offloaded))
        self._n_fallback += int(np.count_nonzero(answers.fallback))
        self._by_exit += np.bincount(answers.exits, minlength=len(self._by_exit))
        self._ms.extend(answers.ms.tolist())
        if labels is not None:
            right = answers.index == labels
            self._n_labelled += len(labels)
            self._n_right += int(np.count_nonzero(right))
            self._n_sure_right += int(np.count_nonzero(right & ~answers.unsure))

    @property
    def n(self) -> int:
        """Samples counted in."""
        return self._n

    def summary(self) -> dict[str, Any]:
        """Counts, times and, where labels are known, accuracies; for ``--json`` and for people."""
        p50, p95 = _quantile(self._ms, 0.5), _quantile(self._ms, 0.95)
        by_exit = zip(self._cascade.exit_names, self._by_exit.tolist(), strict=True)
        summary: dict[str, Any] = {
            "n_samples": self._n,
            "answered_by": {name: n for name, n in by_exit if n},
            "n_unsure": self._n_unsure,
            "n_offloaded": self._n_offloaded,
            "n_answered": self._n_offloaded - self._n_fallback,
            "n_fallback": self._n_fallback,
            "ms_p50": p50,
            "ms_p95": p95,
            "policies": [asdict(policy) for policy in self._cascade.policies],
            "variants": self._cascade.variants,
            "bundle": {"folder": str(self._cascade.bundle.folder), "digest": self._cascade.bundle.digest},
        }
        if self._n_labelled:
            n_sure = self._n - self._n_unsure
            summary["n_sure"] = n_sure
            summary["accuracy"] = self._n_right / self._n_labelled
            summary["accuracy_of_sure"] = self._n_sure_right / n_sure if n_sure else None
        return summary


def _quantile(values: Iterable[float], share: float) -> float:
    """Read a quantile off a line through the sorted values; numpy's would load its masked arrays, for longer than an answer takes."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _line(name: str, answer: Answer, known: str | None) -> str:
    remarks = [
        word
        for word, holds in (
            ("unsure", answer.unsure),
            ("fallback", answer.fallback),
            (f"wrong: is {known}", known is not None and known != answer.label),
        )
        if holds
    ]
    line = f"{name:<24} {answer.label:<12} {answer.probability:6.1%}  {answer.exit:<12} {answer.ms:8.2f} ms"
    return "  ".join([line, ", ".join(remarks)]).rstrip()


def _summary_lines(summary: dict[str, Any], *, batch: int, threads: int) -> list[str]:
    n = summary["n_samples"]
    by_exit = ", ".join(
        f"{count} by {name} ({count / n:.1%})" for name, count in summary["answered_by"].items()
    )
    policies = ", ".join(f"{p['kind']} {p['threshold']:.4g}" for p in summary["policies"])
    lines = [
        f"{n} {'sample' if n == 1 else 'samples'}: {by_exit}; {summary['n_unsure']} unsure ({summary['n_unsure'] / n:.1%}; {policies})",
        f"time a sample: p50 {summary['ms_p50']:.2f} ms, p95 {summary['ms_p95']:.2f} ms (batch {batch}, threads {threads})",
    ]
    if "joules" in summary:
        joules = summary["joules"]
        lines.append(
            f"energy: {joules:.2f} J, {joules / n:.3g} J a sample, of the whole processor with all that ran on it"
        )
    if "accuracy" in summary:
        sure = summary["accuracy_of_sure"]
        of_sure = f"; of the {summary['n_sure']} sure answers {sure:.1%}" if sure is not None else ""
        lines.append(f"accuracy: {summary['accuracy']:.1%} of all {n}{of_sure}")
    return lines


def _sample_record(name: str, answer: Answer, known: str | None) -> dict[str, Any]:
    record = {"name": name, **asdict(answer)}
    return record if known is None else {**record, "known": known}


class Report:
    """Says each batch as it is done, in the order of the source, and the summary at the end."""

    def __init__(self, options: argparse.Namespace, cascade: Cascade) -> None:
        self._options = options
        self._cascade = cascade
        self._tally = _Tally(cascade)
        self._records: list[dict[str, Any]] = []
        self._n_far = 0
        self._meter = EnergyMeter()

    def add(self, samples: Samples, answers: Answers) -> None:
        """Say one batch."""
        self._tally.add(answers, samples.labels)
        self._n_far += n_far_outside(samples.x, *self._cascade.manifest.preprocessing.value_range)
        classes = self._cascade.class_names
        for name, answer, known in zip(samples.names, answers, _known(samples, classes), strict=True):
            if self._options.json:
                self._records.append(_sample_record(name, answer, known))
            elif not self._options.quiet:
                _say(_line(name, answer, known))
        if is_live(self._options.source):
            sys.stdout.flush()

    def end(self, ways: Sequence[Offloading]) -> None:
        """Say the summary, and what came of asking the coordinator."""
        if not self._tally.n:
            return
        options, summary = self._options, self._tally.summary()
        joules = self._meter.joules()
        if joules is not None:
            summary["joules"] = joules
        if self._n_far:
            low, high = self._cascade.manifest.preprocessing.value_range
            complain(
                f"note: {self._n_far} samples hold values far outside {low:g} to {high:g}, the range this bundle was "
                "measured on: are they scaled as the training data was?"
            )
        if options.json:
            facts = {**summary, "n_far_outside": self._n_far}
            if ways:
                facts["offload"] = ways[0].summary()
            body = {"success": True, "samples": self._records, "summary": facts}
            _say(msgspec.json.encode(body).decode())
            return
        lines = _summary_lines(summary, batch=options.batch, threads=options.threads)
        _say("\n".join([*lines, *(way.summary_line() for way in ways)]))


def _known(samples: Samples, classes: Sequence[str]) -> list[str | None]:
    if samples.labels is None:
        return [None] * len(samples.names)
    return [classes[label] for label in samples.labels.tolist()]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def complain(text: str) -> None:
    """Say what is no answer, on standard error."""
    sys.stderr.write(f"{text}\n")
