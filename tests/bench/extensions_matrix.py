"""What goes beyond the paper, on and off: every row of ``docs/results/extensions.md``.

    python tests/bench/extensions_matrix.py FOLDER                   # runs what is missing, then prints the tables
    python tests/bench/extensions_matrix.py FOLDER --har har.npz     # UCI HAR beside the digits (prepare_ucihar.py)
    python tests/bench/extensions_matrix.py FOLDER --table           # only prints the tables of what is there

Every row trains on as many samples a device; a round is ``steps`` batches of them. Runs are ordered by seed: whatever is
finished is a table. Killed and started again, it goes on; several may share a FOLDER.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from matrix import Row, print_table, run, say

DIGITS = (*("--devices", "6", "--data", "digits", "--cuts", "stem,layer1,layer2"),)
HAR = (*("--devices", "30", "--partition", "user", "--model", "mlp", "--cuts", "hidden1,hidden2,hidden3"),)
PARTITIONS = ("dirichlet:0.5", "iid")
N_STEPS = {"digits": 90, "har": 60}
SYNC = ("run.client_sync=prefix",)
RATES = ("run.lr=0.2", "run.server_lr_factor=0.25")
SMALL = ("run.batch_size=8", "run.lr=0.1", "run.server_lr_factor=0.25")
"""Batches of a quarter of the size: four times as many steps."""
AVERAGING = ("--strategy", "averaging")
CONSOLIDATED = ("--strategy", "consolidated")
Variant = tuple[int, tuple[str, ...], tuple[str, ...]]
ROWS: dict[str, Variant] = {
    "Sequential": (5, (), ()),
    "Sequential, prefixes every 15 steps": (15, SYNC, ()),
    "Sequential, prefixes every 5 steps": (5, SYNC, ()),
    "Sequential, prefixes every step": (1, SYNC, ()),
    "Sequential, same cut only, every 5 steps": (5, ("run.client_sync=same_cut",), ()),
    "prefixes every 5 steps, devices' momentum averaged": (5, (*SYNC, "run.sync_momentum=average"), ()),
    "prefixes every 5 steps, devices' momentum dropped": (5, (*SYNC, "run.sync_momentum=reset"), ()),
    "prefixes every 5 steps, momentum averaged, the server teaches (1.0)": (
        5,
        (*SYNC, "run.sync_momentum=average", "run.server_logits=1.0"),
        (),
    ),
    "prefixes every 5 steps, weights float16, activations int8": (
        5,
        (*SYNC, "run.sync_codec=float16", "run.codec=int8"),
        (),
    ),
    "Averaging every 5 steps, momentum averaged": (5, (), AVERAGING),
    "Averaging every 5 steps, momentum kept": (5, (), (*AVERAGING, "--option", "momentum=keep")),
    "Averaging every 5 steps, momentum dropped": (5, (), (*AVERAGING, "--option", "momentum=reset")),
    "Averaging every 15 steps": (15, (), AVERAGING),
    "Averaging every step": (1, (), AVERAGING),
    "Averaging every 5 steps, server rate x 3": (5, ("run.server_lr_factor=3",), AVERAGING),
    "Averaging every 5 steps, running statistics pooled": (5, (), (*AVERAGING, "--option", "bn=pooled")),
    "Averaging and prefixes every 5 steps": (5, SYNC, AVERAGING),
    "Consolidated": (5, (), CONSOLIDATED),
    "Consolidated, prefixes every 5 steps": (5, SYNC, CONSOLIDATED),
    "Sequential, pooled exits": (5, ("run.exit_head=pooled",), ()),
    "Sequential, pooled exits, prefixes every 5 steps": (5, (*SYNC, "run.exit_head=pooled"), ()),
    "Sequential, an exit at every stage": (5, ("run.all_exits=true",), ()),
    "Sequential, exits that teach each other (0.3)": (
        5,
        ("run.all_exits=true", "run.self_distillation=0.3"),
        (),
    ),
    "Sequential, the server teaches (1.0)": (5, ("run.server_logits=1.0",), ()),
    "Sequential, exits at the server (0.3)": (5, ("run.server_exits=layer2,layer3",), ()),
    "Sequential, group norm": (5, ("run.model_options.norm=group", "run.exit_head=conv_group"), ()),
    "Sequential, group norm, prefixes every 5 steps": (
        5,
        (*SYNC, "run.model_options.norm=group", "run.exit_head=conv_group"),
        (),
    ),
    "centralised: all data in one place": (5, (), ("--baseline", "centralised")),
    "FedAvg every 5 steps": (5, (), ("--baseline", "fedavg")),
    "local only": (5, (), ("--baseline", "local")),
    "prefixes every 5 steps, rate 0.2 on devices and 0.05 at the server": (
        5,
        (*SYNC, *RATES),
        (),
    ),
    "these rates, momentum averaged, the server teaches (1.0): the preset `best`": (
        5,
        ("run.preset=best",),
        (),
    ),
    "Averaging and prefixes every 5 steps, rate 0.2 on devices and 0.05 at the server": (
        5,
        (*SYNC, *RATES),
        AVERAGING,
    ),
    "prefixes every 5 steps of batch 8, rate 0.1 on devices and 0.025 at the server": (
        5,
        (*SYNC, *SMALL),
        (),
    ),
}
"""Steps a round, settings and flags. A row's place is in the names of its files: new ones stand at the end."""
OF_HAR = (
    "Sequential",
    "Sequential, prefixes every 5 steps",
    "prefixes every 5 steps, momentum averaged, the server teaches (1.0)",
    "prefixes every 5 steps, rate 0.2 on devices and 0.05 at the server",
    "these rates, momentum averaged, the server teaches (1.0): the preset `best`",
    "Averaging every 5 steps, momentum averaged",
    "Consolidated",
    "Consolidated, prefixes every 5 steps",
    "prefixes every 5 steps of batch 8, rate 0.1 on devices and 0.025 at the server",
)


def main() -> None:
    """Run what is missing and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--har", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    folder = options.folder.resolve()
    tables: dict[str, list[Row]] = {}
    for seed, partition, name in product(range(options.seeds), PARTITIONS, ROWS):
        fleet = (*DIGITS, "--partition", partition)
        tables.setdefault(f"digits, {partition}", []).append(_row(name, fleet, seed, f"digits-{partition}"))
    for seed, name in product(range(options.seeds), OF_HAR if options.har else ()):
        fleet = (*HAR, "--data", f"npz:{options.har.resolve()}")
        tables.setdefault("UCI HAR", []).append(_row(name, fleet, seed, "har"))
    for title, rows in tables.items():
        for row in () if options.table else rows:
            run(row, folder)
        say(f"\n**{title}**\n")
        print_table(folder, rows, of="seeds")


def _row(name: str, fleet: tuple[str, ...], seed: int, where: str) -> Row:
    steps, settings, flags = ROWS[name]
    rounds = N_STEPS[where.partition("-")[0]] // steps * (4 if SMALL[0] in settings else 1)
    every = (f"run.round_steps={steps}", f"run.eval_every={max(1, rounds // 3)}", *settings)
    words = (word for setting in every for word in ("--set", setting))
    file_name = f"{seed}-{where.replace(':', '')}-{list(ROWS).index(name):02d}"
    return Row(name, file_name, (*fleet, "--seed", str(seed), "--rounds", str(rounds), *words, *flags))


if __name__ == "__main__":
    main()
