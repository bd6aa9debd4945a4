"""``hsee infer``: answer samples with a bundle, without torch, and without a network unless a broker is named."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, Protocol, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.folder import Bundle, open_bundle
from toolkit.bundle.manifest import Manifest, VariantName
from toolkit.bundle.place import Place
from toolkit.bundle.signature import check_signature, pinned_key
from toolkit.errors import BundleSignatureError, HseeError, MachineError, UsageError, report_error
from toolkit.runtime.cascade import Answer, Answers, Begun, Cascade, Reply
from toolkit.runtime.exit_policy import POLICIES
from toolkit.runtime.placed import Placed
from toolkit.runtime.preprocess import n_far_outside
from toolkit.runtime.samples import Samples, read_batches

_EXAMPLE = """\
example:
  hsee infer runs/demo/export/dev1 picture.png
  hsee infer dev1.hsee picture.png
  hsee infer runs/demo/export/dev1 held_out.npz --batch 32 --json
  hsee infer dev1.hsee picture.png --broker 192.0.2.7:1883 --offload-deadline 200ms

SAMPLES is a picture, a folder of pictures or of class folders, .npz (x, and y if labels are known), .npy,
.csv (a flattened sample a row), or - for csv on standard input, answered row by row.
"""
_OFFLOAD_HELP = (
    "Ask the coordinator about samples of which no exit is sure: their activations leave this board, labels and inputs do "
    "not. No answer in time, or no link: the exit's own answer, marked 'fallback'."
)
_AHEAD = 16
"""Batches that go on while an earlier one waits for the coordinator."""
_LATEST_TIMES = 100_000
_INTERRUPTED = 130
_BROKEN_PIPE = 141


class Offloading(Protocol):
    """A way to the coordinator: asks, and says afterwards what came of it."""

    def __call__(self, h: NDArray[np.float32]) -> Callable[[], Sequence[Reply]]:
        """Ask; see :data:`toolkit.runtime.cascade.Offload`."""

    def summary(self) -> dict[str, Any]:
        """What came of it, for ``--json``."""

    def summary_line(self) -> str:
        """The same for people."""

    def close(self) -> None:
        """Leave the broker."""


Connect = Callable[[argparse.Namespace, Manifest], Offloading]
"""Makes the way to the coordinator; the runtime knows no link, so the command line brings it."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[0].upper()}{message[1:]}.", hint=f"See {self.prog} --help.")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)(ms|s)", text)
    if found is None or not float(found[1]) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 200ms or 1.5s")
    return float(found[1]) / (1000 if found[2] == "ms" else 1)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hsee infer",
        description="Answer samples with an exported bundle, on this machine; ask a coordinator only if one is named.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        type=Path,
        help="what hsee export wrote, folder or archive, or the place of hsee bundle install",
    )
    parser.add_argument("source", metavar="SAMPLES", help="what to answer")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="T",
        help="of the exit policy, in (0, 1], instead of the bundle's; for entropy a higher one lets more leave",
    )
    parser.add_argument("--policy", choices=POLICIES, help="instead of the bundle's; needs --threshold")
    parser.add_argument(
        "--variant", choices=get_args(VariantName), help="number format, instead of the bundle's default"
    )
    parser.add_argument(
        "--batch", type=_positive, default=1, metavar="N", help="samples at a time (default 1)"
    )
    parser.add_argument(
        "--threads", type=_positive, default=1, metavar="N", help="threads to use (default 1)"
    )
    parser.add_argument(
        "--fit", action="store_true", help="resize pictures and convert their colours to fit the model"
    )
    parser.add_argument(
        "--no-labels", action="store_true", help="do not look at labels, so do not report accuracy"
    )
    parser.add_argument(
        "--allow-unsigned",
        action="store_true",
        help="on a board that trusts an operator: run a bundle that this operator did not sign",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on standard output, nothing else"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="only the summary")
    _add_offload(parser.add_argument_group("offload", _OFFLOAD_HELP))
    return parser


def _add_offload(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--broker", metavar="HOST:PORT", help="the MQTT broker, or mqtts://HOST:PORT")
    group.add_argument(
        "--offload-deadline",
        type=_seconds,
        default=0.2,
        metavar="TIME",
        help="how long an answer is waited for: 200ms, 1.5s (default 200ms)",
    )
    group.add_argument("--fleet", help="the fleet this board belongs to")
    group.add_argument("--id", metavar="ID", help="this board's device id; default: the bundle's")
    group.add_argument("--username", help="account at the broker; default with a password: ID.infer")
    group.add_argument("--password-file", metavar="FILE", help="file with its password")
    group.add_argument("--ca-file", metavar="FILE", help="authority that signed the broker's certificate")
    group.add_argument(
        "--insecure",
        action="store_const",
        const=True,
        help="allow a broker off this machine without TLS and login",
    )


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

    def summary(self) -> dict[str, Any]:
        """Counts, times and, where labels are known, accuracies; for ``--json`` and for people."""
        p50, p95 = np.percentile(list(self._ms), [50, 95]).tolist()
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
    if "accuracy" in summary:
        sure = summary["accuracy_of_sure"]
        of_sure = f"; of the {summary['n_sure']} sure answers {sure:.1%}" if sure is not None else ""
        lines.append(f"accuracy: {summary['accuracy']:.1%} of all {n}{of_sure}")
    return lines


def _sample_record(name: str, answer: Answer, known: str | None) -> dict[str, Any]:
    record = {"name": name, **asdict(answer)}
    return record if known is None else {**record, "known": known}


class _Report:
    """Says each batch as it is done, in the order of the source, and the summary at the end."""

    def __init__(self, options: argparse.Namespace, cascade: Cascade) -> None:
        self._options = options
        self._cascade = cascade
        self._tally = _Tally(cascade)
        self._records: list[dict[str, Any]] = []
        self._n_far = 0

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
        if self._options.source == "-":
            sys.stdout.flush()

    def end(self, ways: Sequence[Offloading]) -> None:
        """Say the summary, and what came of asking the coordinator; of the last bundle if it was replaced meanwhile."""
        options, summary = self._options, self._tally.summary()
        if self._n_far:
            low, high = self._cascade.manifest.preprocessing.value_range
            _complain(
                f"note: {self._n_far} samples hold values far outside {low:g} to {high:g}, the range this bundle was "
                "measured on: are they scaled as the training data was?"
            )
        if options.json:
            facts = {**summary, "n_far_outside": self._n_far}
            if ways:
                facts["offload"] = ways[-1].summary()
            body = {"success": True, "samples": self._records, "summary": facts}
            _say(msgspec.json.encode(body).decode())
            return
        lines = _summary_lines(summary, batch=options.batch, threads=options.threads)
        _say("\n".join([*lines, *(way.summary_line() for way in ways[-1:])]))


def _infer(options: argparse.Namespace, connect: Connect | None) -> None:
    ways: list[Offloading] = []

    def make(bundle: Bundle) -> Cascade:
        if not options.allow_unsigned:
            _check_trusted(bundle)
        offloading = _offloading(options, bundle.manifest, connect)
        if offloading is not None:
            ways.append(offloading)
        return Cascade(
            bundle,
            offload=offloading,
            policy=options.policy,
            threshold=options.threshold,
            threads=options.threads,
            variant=options.variant,
        )

    place = Place.at(options.bundle)
    try:
        placed = None if place is None else Placed(place, make, _complain)
        cascade = make(open_bundle(options.bundle)) if placed is None else placed.cascade
        report = _Report(options, cascade)
        _answer(options, cascade, placed, report)
        report.end(ways)
    finally:
        for offloading in ways:
            offloading.close()


def _answer(options: argparse.Namespace, cascade: Cascade, placed: Placed | None, report: _Report) -> None:
    """Answer the source: a batch that waits for the coordinator does not hold up those behind it."""
    ahead = 0 if options.source == "-" else _AHEAD
    begun: deque[tuple[Samples, Begun]] = deque()
    for samples in read_batches(
        options.source,
        input_shape=cascade.input_shape,
        class_names=None if options.no_labels else cascade.class_names,
        batch=options.batch,
        fit=options.fit,
    ):
        begun.append((samples, cascade.begin(samples.x)))
        while begun and (len(begun) > ahead or not begun[0][1].waiting.size):
            done, batch = begun.popleft()
            report.add(done, batch.finish())
        if placed is not None:
            placed.answered()
            cascade = placed.cascade
    for done, batch in begun:
        report.add(done, batch.finish())


def _check_trusted(bundle: Bundle) -> None:
    """Where this board trusts an operator, take only what that one signed; whom it is for is not asked of a user.

    Raises: BundleSignatureError: it is not signed, or not by this one.
    """
    key = pinned_key()
    if key is None:
        return
    try:
        check_signature(bundle, key)
    except BundleSignatureError as exc:
        raise BundleSignatureError(
            exc.message,
            hint=f"{exc.hint} To run it all the same, this once: --allow-unsigned".strip(),
            **exc.facts,
        ) from exc


def _offloading(
    options: argparse.Namespace, manifest: Manifest, connect: Connect | None
) -> Offloading | None:
    if options.broker is None:
        return None
    if connect is None:
        raise UsageError(
            "This process knows no link, so it can't offload.", hint="Run it as: hsee infer ... --broker ..."
        )
    return connect(options, manifest)


def _known(samples: Samples, classes: Sequence[str]) -> list[str | None]:
    if samples.labels is None:
        return [None] * len(samples.names)
    return [classes[label] for label in samples.labels.tolist()]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _complain(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main(argv: Sequence[str], connect: Connect | None = None) -> int:
    """Run ``hsee infer``.

    Args:
        argv: without the program's name.
        connect: makes the way to the coordinator where a broker is named.
    Returns: the exit status.
    """
    as_json = "--json" in argv
    try:
        _infer(_parser().parse_args(argv), connect)
        sys.stdout.flush()
    except HseeError as exc:
        return report_error(exc, as_json=as_json)
    except MemoryError as exc:
        error = MachineError("There is not enough memory for this batch.", hint="Give a smaller --batch.")
        error.__cause__ = exc
        return report_error(error, as_json=as_json)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has seen enough; what is still buffered must not fail at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
