"""Who holds which samples: partitions of one data set over devices, the same on every machine for one seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import DataError, did_you_mean
from toolkit.nn.datasets import MIN_CLASSES, Dataset

Indices = NDArray[np.int64]
Draw = Callable[[np.random.Generator], list[Indices]]
Number = TypeVar("Number", int, float)

DEFAULT_MIN_SAMPLES = 10
"""Samples below which a part is too small to hold some out and train on the rest."""
_MAX_DRAWS = 1000
_PARTITION_STREAM, _HELD_OUT_STREAM = 1, 2


def partition(
    spec: str,
    y: Indices,
    n_parts: int,
    seed: int,
    user: Indices | None = None,
    *,
    min_samples: int = DEFAULT_MIN_SAMPLES,
) -> list[Indices]:
    """Divide samples over parts; every sample goes to exactly one.

    A random partition is drawn again until each part can be trained on: it has ``min_samples`` samples and two classes.

    Args:
        spec: ``iid``; ``dirichlet:ALPHA`` (each class spread by Dirichlet(ALPHA): small means skewed); ``shards:N``
            (samples sorted by class, cut into equal shards, N to each part); ``user`` (whole persons, dealt round).
        y: (N,) class indices.
        n_parts: number of parts.
        seed: of the draw.
        user: (N,) ids of who made each sample, for ``user``.
        min_samples: a part has at least as many.
    Returns: for each part its sample indices, ascending.
    Raises: DataError: an unknown spec, a value out of range, or no division fits.
    """
    draw = _parse_spec(spec, y, n_parts, user)
    if len(y) < n_parts * min_samples:
        raise DataError(
            f"{len(y)} samples are too few for {n_parts} parts of at least {min_samples}.",
            hint="Take fewer parts, or more data.",
            n_samples=len(y),
            n_parts=n_parts,
        )
    generator = np.random.default_rng([_PARTITION_STREAM, seed])
    needed_classes = min(MIN_CLASSES, len(np.unique(y)))
    for _ in range(_MAX_DRAWS):
        parts = [np.sort(part) for part in draw(generator)]
        sizes = [(len(part), len(np.unique(y[part]))) for part in parts]
        lacking = [i for i, (n, k) in enumerate(sizes) if n < min_samples or k < needed_classes]
        if not lacking:
            return parts
    n_samples, n_classes = sizes[lacking[0]]
    raise DataError(
        f"{spec!r} leaves part {lacking[0] + 1} of {n_parts} with {n_samples} samples of {n_classes} "
        f"class{'es' * (n_classes != 1)}; a part needs at least {min_samples} samples and two classes.",
        hint="Take fewer parts, or a partition that spreads more evenly (iid, or a larger dirichlet value).",
        part=lacking[0] + 1,
        n_samples=n_samples,
        n_classes=n_classes,
    )


def take_part(
    dataset: Dataset, spec: str = "dirichlet:0.5", part: tuple[int, int] = (1, 1), seed: int = 0
) -> Dataset:
    """Take one device's part; its class list names only what the part has.

    Args:
        dataset: the whole.
        spec: as :func:`partition`.
        part: ``(i, n)``, the i-th of n, counted from 1.
        seed: the same on all devices of a fleet, or their parts overlap.
    Raises: DataError: no such part, or no division fits.
    """
    number, n_parts = part
    if not 1 <= number <= n_parts:
        raise DataError(
            f"There is no part {number} of {n_parts}.", hint="Parts count from 1: 1/3, 2/3, 3/3.", part=part
        )
    indices = partition(spec, dataset.y, n_parts, seed, dataset.user)[number - 1]
    return _as_part(dataset, indices, f"{spec}, part {number}/{n_parts}, seed {seed}" if n_parts > 1 else "")


def divide(dataset: Dataset, spec: str, n_parts: int, seed: int) -> list[tuple[Indices, Dataset]]:
    """Take every device's part at once: the same ones as :func:`take_part`.

    Returns: for each part its rows of ``dataset``, ascending, and their samples.
    Raises: DataError: no division fits.
    """
    parts = partition(spec, dataset.y, n_parts, seed, dataset.user)
    return [
        (
            indices,
            _as_part(
                dataset, indices, f"{spec}, part {number}/{n_parts}, seed {seed}" if n_parts > 1 else ""
            ),
        )
        for number, indices in enumerate(parts, start=1)
    ]


def _as_part(dataset: Dataset, indices: Indices, which: str) -> Dataset:
    """The samples at ``indices`` with a class list of their own."""
    taken = dataset.take(indices)
    present, y = np.unique(taken.y, return_inverse=True)
    classes = tuple(dataset.classes[c] for c in present)
    return replace(
        taken,
        y=y.astype(np.int64),
        classes=classes,
        name=f"{dataset.name} ({which})" if which else dataset.name,
    )


def split_held_out(dataset: Dataset, fraction: float = 0.2, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Hold samples out of training, the same share of every class.

    Args:
        dataset: a device's.
        fraction: share held out, in (0, 1); a class keeps at least one sample to train on.
        seed: of the draw.
    Returns: what is trained on, and what is held out; both with the class list of ``dataset``.
    Raises: DataError: the fraction is out of range, or the data are too few to hold any out.
    """
    if not 0 < fraction < 1:
        raise DataError(f"A held-out share of {fraction} is not between 0 and 1.", hint="Usual is 0.2.")
    generator = np.random.default_rng([_HELD_OUT_STREAM, seed])
    held: list[Indices] = []
    for label in range(len(dataset.classes)):
        members = generator.permutation(np.flatnonzero(dataset.y == label))
        held.append(members[: max(0, min(math.floor(len(members) * fraction + 0.5), len(members) - 1))])
    held_out = np.sort(np.concatenate(held))
    if not held_out.size:
        raise DataError(
            f"{dataset.name}: {len(dataset)} samples are too few to hold a share of {fraction} out of every class.",
            hint="Add samples, or raise device.held_out.",
            n_samples=len(dataset),
        )
    return dataset.take(np.setdiff1d(np.arange(len(dataset)), held_out)), dataset.take(held_out)


