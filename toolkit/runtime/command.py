"""``hsee infer``: answer samples with a bundle, without torch, and without a network unless a broker is named."""

from __future__ import annotations

import argparse
import os
import sys
from collections import deque
from collections.abc import Sequence

from toolkit.bundle.folder import Bundle, open_bundle
from toolkit.bundle.manifest import Manifest
from toolkit.bundle.place import Place
from toolkit.bundle.signature import check_signature, pinned_key
from toolkit.errors import BundleSignatureError, HseeError, MachineError, UsageError, report_error
from toolkit.runtime.cascade import Begun, Cascade
from toolkit.runtime.memory import check_load
from toolkit.runtime.options import Connect, Offloading, is_live, make_parser
from toolkit.runtime.placed import Placed
from toolkit.runtime.report import Report, complain
from toolkit.runtime.samples import Samples, read_batches
from toolkit.runtime.self_test import memory_cap, try_in_child

_AHEAD = 16
"""Batches that go on while an earlier one waits for the coordinator."""
_INTERRUPTED = 130
_BROKEN_PIPE = 141


def _infer(options: argparse.Namespace, connect: Connect | None) -> None:
    ways: list[Offloading] = []
    place = Place.at(options.bundle)

    def make(bundle: Bundle) -> Cascade:
        if not options.allow_unsigned:
            _check_trusted(bundle)
        files = [segment.file_of(options.variant) for segment in bundle.manifest.segments]
        sizes = [bundle.manifest.files[file].n_bytes for file in files]
        check_load(sizes, where=str(bundle.folder), say=complain)
        if options.broker is not None and not ways:  # one way for this bundle and its successors
            ways.append(_connected(options, bundle.manifest, connect))
        return Cascade(
            bundle,
            offload=ways[0].about(bundle.manifest) if ways else None,
            policy=options.policy,
            threshold=options.threshold,
            threads=options.threads,
            variant=options.variant,
            # A place's bundle has had its self-test; any other may take what it likes only in a process of its own.
            before_growth=None if place is not None else lambda: _try_first(bundle),
        )

    try:
        placed = None if place is None else Placed(place, make, complain)
        cascade = make(open_bundle(options.bundle, check_all=False)) if placed is None else placed.cascade
        report = Report(options, cascade)
        try:
            _answer(options, cascade, placed, report)
        except KeyboardInterrupt:
            report.end(ways)  # a camera has no other end
            raise
        report.end(ways)
    finally:
        for offloading in ways:
            offloading.close()


def _answer(options: argparse.Namespace, cascade: Cascade, placed: Placed | None, report: Report) -> None:
    """Answer the source: a batch that waits for the coordinator does not hold up those behind it."""
    ahead = 0 if is_live(options.source) else _AHEAD
    n_begun = 0
    begun: deque[tuple[Samples, Begun]] = deque()
    for samples in read_batches(
        options.source,
        input_shape=cascade.input_shape,
        class_names=None if options.no_labels else cascade.class_names,
        batch=options.batch,
        fit=options.fit,
        stdin=options.stdin,
        stride=options.stride,
    ):
        if options.count is not None and n_begun >= options.count:
            break
        n_begun += len(samples.names)
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


def _try_first(bundle: Bundle) -> None:
    try_in_child(bundle.folder, cap_bytes=memory_cap(bundle.manifest))


def _connected(options: argparse.Namespace, manifest: Manifest, connect: Connect | None) -> Offloading:
    if connect is None:
        raise UsageError(
            "This process knows no link, so it can't offload.", hint="Run it as: hsee infer ... --broker ..."
        )
    return connect(options, manifest)


def main(argv: Sequence[str], connect: Connect | None = None) -> int:
    """Run ``hsee infer``.

    Args:
        argv: without the program's name.
        connect: makes the way to the coordinator where a broker is named.
    Returns: the exit status.
    """
    as_json = "--json" in argv
    try:
        _infer(make_parser().parse_args(argv), connect)
        sys.stdout.flush()
    except HseeError as exc:
        return report_error(exc, as_json=as_json)
    except MemoryError as exc:
        error = MachineError(
            "There is not enough memory for this bundle and a batch.",
            hint="Give a smaller --batch, or export a smaller bundle (--int8).",
        )
        error.__cause__ = exc
        return report_error(error, as_json=as_json)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has seen enough; what is still buffered must not fail at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    return 0
