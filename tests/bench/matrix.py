"""Rows of a table, each one ``hsee simulate``: run what is missing, keep what is done, bring it together.

A folder holds the JSON of every finished run. Killed and started again, a script goes on; several may share a folder.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.disk import FileLock, write_atomically
from toolkit.errors import RunError

ROOT = Path(__file__).parents[2]
TRAINED = {
    "Sequential": ("--strategy", "sequential"),
    "Averaging": ("--strategy", "averaging"),
    "Consolidated (ours)": ("--strategy", "consolidated"),
    "centralised: all data in one place": ("--baseline", "centralised"),
    "local only: whole network, one device's data": ("--baseline", "local"),
    "FedAvg, every round": ("--baseline", "fedavg"),
    "SplitFed, gradients returned, shared server": ("--baseline", "splitfed-shared"),
    "SplitFed, gradients returned, a server copy a device": ("--baseline", "splitfed-per-device"),
}
"""What a row is called in tables, and the flags that train it."""


@dataclass(frozen=True)
class Row:
    """One run: the table's row that it belongs to, a name for its files, and what ``hsee simulate`` is given."""

    name: str
    file_name: str
    arguments: tuple[str, ...]


def say(text: str) -> None:
    """Print a line at once, for whoever follows along."""
    print(text, flush=True)  # noqa: T201 - it is what a bench is for


def run(row: Row, folder: Path) -> None:
    """Run one row, unless it is done or another process is at it; the cost is kept and printed.

    Raises: RunError: the command failed; its answer is told.
    """
    kept = folder / f"{row.file_name}.json"
    try:
        lock = FileLock(folder / "locks" / row.file_name, taken=RunError("taken"))
    except RunError:
        return
    try:
        if kept.exists():
            return
        work = folder / "runs" / row.file_name
        command = [sys.executable, "-m", "toolkit.cli.entry", "simulate", "--json", "-o", str(work)]
        command += row.arguments
        say(f"{row.file_name}: {' '.join(command[1:])}")
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False, text=True)
        if done.returncode:  # with --json the reason stands where the answer would
            raise RunError(f"{row.file_name} ended with exit status {done.returncode}:\n{done.stdout}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        cost = {"cpu_s": cpu_s, "wall_s": time.monotonic() - began}
        write_atomically(kept, json.dumps({"cost": cost, **json.loads(done.stdout)}, indent=1).encode())
        shutil.rmtree(work)
        say(f"{row.file_name}: {cpu_s:.0f} s of CPU, {cost['wall_s']:.0f} s in all")
    finally:
        lock.close()


def print_table(folder: Path, rows: Sequence[Row], *, of: str) -> None:
    """One line for every name among rows, over those of its runs that are there.

    Args:
        folder: that :func:`run` kept them in.
        rows: any number of each name.
        of: what the runs of a name are: seeds, or folds.
    """
    say(
        f"| what | {of} | exit, own | server route or whole network, own | exit, common | "
        "server route or whole network, common | MB up | MB down | CPU min a run |"
    )
    say("|---|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(row.name for row in rows):
        files = [folder / f"{row.file_name}.json" for row in rows if row.name == name]
        told = [json.loads(file.read_bytes()) for file in files if file.exists()]
        if told:
            say(f"| {name} | {len(told)} | {_cells(told)} |")


def _cells(told: Sequence[dict[str, Any]]) -> str:
    """Means over runs of means over devices, with the standard deviation between runs."""
    summaries = [t["summary"] for t in told]

    def share(where: str, *routes: str) -> str:
        values = [100 * s[where][route]["mean"] for s in summaries for route in routes if route in s[where]]
        return _spread(values) if values else "-"

    def mb(key: str) -> str:
        return f"{statistics.fmean(s[key]['mean'] for s in summaries) / 1e6:,.0f}"

    cpu_min = statistics.fmean(t["cost"]["cpu_s"] for t in told) / 60
    return " | ".join(
        [
            share("own", "exit"),
            share("own", "server", "whole"),
            share("common", "exit"),
            share("common", "server", "whole"),
            mb("up_bytes"),
            mb("down_bytes"),
            f"{cpu_min:.1f}",
        ]
    )


def _spread(values: Sequence[float]) -> str:
    """Mean, and standard deviation where there are two values."""
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean
