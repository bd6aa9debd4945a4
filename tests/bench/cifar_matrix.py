"""CIFAR-10, ResNet-18, 12 devices in three groups of cuts: every row of ``docs/results/cifar.md``.

    python tests/bench/cifar_matrix.py ROOT FOLDER               # runs what is missing, then prints the tables
    python tests/bench/cifar_matrix.py ROOT FOLDER --size full --seeds 1     # for a GPU
    python tests/bench/cifar_matrix.py ROOT FOLDER --only prefixes           # only rows with this in their name
    python tests/bench/cifar_matrix.py ROOT FOLDER --table       # only prints the tables of what is there

ROOT is torchvision's folder of CIFAR-10 (Krizhevsky 2009). Runs are ordered by seed: whatever is finished is a table.
Killed and started again, it goes on; several may share a FOLDER.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from matrix import TRAINED, Row, print_table, run, say

from toolkit.nn.datasets import load_source

PARTITIONS = ("iid", "dirichlet:0.5")
OF_TABLE = tuple(name for name in TRAINED if not name.startswith("SplitFed"))
FLEET = ("--devices", "12", "--cuts", "layer1,layer2,layer3")
SYNC = ("run.client_sync=prefix",)
RATES = ("run.lr=0.2", "run.server_lr_factor=0.25")
TEACHING = ("run.sync_momentum=average", "run.server_logits=1.0")
SMALL = ("run.batch_size=8", "run.lr=0.1", "run.server_lr_factor=0.25")
"""Batches of a quarter of the size: four times as many steps of the devices and the server alike."""
STEPS = 5


@dataclass(frozen=True)
class Variant:
    """A row that is none of TRAINED.

    Attributes:
        of_files: in the names of its files.
        settings: of the run.
        flags: what trains it.
        rounds: of STEPS steps a device, over those that a size has at its batch size; 0 for one of whole passes.
        fleet: devices and cuts.
        partitions: that it is run on.
    """

    of_files: str
    settings: tuple[str, ...]
    flags: tuple[str, ...]
    rounds: int = 1
    fleet: tuple[str, ...] = FLEET
    partitions: tuple[str, ...] = PARTITIONS


def _alone(cut: str) -> Variant:
    """One device with all the data: the method without a fleet."""
    return Variant(
        f"alone-{cut}", (), TRAINED["Sequential"], 0, ("--devices", "1", "--cuts", cut), partitions=("iid",)
    )


EXTENDED = {
    "Sequential, prefixes every 5 steps": Variant("prefixes", SYNC, TRAINED["Sequential"]),
    "Sequential, prefixes every 5 steps, rate 0.2 on devices": Variant(
        "prefixes-rate4", (*SYNC, *RATES), TRAINED["Sequential"]
    ),
    "the same with momentum averaged, the server teaching (1.0): the preset `best`": Variant(
        "best-rate4", (*SYNC, *RATES, *TEACHING), TRAINED["Sequential"]
    ),
    "Consolidated, prefixes every 5 steps, rate 0.2 on devices": Variant(
        "consolidated-rate4", (*SYNC, *RATES), TRAINED["Consolidated (ours)"]
    ),
    "Averaging and prefixes every 5 steps": Variant("averaging-prefixes", SYNC, TRAINED["Averaging"]),
    "Sequential, prefixes every 5 steps, activations int8": Variant(
        "prefixes-int8-up", (*SYNC, "run.codec=int8"), TRAINED["Sequential"]
    ),
    "Sequential, prefixes every 5 steps, weights float16, activations int8": Variant(
        "prefixes-int8", (*SYNC, "run.sync_codec=float16", "run.codec=int8"), TRAINED["Sequential"]
    ),
    "Sequential, prefixes every 5 steps of batch 8, rate 0.1 on devices": Variant(
        "batch8", (*SYNC, *SMALL), TRAINED["Sequential"], 4
    ),
    "Consolidated, prefixes every 5 steps of batch 8, rate 0.1 on devices": Variant(
        "consolidated-batch8", (*SYNC, *SMALL), TRAINED["Consolidated (ours)"], 4
    ),
    "FedAvg every 5 steps": Variant("fedavg-5", (), TRAINED["FedAvg, every round"]),
    **{
        f"one device with all the data, cut after {cut}": _alone(cut)
        for cut in ("layer1", "layer2", "layer3")
    },
    "SplitFed every 5 steps, gradients returned, shared server": Variant(
        "splitfed-5", (), TRAINED["SplitFed, gradients returned, shared server"]
    ),
}
"""By name of a row. Where a round is STEPS steps a device, there are as many steps in all as the other rows make."""


@dataclass(frozen=True)
class Size:
    """How large a matrix is.

    Attributes:
        n_images: divided over the devices, as many of every class; a tenth of each device's is held out.
        n_test: the first so many of the published test set, in its order.
        rounds: of one pass over a device's data; ``short_rounds`` of STEPS steps are as many steps on average.
        settings: of the run.
        flags: more of ``hsee simulate``.
    """

    n_images: int
    n_test: int
    rounds: int
    short_rounds: int
    settings: tuple[str, ...]
    flags: tuple[str, ...] = ()


SIZES = {
    "small": Size(
        8_890,
        2_000,
        6,
        25,
        ("run.model_options.width=16", "run.model_options.stem=strided", "run.compute=cpu"),
    ),
    "full": Size(
        50_000,
        10_000,
        10,
        60,
        (
            *("run.model_options.width=64", "run.compute=cuda", "run.batch_size=128", "run.lr=0.1"),
            "run.codec=float16",
        ),
        ("--precision", "bfloat16", "--channels-last"),
    ),
}


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="run only rows with this in their name")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    folder, size = options.folder.resolve(), SIZES[options.size]
    if not options.table:
        prepare(options.root, folder, size)
    of_partition: dict[str, list[Row]] = {}
    for seed, partition, name in product(range(options.seeds), PARTITIONS, (*OF_TABLE, *EXTENDED)):
        if name in EXTENDED and partition not in EXTENDED[name].partitions:
            continue
        row = make_row(name, partition, seed, folder, size)
        of_partition.setdefault(partition, []).append(row)
        if not options.table and options.only in name:
            run(row, folder)
    for partition, rows in of_partition.items():
        say(f"\n**{partition}**\n")
        print_table(folder, rows, of="seeds")


def make_row(name: str, partition: str, seed: int, folder: Path, size: Size) -> Row:
    """Say what ``hsee simulate`` is given for a row."""
    settings, rounds, fleet = size.settings, size.rounds, FLEET
    if name in EXTENDED:
        variant = EXTENDED[name]
        of_files, flags, fleet = variant.of_files, variant.flags, variant.fleet
        if variant.rounds:
            rounds = variant.rounds * size.short_rounds
            settings = (*settings, f"run.round_steps={STEPS}", f"run.eval_every={rounds}")
        settings = (*settings, *variant.settings)
    else:
        flags = TRAINED[name]
        of_files = flags[1]
    return Row(
        name,
        f"{seed}-{partition.replace(':', '')}-{of_files}",
        (
            *("--data", f"npz:{folder / 'train.npz'}", "--test", f"npz:{folder / 'test.npz'}", *fleet),
            *("--model", "resnet18", "--held-out", "0.1"),
            *("--partition", partition, "--seed", str(seed), "--rounds", str(rounds)),
            *(word for setting in settings for word in ("--set", setting)),
            *(*size.flags, *flags),
        ),
    )


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


if __name__ == "__main__":
    main()
