"""Fuzz every decoder: ``python -m tests.fuzz [--seconds 60] [--count N] [--targets frame,payload] [--seed N]``.

Ends with a line of totals and exit status 0, or with the input that was not stood, its error, and the one command that
replays it. Memory must stay within twice the largest payload.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path

from tests.fuzz.engine import Finding, Fuzzed
from tests.fuzz.targets import Target, make_targets
from toolkit.wire.limits import MAX_PAYLOAD_BYTES

CORPUS = Path(__file__).parent / "corpus"
MOST_BYTES = 2 * MAX_PAYLOAD_BYTES
TURN_S = 0.02
MAX_KEPT_BYTES = 2048


def corpus_of(name: str) -> list[bytes]:
    """Inputs that were kept of earlier runs, in a fixed order."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def peak_bytes() -> int:
    """Most memory that this process has held at once."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def fuzz(
    targets: dict[str, Target], *, seed: int, seconds: float, count: int
) -> tuple[list[Fuzzed], Finding | None, int]:
    """Fuzz targets in turns until time or count is up.

    Args:
        targets: by name.
        seed: of the mutations.
        seconds: 0 for no limit.
        count: of inputs in all; 0 for no limit.
    Returns: all that was tried, the first finding, and bytes by which the peak of memory grew.
    """
    fuzzed = [Fuzzed(name, target, seed, corpus_of(name)) for name, target in targets.items()]
    # What the decoders load on first use is not what an input costs.
    for one in fuzzed:
        one.run(0.0)
    before = peak_bytes()
    deadline_s = time.monotonic() + seconds if seconds else float("inf")
    while time.monotonic() < deadline_s:
        for one in fuzzed:
            finding = one.run(TURN_S)
            if finding is not None:
                return fuzzed, finding, peak_bytes() - before
        if count and sum(one.n_inputs for one in fuzzed) >= count:
            break
    return fuzzed, None, peak_bytes() - before


def write_corpus(fuzzed: list[Fuzzed]) -> None:
    """Keep the small inputs that reached something new."""
    for one in fuzzed:
        folder = CORPUS / one.name
        folder.mkdir(parents=True, exist_ok=True)
        for data in one.fresh:
            if len(data) <= MAX_KEPT_BYTES:
                (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--targets", default="", help="comma-separated; default: all")
    parser.add_argument("--replay", type=Path, help="one input of --targets NAME, from a file")
    parser.add_argument("--write-corpus", action="store_true", help="keep what reached something new")
    args = parser.parse_args(argv)
    targets = make_targets()
    wanted = args.targets.split(",") if args.targets else list(targets)
    unknown = [name for name in wanted if name not in targets]
    if unknown:
        parser.error(f"no target {unknown[0]!r}; there are {', '.join(targets)}")
    if args.replay is not None:
        targets[wanted[0]].decode(args.replay.read_bytes())
        return 0
    seed = int.from_bytes(os.urandom(4)) if args.seed is None else args.seed
    seconds = args.seconds or (0.0 if args.count else 60.0)
    began_s = time.monotonic()
    fuzzed, finding, grown = fuzz(
        {name: targets[name] for name in wanted}, seed=seed, seconds=seconds, count=args.count
    )
    n_inputs, n_refused = sum(f.n_inputs for f in fuzzed), sum(f.n_refused for f in fuzzed)
    reached = sum(len(f.reached) for f in fuzzed)
    sys.stdout.write(
        f"fuzz: seed {seed}, {len(fuzzed)} targets, {n_inputs} inputs, {n_refused} refused, {reached} places reached,"
        f" {time.monotonic() - began_s:.0f} s, memory grew by {grown / 2**20:.1f} MiB\n"
    )
    if args.write_corpus:
        write_corpus(fuzzed)
    if finding is not None:
        path = Path(f"fuzz-{finding.target}-{hashlib.sha256(finding.data).hexdigest()[:16]}")
        path.write_bytes(finding.data)
        sys.stdout.write(
            f"FOUND by {finding.target}: {finding.error}\n"
            f"replay: python -m tests.fuzz --targets {finding.target} --replay {path}\n"
        )
        return 1
    if grown > MOST_BYTES:
        sys.stdout.write(f"FOUND: memory grew by {grown} bytes; at most {MOST_BYTES} are allowed\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
