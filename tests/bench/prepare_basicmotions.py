"""Lay BasicMotions out as one csv file for ``hsee simulate --data 'csv:FILE?window=50&stride=25&...'``.

Usage: python tests/bench/prepare_basicmotions.py TRAIN.arff TEST.arff FILE.csv

BasicMotions (UEA archive, Bagnall et al. 2018; made by students of the University of East Anglia): 80 recordings of a
smartwatch, 3 axes of acceleration and 3 of rotation at 10 Hz for 10 s, standing, walking, running or badminton. Both
published parts are joined; a recording has a number, in the column ``user``, so that whole recordings can be left out.
"""

import csv
import sys
from pathlib import Path

COLUMNS = ("ax", "ay", "az", "gx", "gy", "gz", "label", "user")


def recordings(path: Path) -> list[tuple[list[list[str]], str]]:
    """Read an .arff file: each recording's rows in time, and its activity."""
    lines = path.read_text().partition("@data")[2].strip().splitlines()
    found = []
    for line in lines:
        series, _, label = line.rpartition(",")
        axes = [axis.split(",") for axis in series.strip("'").replace("\\n", "\n").splitlines()]
        found.append(([list(row) for row in zip(*axes, strict=True)], label))
    return found


def main(train: Path, test: Path, target: Path) -> None:
    """Write a row an instant."""
    with target.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for number, (instants, label) in enumerate([*recordings(train), *recordings(test)]):
            rows.writerows([*instant, label, number] for instant in instants)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
