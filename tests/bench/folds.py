"""Leave people or recordings out: train on four fifths of them, test on the others; five folds.

    python tests/bench/prepare_ucihar.py SUBJECTS.npz har.npz
    python tests/bench/folds.py ucihar npz:har.npz FOLDER             # runs what is missing, then prints the table
    python tests/bench/prepare_basicmotions.py TRAIN.arff TEST.arff motions.csv
    python tests/bench/folds.py basicmotions 'csv:motions.csv?window=50&stride=25' FOLDER
    python tests/bench/folds.py ucihar npz:har.npz FOLDER --table     # only prints it

The seed is 0 in every fold: what differs between folds is who is left out. Killed and started again, it goes on.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from matrix import TRAINED, Row, print_table, run

FOLDS = 5
FLEETS = {
    "ucihar": (
        *("--devices", "24", "--partition", "user", "--model", "mlp", "--rounds", "20"),
        *("--cuts", "hidden1,hidden2,hidden3"),
    ),
    "basicmotions": (
        *("--devices", "4", "--partition", "iid", "--model", "cnn1d", "--rounds", "15"),
        *("--cuts", "conv1,conv2,conv3", "--set", "run.model_options.width=16", "--set", "run.batch_size=16"),
    ),
}


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fleet", choices=FLEETS)
    parser.add_argument("source", help="as hsee simulate --data has it, with an absolute path")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    rows = [
        Row(
            name,
            f"fold{fold}-{flags[1]}",
            (
                *("--data", options.source, "--test-users", f"{fold}/{FOLDS}", "--seed", "0"),
                *FLEETS[options.fleet],
                *flags,
            ),
        )
        for fold, (name, flags) in product(range(1, FOLDS + 1), TRAINED.items())
    ]
    if not options.table:
        for row in rows:
            run(row, options.folder.resolve())
    print_table(options.folder.resolve(), rows, of="folds")


if __name__ == "__main__":
    main()