def _parse_spec(spec: str, y: Indices, n_parts: int, user: Indices | None) -> Draw:
    if n_parts < 1:
        raise DataError(f"A partition into {n_parts} parts makes no sense.", hint="Take at least one.")
    kind, _, value = spec.partition(":")
    if kind == "iid" and not value:
        return lambda generator: np.array_split(generator.permutation(len(y)), n_parts)
    if kind == "dirichlet":
        alpha = _number(spec, value, float, low=1e-3, high=1e6)
        return lambda generator: _dirichlet(y, n_parts, alpha, generator)
    if kind == "shards":
        n_shards = _number(spec, value, int, low=1, high=10_000)
        return lambda generator: _shards(y, n_parts, n_shards, generator)
    if kind == "user" and not value:
        if user is None:
            raise DataError(
                "The partition 'user' needs to know who made each sample; this data source does not say.",
                hint="Add a user column (csv) or a user array (npz), or take 'iid' or 'dirichlet:0.5'.",
            )
        who = user
        return lambda generator: _by_user(who, n_parts, generator)
    raise DataError(
        f"There is no partition {spec!r}.",
        hint=did_you_mean(spec, ("iid", "dirichlet:0.5", "shards:2", "user")),
        spec=spec,
    )


def _number(spec: str, value: str, kind: type[Number], *, low: float, high: float) -> Number:
    try:
        number = kind(value)
    except ValueError:
        number = kind(0)
    if not low <= number <= high:
        raise DataError(
            f"The partition {spec!r} needs a {'whole ' * (kind is int)}number from {low:g} to {high:g} after the colon.",
            hint=f"For example {spec.partition(':')[0]}:{'2' if kind is int else '0.5'}.",
            spec=spec,
        )
    return number


def _dirichlet(y: Indices, n_parts: int, alpha: float, generator: np.random.Generator) -> list[Indices]:
    pieces: list[list[Indices]] = [[] for _ in range(n_parts)]
    for label in np.unique(y):
        members = generator.permutation(np.flatnonzero(y == label))
        shares = generator.dirichlet(np.full(n_parts, alpha))
        ends = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for piece, chunk in zip(pieces, np.split(members, ends), strict=True):
            piece.append(chunk)
    return [np.concatenate(piece) for piece in pieces]


def _shards(y: Indices, n_parts: int, n_shards: int, generator: np.random.Generator) -> list[Indices]:
    mixed = generator.permutation(len(y))
    by_class = mixed[np.argsort(y[mixed], kind="stable")]
    shards = np.array_split(by_class, n_parts * n_shards)
    dealt = generator.permutation(len(shards)).reshape(n_parts, n_shards)
    return [np.concatenate([shards[s] for s in hand]) for hand in dealt]


def _by_user(user: Indices, n_parts: int, generator: np.random.Generator) -> list[Indices]:
    people = generator.permutation(np.unique(user))
    return [np.flatnonzero(np.isin(user, people[part::n_parts])) for part in range(n_parts)]
