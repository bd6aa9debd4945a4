"""The fleet's data: one source, a common test set taken off it, the rest divided over the devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from device_agent.local_data import LocalData
from toolkit.errors import DataError
from toolkit.nn.datasets import Dataset, fingerprint, load_source
from toolkit.nn.partition import divide, split_held_out
from toolkit.simulate.scenario import Scenario

_TEST_STREAM = 3
"""Of the generator; partition and held-out split have the first two."""


@dataclass(frozen=True, slots=True)
class FleetData:
    """Every device's own data, and the common balanced test set where there is one."""

    devices: Mapping[str, LocalData]
    test: Dataset | None


def load_fleet_data(scenario: Scenario) -> FleetData:
    """Load and divide the data as the scenario has it; the run's seed divides them too.

    Raises: DataError: the source can't be used or divided.
    """
    seed = scenario.run.seed
    root = Path(scenario.root) if scenario.root else None
    whole = load_source(scenario.data, root=root, download=scenario.download)
    test, rest = take_balanced(whole, scenario.test_share, seed) if scenario.test_share else (None, whole)
    parts = divide(rest, scenario.partition, len(scenario.names), seed)
    devices = {}
    for name, part in zip(scenario.names, parts, strict=True):
        train, held_out = _hold_out(part, scenario.held_out, seed)
        devices[name] = LocalData(train, held_out, fingerprint(part))
    return FleetData(devices, test)


def _hold_out(part: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split as a real device does; one that has too few samples of every class for the share holds half of them."""
    rarely_enough = max(part.class_counts.values()) * share + 0.5 < 1
    return split_held_out(part, max(share, 0.5) if rarely_enough else share, seed)


def take_balanced(dataset: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Set a test set aside that holds as many samples of every class.

    Args:
        dataset: the whole.
        share: of it, in (0, 1); at most half of the rarest class is taken.
        seed: of the draw.
    Returns: the test set and the rest.
    Raises: DataError: a class has too few samples, or the share is out of range.
    """
    if not 0 < share < 1:
        raise DataError(f"A test share of {share} is not between 0 and 1.", hint="0 takes no test set.")
    rarest = min(dataset.class_counts.values())
    n_each = min(round(share * len(dataset) / len(dataset.classes)), rarest // 2)
    if n_each < 1:
        raise DataError(
            f"{dataset.name}: a class has {rarest} samples; a common test set needs at least 2 of each.",
            hint="Do without one: --test-share 0.",
        )
    generator = np.random.default_rng([_TEST_STREAM, seed])
    chosen = np.sort(
        np.concatenate(
            [
                generator.permutation(np.flatnonzero(dataset.y == label))[:n_each]
                for label in range(len(dataset.classes))
            ]
        )
    )
    return dataset.take(chosen), dataset.take(np.setdiff1d(np.arange(len(dataset)), chosen))
