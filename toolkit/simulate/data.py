"""The fleet's data: one source, a common test set taken off it, the rest divided over the devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from device_agent.local_data import LocalData
from toolkit.disk import write_atomically
from toolkit.errors import DataError, ShapeError, did_you_mean
from toolkit.nn.datasets import Dataset, fingerprint, load_source
from toolkit.nn.partition import Indices, divide, split_held_out
from toolkit.simulate.scenario import Scenario

DIVISION_FILE = "division.json"
_NAMED = 5
"""Devices that a warning names."""
_TEST_STREAM = 3
"""Of the generator; partition and held-out split have the first two."""


class DeviceShare(msgspec.Struct, frozen=True, kw_only=True):
    """What one device holds.

    Attributes:
        rows: of the source, counted from 0, held-out ones included.
        class_counts: samples of each class of the source, trained on and held out.
        missing: the classes that ran out.
    """

    rows: list[int]
    class_counts: dict[str, int]
    missing: list[str]


class Division(msgspec.Struct, frozen=True, kw_only=True):
    """How the source was divided: with it the same fleet is made again by anybody.

    Attributes:
        seed: that drew it.
        test: what the common test set is, in words.
        test_rows: of the source; empty where the test set is a source of its own, or there is none.
    """

    source: str
    partition: str
    seed: int
    test: str
    test_rows: list[int]
    devices: dict[str, DeviceShare]

    @property
    def warning(self) -> str:
        """Says which devices lack classes; empty where none does."""
        lacking = [
            f"{name} has no {', '.join(share.missing)}"
            for name, share in self.devices.items()
            if share.missing
        ]
        if not lacking:
            return ""
        more = f"; and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
        return (
            f"{self.partition}, seed {self.seed}: classes ran out for {len(lacking)} of {len(self.devices)} "
            f"devices: {'; '.join(lacking[:_NAMED])}{more}."
        )


@dataclass(frozen=True, slots=True)
class FleetData:
    """Every device's own data, the common test set where there is one, and how they were divided."""

    devices: Mapping[str, LocalData]
    test: Dataset | None
    division: Division


def load_fleet_data(scenario: Scenario) -> FleetData:
    """Load and divide the data as the scenario has it; the run's seed divides them too.

    Raises: DataError: the source can't be used or divided.
    """
    seed = scenario.run.seed
    whole = _load(scenario, scenario.data)
    test_rows = _test_rows(scenario, whole)
    rest_rows = np.setdiff1d(np.arange(len(whole)), test_rows)
    test, told = whole.take(test_rows) if test_rows.size else None, _told_of_test(scenario)
    if scenario.test:
        test = _fitting(_load(scenario, scenario.test), whole)
    rest = whole.take(rest_rows)
    parts = divide(rest, scenario.partition, len(scenario.names), seed)
    devices, shares = {}, {}
    for name, (rows, part) in zip(scenario.names, parts, strict=True):
        train, held_out = _hold_out(part, scenario.held_out, seed)
        devices[name] = LocalData(train, held_out, fingerprint(part))
        counts = dict.fromkeys(whole.classes, 0) | part.class_counts
        shares[name] = DeviceShare(
            rows=rest_rows[rows].tolist(),
            class_counts=counts,
            missing=[label for label, n in counts.items() if not n],
        )
    division = Division(
        source=scenario.data,
        partition=scenario.partition,
        seed=seed,
        test=told,
        test_rows=test_rows.tolist(),
        devices=shares,
    )
    return FleetData(devices, test, division)


def keep_division(folder: Path, division: Division) -> None:
    """Write it into a run's folder."""
    write_atomically(folder / DIVISION_FILE, msgspec.json.encode(division))


def _load(scenario: Scenario, source: str) -> Dataset:
    root = Path(scenario.root) if scenario.root else None
    return load_source(source, root=root, download=scenario.download)


def _test_rows(scenario: Scenario, whole: Dataset) -> Indices:
    """Rows of the source that are the common test set."""
    if scenario.test_users:
        return rows_of_users(whole, scenario.test_users)
    if scenario.test_share and not scenario.test:
        return balanced_rows(whole, scenario.test_share, scenario.run.seed)
    return np.empty(0, np.int64)


def _told_of_test(scenario: Scenario) -> str:
    if scenario.test:
        return scenario.test
    if scenario.test_users:
        return f"people of group {scenario.test_users}"
    return f"balanced, {scenario.test_share:g} of the samples" if scenario.test_share else "none"


def _fitting(test: Dataset, whole: Dataset) -> Dataset:
    """Check that the devices' network can be tested on another source.

    Raises: DataError: a class that the devices don't have. ShapeError: samples of another shape.
    """
    if unknown := [name for name in test.classes if name not in whole.classes]:
        raise DataError(
            f"{test.name} has a class {unknown[0]!r} that {whole.name} does not have.",
            hint=did_you_mean(unknown[0], whole.classes),
            classes=unknown,
        )
    if test.shape != whole.shape:
        raise ShapeError(
            f"A sample of {test.name} has shape {test.shape}, one of {whole.name} {whole.shape}.",
            hint="Test on data that was prepared in the same way.",
            expected=whole.shape,
            got=test.shape,
        )
    return test


def rows_of_users(dataset: Dataset, group: str) -> Indices:
    """Choose whole people: their samples are the test set, so that it holds nobody that is trained on.

    People are dealt to groups in turn, in the order of their ids; the seed does not move them, so that N runs are
    the N folds of one cross-validation.

    Args:
        dataset: the whole, with who made each sample.
        group: "K/N", the K-th of N groups, from 1.
    Returns: their rows, ascending.
    Raises: DataError: nobody knows who made the samples, there is no such group, or nobody is left to train on.
    """
    if dataset.user is None:
        raise DataError(
            f"{dataset.name} does not say who made each sample, so no people can be left out.",
            hint="Add a user column (csv) or a user array (npz), or set a share aside: --test-share 0.2.",
        )
    people = np.unique(dataset.user)
    number, _, n_groups = group.partition("/")
    k, n = (int(text) if text.isascii() and text.isdigit() else 0 for text in (number, n_groups))
    if not 1 <= k <= n or not 2 <= n <= len(people):  # noqa: PLR2004 - one group to train on, one to test on
        raise DataError(
            f"There is no group {group!r} of the {len(people)} people in {dataset.name}.",
            hint=f"Write K/N: the K-th of N groups, N from 2 to {len(people)}. For example 1/2.",
            group=group,
        )
    return np.flatnonzero(np.isin(dataset.user, people[k - 1 :: n]))


def _hold_out(part: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split as a real device does; one that has too few samples of every class for the share holds half of them."""
    rarely_enough = max(part.class_counts.values()) * share + 0.5 < 1
    return split_held_out(part, max(share, 0.5) if rarely_enough else share, seed)


def balanced_rows(dataset: Dataset, share: float, seed: int) -> Indices:
    """Choose a test set that holds as many samples of every class.

    Args:
        dataset: the whole.
        share: of it, in (0, 1); at most half of the rarest class is taken.
        seed: of the draw.
    Returns: its rows, ascending.
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
    return np.sort(
        np.concatenate(
            [
                generator.permutation(np.flatnonzero(dataset.y == label))[:n_each]
                for label in range(len(dataset.classes))
            ]
        )
    )
