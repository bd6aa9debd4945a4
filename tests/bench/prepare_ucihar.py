"""Lay UCI HAR out as one file for ``hsee simulate --data npz:FILE --partition user``.

Usage: python tests/bench/prepare_ucihar.py SUBJECTS.npz FILE.npz

SUBJECTS.npz holds X_train_P, y_train_P, X_test_P, y_test_P for each person P (Anguita et al. 2013). The train/test split
in it is a random 70/30 inside each person; both parts are joined here, and hsee holds its own share out again.
"""

import sys
from pathlib import Path

import numpy as np

ACTIVITIES = ("walking", "walking_upstairs", "walking_downstairs", "sitting", "standing", "laying")


def main(source: Path, target: Path) -> None:
    """Join all people into x, y, user and classes."""
    with np.load(source, allow_pickle=False) as stored:
        people = sorted({int(key.rsplit("_", 1)[1]) for key in stored.files})
        parts = [
            (p, stored[f"X_{part}_{p}"], stored[f"y_{part}_{p}"])
            for p in people
            for part in ("train", "test")
        ]
    np.savez(
        target,
        x=np.concatenate([x for _, x, _ in parts]).astype(np.float32),
        y=np.concatenate([y for _, _, y in parts]).astype(np.int64) - 1,
        user=np.concatenate([np.full(len(y), p) for p, _, y in parts]),
        classes=np.array(ACTIVITIES),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
