"""Data sources: from a text such as ``folder:photos`` to arrays that a segment can be trained on.

The only importer of torchvision, and that only for its data sets; all else here is numpy.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from toolkit.errors import DataError, DataNotFoundError, HseeError, ShapeError, did_you_mean, require
from toolkit.nn.csv_file import read_csv
from toolkit.runtime.arrays import open_npz, scale
from toolkit.runtime.pictures import list_class_folders, read_picture

Array = NDArray[Any]

TORCHVISION_SETS = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "fashion_mnist": "FashionMNIST",
    "mnist": "MNIST",
    "stl10": "STL10",
}
"""Our names of torchvision's classes; each is read as its training part, or as its test part by ``NAME:test``."""
_PARTS = ("train", "test")
MAX_MAGNITUDE = 1e15
"""Of a value, so that its square still is a number that travels in a summary of the data."""
MIN_CLASSES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Samples with their labels, in memory.

    Attributes:
        x: (N, ...) float32, not normalised; pictures are (C, H, W) in [0, 1].
        y: (N,) int64, indices into ``classes``.
        classes: names, in the order that ``y`` counts.
        user: (N,) int64, who made each sample; None where the source does not say.
        name: the text it was loaded from.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    classes: tuple[str, ...]
    user: NDArray[np.int64] | None
    name: str

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """One sample's, without the batch axis."""
        return self.x.shape[1:]

    @property
    def class_counts(self) -> dict[str, int]:
        """Samples of each class, absent ones included."""
        counts = np.bincount(self.y, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def take(self, indices: NDArray[np.int64]) -> Dataset:
        """Copy the samples at ``indices``; the class list stays."""
        user = None if self.user is None else self.user[indices]
        return replace(self, x=self.x[indices], y=self.y[indices], user=user)


def load_source(text: str, *, root: Path | None = None, download: bool = False) -> Dataset:
    """Load a data source.

    Args:
        text: ``digits``, ``folder:PATH``, ``npz:PATH``, ``csv:PATH`` or ``csv:PATH?window=128&stride=64``,
            ``torchvision:NAME`` or ``torchvision:NAME:test``, or ``python:PACKAGE.MODULE:FUNCTION``.
        root: the folder that holds torchvision's data sets.
        download: torchvision may fetch a set that is not in ``root``.

    Raises:
        DataNotFoundError: it is not there or can't be read.
        DataError: unknown, empty, one class only, not finite, or labels that fit no class.
        ShapeError: samples of different shapes.
        MissingPartError: it needs a package that is not installed.
    """
    kind, _, rest = text.partition(":")
    if kind == "torchvision" and rest:
        return _torchvision(text, rest, root=root, download=download)
    if text == "digits":
        return _digits()
    read = _READERS.get(kind)
    if read is None or not rest:
        forms = ("digits", *(f"{name}:..." for name in (*_READERS, "torchvision")))
        near = did_you_mean(kind, ("digits", "torchvision", *_READERS)) if read is None else ""
        raise DataError(
            f"There is no data source {text!r}.",
            hint=f"{near} A source is one of: {', '.join(forms)}".lstrip(),
            source=text,
        )
    return read(text, rest)


def _digits() -> Dataset:
    with np.load(Path(__file__).parent / "data" / "digits.npz", allow_pickle=False) as stored:
        x, y = stored["x"], stored["y"]
    return make_dataset(x[:, None].astype(np.float32) / 16, y, name="digits")


def _folder(text: str, path: str) -> Dataset:
    root = Path(path).expanduser()
    folders = {name: files for name, files in list_class_folders(root).items() if files}
    pictures: list[NDArray[np.float32]] = []
    labels: list[str] = []
    for name, files in folders.items():
        for file in files:
            picture = read_picture(file)
            if pictures and picture.shape != pictures[0].shape:
                first = next(iter(folders.values()))[0]
                raise ShapeError(
                    f"The pictures in {root} differ in size: {first} is {_size(pictures[0])}, "
                    f"{file} is {_size(picture)}.",
                    hint="Bring all to one size and one colour mode first.",
                    expected=pictures[0].shape,
                    got=picture.shape,
                    file=str(file),
                )
            pictures.append(picture)
            labels.append(name)
    return make_dataset(np.stack(pictures), labels, name=text)


def _npz(text: str, path: str) -> Dataset:
    return _from_mapping(open_npz(Path(path).expanduser()), name=text)


def _csv(text: str, path: str) -> Dataset:
    found = read_csv(path)
    return make_dataset(found.x, found.labels, user=found.user, name=text)


def _python(text: str, path: str) -> Dataset:
    module_name, _, function_name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as exc:
        raise DataNotFoundError(
            f"The data source {text!r} can't be imported: {exc}.",
            hint="Write it as python:package.module:function; the package must be installed here or be on PYTHONPATH.",
            source=text,
        ) from exc
    try:
        made = function()
    except HseeError:
        raise
    except Exception as exc:
        raise DataError(
            f"The data source {text!r} raised {type(exc).__name__}: {exc}.",
            hint="HSEE_DEBUG=1 shows where.",
            source=text,
        ) from exc
    if isinstance(made, Dataset):
        made = {"x": made.x, "y": made.y, "classes": made.classes, "user": made.user}
    if isinstance(made, tuple) and len(made) == 2:  # noqa: PLR2004 - x and y
        made = {"x": made[0], "y": made[1]}
    if not isinstance(made, Mapping):
        raise DataError(
            f"The data source {text!r} returned {type(made).__name__}.",
            hint="It must return (x, y), or a mapping with x, y and perhaps classes and user.",
            source=text,
        )
    return _from_mapping(made, name=text)


_READERS: dict[str, Callable[[str, str], Dataset]] = {
    "csv": _csv,
    "folder": _folder,
    "npz": _npz,
    "python": _python,
}


def _torchvision(text: str, rest: str, *, root: Path | None, download: bool) -> Dataset:
    name, colon, part = rest.partition(":")
    part = part if colon else "train"
    if part not in _PARTS:
        raise DataError(
            f"A torchvision data set has no part {part!r}.",
            hint=f"Write torchvision:{name} or torchvision:{name}:test.",
        )
    if name not in TORCHVISION_SETS:
        raise DataError(
            f"hsee reads no torchvision data set {name!r}.", hint=did_you_mean(name, TORCHVISION_SETS)
        )
    if root is None:
        raise DataError(
            f"The data source {text!r} needs the folder that holds the data set.",
            hint="Set device.root (or --root) to it.",
            source=text,
        )
    require("torchvision", part="datasets", purpose=f"The data source {text!r}")
    make = getattr(import_torchvision("datasets"), TORCHVISION_SETS[name])
    which = {"split": part} if name == "stl10" else {"train": part == "train"}
    try:
        stored = make(str(root.expanduser()), download=download, **which)
    except (OSError, RuntimeError) as exc:
        raise DataNotFoundError(
            f"The data set {name!r} can't be read from {root}: {str(exc).rstrip('.')}.",
            hint="Check the folder, or allow a download with device.download (or --download).",
            source=text,
        ) from exc
    x = np.asarray(stored.data)
    if x.ndim == 3:  # noqa: PLR2004 - samples, height, width: grey pictures
        x = x[:, None]
    elif x.shape[-1] == 3:  # noqa: PLR2004 - colours stand last
        x = x.transpose(0, 3, 1, 2)
    labels = stored.labels if name == "stl10" else stored.targets
    return make_dataset(scale(x, name=text), np.asarray(labels), classes=stored.classes, name=text)


def import_torchvision(part: Literal["datasets", "models"]) -> ModuleType:
    """Import a part of torchvision, also where its wheel was built for another torch than the installed one.

    Beside such a torch its compiled operators don't load and the import raises ``operator torchvision::nms does
    not exist``. Data sets and classifiers need none of them: declaring the two that the import looks up is enough.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as exc:
        if "torchvision::" not in str(exc):
            raise
        _declare_operators()
    return importlib.import_module(f"torchvision.{part}")


def _declare_operators() -> None:
    import sys

    import torch

    for half_imported in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[half_imported]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(  # type: ignore[no-untyped-call]
            f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    _declared_operators.append(library)


_declared_operators: list[object] = []
"""torch forgets a library's operators when the library object dies."""


def _from_mapping(arrays: Mapping[str, ArrayLike], *, name: str) -> Dataset:
    missing = [key for key in ("x", "y") if key not in arrays]
    if missing:
        raise DataError(
            f"{name} has no array {missing[0]!r}.",
            hint=f"It needs x and y; it has: {', '.join(sorted(arrays)) or 'nothing'}.",
            keys=sorted(arrays),
        )
    classes = arrays.get("classes")
    return make_dataset(
        scale(np.asarray(arrays["x"]), name=f"Array 'x' of {name}"),
        arrays["y"],
        classes=None if classes is None else [str(c) for c in np.asarray(classes).tolist()],
        user=arrays.get("user"),
        name=name,
    )


def make_dataset(
    x: ArrayLike,
    y: ArrayLike,
    *,
    name: str,
    classes: list[str] | None = None,
    user: ArrayLike | None = None,
) -> Dataset:
    """Check arrays and put them into a data set.

    Args:
        x: (N, ...) numbers, as they shall enter the normalisation.
        y: (N,) class names; or whole numbers, which are indices into ``classes`` where it is given and names
            otherwise.
        name: says where it comes from, in errors.
        classes: the class list; by default the labels that occur, in order.
        user: (N,) ids or names of who made each sample.
    Raises: DataError, ShapeError: as :func:`load_source`.
    """
    samples = np.ascontiguousarray(np.asarray(x), dtype=np.float32)
    labels = np.asarray(y)
    if labels.ndim != 1 or samples.ndim < 2 or len(samples) != len(labels):  # noqa: PLR2004 - samples, features
        raise ShapeError(
            f"{name}: x has shape {samples.shape} and y {labels.shape}; expected (N, ...) and (N,).",
            hint="Give each sample one label and at least one feature.",
        )
    if not samples.size:
        raise DataError(f"{name} holds no samples.", hint="Check the path and what is in it.", source=name)
    bad = np.flatnonzero(~np.isfinite(samples.reshape(len(samples), -1)).all(axis=1))
    if bad.size:
        raise DataError(
            f"{name}: {bad.size} of {len(samples)} samples hold NaN or infinite values, the first is sample {bad[0]}.",
            hint="Remove or fill them.",
            first=int(bad[0]),
        )
    if (largest := float(np.abs(samples).max())) > MAX_MAGNITUDE:
        raise DataError(
            f"{name}: a sample holds a value of magnitude {largest:.3g}; at most {MAX_MAGNITUDE:.0e} can be trained on.",
            hint="Bring the values to a common scale, or look for damaged samples.",
            largest=largest,
        )
    indices, names = _index_labels(labels, classes, name)
    n_present = len(np.unique(indices))
    if n_present < MIN_CLASSES:
        raise DataError(
            f"{name} holds one class only: {names[indices[0]]!r}. Training needs at least two.",
            hint="Add samples of another class.",
            classes=[names[indices[0]]],
        )
    users = None if user is None else _index_users(np.asarray(user))
    if users is not None and users.shape != indices.shape:
        raise ShapeError(
            f"{name}: user has shape {users.shape}; expected one for each of {len(indices)} samples."
        )
    return Dataset(samples, indices, tuple(names), users, name)


def _index_labels(labels: Array, classes: list[str] | None, name: str) -> tuple[NDArray[np.int64], list[str]]:
    if labels.dtype.kind == "f" and (labels == np.round(labels)).all():
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iubU":
        raise DataError(
            f"{name}: labels of type {labels.dtype} are no classes.",
            hint="Use class names or whole numbers.",
            dtype=str(labels.dtype),
        )
    is_text = labels.dtype.kind == "U"
    if classes is None:
        found, indices = np.unique(labels, return_inverse=True)
        names = [str(label) for label in found.tolist()]
    else:
        names = classes
        place = {name_: i for i, name_ in enumerate(names)}
        indices = (
            np.array([place.get(label, -1) for label in labels.tolist()])
            if is_text
            else labels.astype(np.int64)
        )
        outside = np.flatnonzero((indices < 0) | (indices >= len(names)))
        if outside.size:
            raise DataError(
                f"{name}: label {labels[outside[0]].item()!r} of sample {outside[0]} is not among the "
                f"{len(names)} classes.",
                hint=did_you_mean(str(labels[outside[0]]), names)
                if is_text
                else f"Labels count from 0 to {len(names) - 1}.",
                first=int(outside[0]),
            )
    if len(set(names)) < len(names) or not all(names):
        raise DataError(f"{name}: a class name is empty or stands twice.", hint="Name each class once.")
    return indices.astype(np.int64), names


def _index_users(user: Array) -> NDArray[np.int64]:
    try:
        return user.astype(np.int64)
    except ValueError:  # names: number them in order
        return np.unique(user, return_inverse=True)[1].astype(np.int64)


def _size(picture: NDArray[np.float32]) -> str:
    channels, height, width = picture.shape
    return f"{width} x {height} in {channels} channel{'s' * (channels > 1)}"


def fingerprint(dataset: Dataset) -> str:
    """Name the data by its content: 32 hex digits of SHA-256 over samples, labels and class names."""
    digest = hashlib.sha256(repr((dataset.x.shape, dataset.classes)).encode())
    digest.update(np.ascontiguousarray(dataset.x).data)
    digest.update(np.ascontiguousarray(dataset.y).data)
    return digest.hexdigest()[:32]


def channel_moments(x: NDArray[np.float32]) -> tuple[list[float], list[float]]:
    """Mean and variance of each channel, the first axis of a sample, summed in float64.

    Args:
        x: (N, C, ...).
    """
    # A channel at a time: the whole of x in float64 would double the memory a board needs.
    channels = [x[:, c].astype(np.float64) for c in range(x.shape[1])]
    return [float(c.mean()) for c in channels], [float(c.var()) for c in channels]
