"""The promises under faults, row by row, with real processes.

    python -m tests.faults --tier quick|nightly [--rows R1,R7] [--seed N] [--require-all]

A row whose facility is missing prints SKIPPED, and fails under --require-all. Ends with a line of totals; a row that
fails prints the command that plays it again.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import chain
from pathlib import Path

from tests.faults.rows import ROWS, Row
from tests.faults.scene import SkippedRowError, scene
from toolkit.failpoints import FAILPOINTS

NIGHTLY_SCALE = 4


def play(row: Row, *, seed: int, scale: int) -> tuple[str, str, set[str], int, float]:
    """Play one row.

    Returns: ``ok``, ``FAILED`` or ``SKIPPED``; what was seen; failpoints hit; seeds simulated; seconds.
    """
    began_s = time.monotonic()
    hit: set[str] = set()
    n_seeds = 0
    try:
        with scene(seed, scale) as stage:
            verdict, seen = "ok", row.play(stage)
            hit, n_seeds = stage.failpoints, stage.n_seeds
    except SkippedRowError as exc:
        verdict, seen = "SKIPPED", str(exc)
    except Exception as exc:  # noqa: BLE001 - the other rows are played all the same
        where = traceback.extract_tb(exc.__traceback__)[-1]
        verdict = "FAILED"
        seen = f"{type(exc).__name__}: {exc} ({Path(where.filename).name}:{where.lineno}: {where.line})"
    return verdict, seen, hit, n_seeds, time.monotonic() - began_s


def rows_of(name: str) -> list[str]:
    """Rows by the name of a promise: its own, or all that play it among others or in part, as R1+R3+R7 and R1F do R1."""
    if name in ROWS:
        return [name]
    return [row for row in ROWS if name in re.findall(r"[A-Z]\d+", row)]


def main(argv: list[str] | None = None) -> int:
    """Play a tier; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tier", choices=("quick", "nightly"), default="quick")
    parser.add_argument("--rows", default="", help="comma-separated; default: all of the tier")
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time (default: 2)")
    parser.add_argument("--require-all", action="store_true", help="a skipped row fails")
    args = parser.parse_args(argv)
    seed = int.from_bytes(os.urandom(4)) if args.seed is None else args.seed
    wanted = [name for name, row in ROWS.items() if row.quick or args.tier == "nightly"]
    if args.rows:
        found = {name: rows_of(name) for name in args.rows.split(",")}
        for name, rows in found.items():
            if not rows:
                parser.error(f"no row {name!r}; there are {', '.join(ROWS)}")
        wanted = list(dict.fromkeys(chain.from_iterable(found.values())))
    scale = 1 if args.tier == "quick" else NIGHTLY_SCALE
    verdicts: dict[str, list[str]] = {"ok": [], "FAILED": [], "SKIPPED": []}
    failpoints: set[str] = set()
    n_seeds = 0
    # Rows mostly wait for processes to come up: two at a time keep two cores busy.
    with ThreadPoolExecutor(args.jobs) as pool:
        playing = {pool.submit(play, ROWS[name], seed=seed, scale=scale): name for name in wanted}
        for played in as_completed(playing):
            name, (verdict, seen, hit, n_simulated, took_s) = playing[played], played.result()
            failpoints |= hit
            n_seeds += n_simulated
            verdicts[verdict].append(name)
            sys.stdout.write(f"{verdict:8}{name:12}{took_s:6.1f} s  {ROWS[name].what}: {seen}\n")
            if verdict == "FAILED":
                sys.stdout.write(
                    f"        again: python -m tests.faults --tier {args.tier} --rows {name} --seed {seed}\n"
                )
            sys.stdout.flush()
    if args.tier == "nightly" and not args.rows:
        missing = sorted(FAILPOINTS.keys() - failpoints)
        if missing:
            verdicts["FAILED"].append("failpoints")
            sys.stdout.write(f"FAILED  never hit: {', '.join(missing)}\n")
    sys.stdout.write(
        f"rows run {len(verdicts['ok']) + len(verdicts['FAILED'])} / skipped {len(verdicts['SKIPPED'])}"
        f" / seeds {seed} and {n_seeds} simulated / failpoints hit {len(failpoints)}\n"
    )
    failed = verdicts["FAILED"] or (args.require_all and verdicts["SKIPPED"])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
