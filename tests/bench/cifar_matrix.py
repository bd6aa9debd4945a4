"""CIFAR-10, ResNet-18, 12 devices in three groups of cuts: every row of ``docs/results/cifar.md``.

    python tests/bench/cifar_matrix.py ROOT FOLDER               # runs what is missing, then prints the table
    python tests/bench/cifar_matrix.py ROOT FOLDER --full        # full size, for a GPU
    python tests/bench/cifar_matrix.py ROOT FOLDER --table       # only prints the table of what is there

ROOT is torchvision's folder of CIFAR-10 (Krizhevsky 2009). Each run is one ``hsee simulate``; its JSON is kept in
FOLDER, so that the script, killed and started again, goes on. Several of them may work on one FOLDER at a time. Runs
are ordered by seed: whatever is finished is a table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from toolkit.disk import FileLock, write_atomically
from toolkit.errors import RunError
from toolkit.nn.datasets import load_source

ROOT = Path(__file__).parents[2]
PARTITIONS = ("iid", "dirichlet:0.5")
TRAINED = {
    "centralised: all data in one place": ("--baseline", "centralised"),
    "FedAvg, every round": ("--baseline", "fedavg"),
    "local only: whole network, one device's data": ("--baseline", "local"),
    "Sequential": ("--strategy", "sequential"),
    "Averaging": ("--strategy", "averaging"),
    "Consolidated (ours)": ("--strategy", "consolidated"),
}
HELD_OUT = 0.1


@dataclass(frozen=True)
class Size:
    """How large a matrix is.

    Attributes:
        n_images: divided over the devices; a tenth of each device's is held out.
        n_test: the first so many of the published test set, in its order.
        settings: of the run.
    """

    n_images: int
    n_test: int
    rounds: int
    settings: tuple[str, ...]


SMALL = Size(
    8_890, 2_000, 6, ("run.model_options.width=16", "run.model_options.stem=strided", "run.compute=cpu")
)
FULL = Size(50_000, 10_000, 30, ("run.model_options.width=64", "run.compute=cuda"))


@dataclass(frozen=True)
class Row:
    """One run of the matrix."""

    name: str
    flags: tuple[str, ...]
    partition: str
    seed: int

    @property
    def file_name(self) -> str:
        """Of its JSON."""
        return f"{self.seed}-{self.partition.replace(':', '')}-{self.flags[1]}"


def say(text: str) -> None:
    """Print a line at once, for whoever follows along."""
    print(text, flush=True)  # noqa: T201 - it is what a bench is for


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    size = FULL if options.full else SMALL
    rows = [
        Row(name, flags, partition, seed)
        for seed, partition, (name, flags) in product(range(options.seeds), PARTITIONS, TRAINED.items())
    ]
    if not options.table:
        prepare(options.root, options.folder, size)
        for row in rows:
            run(row, options.folder, size)
    print_tables(options.folder, rows)


def prepare(root: Path, folder: Path, size: Size) -> None:
    """Write the two data files, the training one with as many images of every class."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", size.n_images), ("test", size.n_test)):
        path = folder / f"{split}.npz"
        if path.exists():
            continue
        source = load_source("torchvision:cifar10" + (":test" if split == "test" else ""), root=root)
        if split == "train":
            of_class = [np.flatnonzero(source.y == label) for label in range(len(source.classes))]
            chosen = np.sort(np.concatenate([members[: n // len(of_class)] for members in of_class]))
        else:
            chosen = np.arange(n)
        beside = folder / f"{split}-{os.getpid()}.npz"
        np.savez(
            beside,
            x=np.round(source.x[chosen] * 255).astype(np.uint8),
            y=source.y[chosen],
            classes=np.array(source.classes),
        )
        beside.rename(path)


def run(row: Row, folder: Path, size: Size) -> None:
    """Run one row, unless it is done or another process is at it."""
    kept = folder / f"{row.file_name}.json"
    try:
        lock = FileLock(folder / "locks" / row.file_name, taken=RunError("taken"))
    except RunError:
        return
    try:
        if kept.exists():
            return
        work = folder / "runs" / row.file_name
        command = [
            *(sys.executable, "-m", "toolkit.cli.entry", "simulate", "--json", "-o", str(work)),
            *("--data", f"npz:{folder / 'train.npz'}", "--test", f"npz:{folder / 'test.npz'}"),
            *("--devices", "12", "--cuts", "layer1,layer2,layer3", "--model", "resnet18"),
            *("--partition", row.partition, "--held-out", str(HELD_OUT), "--rounds", str(size.rounds)),
            *("--seed", str(row.seed), *row.flags),
        ]
        for setting in size.settings:
            command += ["--set", setting]
        say(f"{row.file_name}: {' '.join(command[1:])}")
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        told = json.loads(done.stdout)
        cost = {"cpu_s": cpu_s, "wall_s": time.monotonic() - began}
        write_atomically(kept, json.dumps({"cost": cost, **told}, indent=1).encode())
        shutil.rmtree(work)
        say(f"{row.file_name}: {cpu_s:.0f} s of CPU, {cost['wall_s']:.0f} s in all")
    finally:
        lock.close()


def print_tables(folder: Path, rows: list[Row]) -> None:
    """One table a partition, of the seeds that are there."""
    for partition in PARTITIONS:
        say(f"\n**{partition}**\n")
        say(
            "| what | seeds | exit, common | server route or whole network, common | exit, own "
            "| server route or whole network, own | MB up | MB down | CPU min a run |"
        )
        say("|---|---|---|---|---|---|---|---|---|")
        for name in TRAINED:
            files = [
                folder / f"{r.file_name}.json" for r in rows if r.name == name and r.partition == partition
            ]
            told = [json.loads(file.read_bytes()) for file in files if file.exists()]
            if told:
                say(f"| {name} | {len(told)} | {cells(told)} |")


def cells(told: list[dict[str, object]]) -> str:
    """Means over seeds of means over devices, with the standard deviation between seeds."""
    summaries = [t["summary"] for t in told]

    def share(where: str, *routes: str) -> str:
        values = [100 * s[where][route]["mean"] for s in summaries for route in routes if route in s[where]]
        return spread(values) if values else "-"

    def mb(key: str) -> str:
        return f"{statistics.fmean(s[key]['mean'] for s in summaries) / 1e6:,.0f}"

    cpu_min = statistics.fmean(t["cost"]["cpu_s"] for t in told) / 60
    return " | ".join(
        [
            share("common", "exit"),
            share("common", "server", "whole"),
            share("own", "exit"),
            share("own", "server", "whole"),
            mb("up_bytes"),
            mb("down_bytes"),
            f"{cpu_min:.1f}",
        ]
    )


def spread(values: list[float]) -> str:
    """Mean, and standard deviation where there are two values."""
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
