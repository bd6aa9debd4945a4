"""The data of this board: what is trained on, what is held out, and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toolkit.config import Device
from toolkit.errors import DataError, UsageError
from toolkit.nn.datasets import Dataset, channel_moments, fingerprint, load_source
from toolkit.nn.partition import split_held_out, take_part
from toolkit.wire.messages import DataSummary


@dataclass(frozen=True, slots=True)
class LocalData:
    """Training and held-out samples, raw, with one class list of this board's own."""

    train: Dataset
    held_out: Dataset
    fingerprint: str

    def summary(self) -> DataSummary:
        """What the coordinator is told: names, counts, moments; no sample."""
        mean, var = channel_moments(self.train.x)
        return DataSummary(
            classes=list(self.train.classes),
            input_shape=list(self.train.shape),
            n_train=len(self.train),
            n_eval=len(self.held_out),
            mean=mean,
            var=var,
            fingerprint=self.fingerprint,
        )


def load_local_data(settings: Device) -> LocalData:
    """Load this board's data as its settings name them.

    Raises: DataError, UsageError: nothing is named, or the source can't be used.
    """
    if not settings.data:
        raise UsageError(
            "No data source is named.", hint="Name one: --data folder:PATH, npz:FILE, csv:FILE or digits."
        )
    root = Path(settings.root) if settings.root else None
    dataset = load_source(settings.data, root=root, download=settings.download)
    if settings.part:
        index, _, count = settings.part.partition("/")
        dataset = take_part(dataset, settings.partition, (int(index), int(count)), settings.data_seed)
    if len(dataset) < 4:  # noqa: PLR2004 - two to train on and one held out, at the least
        raise DataError(
            f"{dataset.name} has {len(dataset)} samples; a device needs at least 4.",
            hint="Add samples to it.",
        )
    train, held_out = split_held_out(dataset, settings.held_out, settings.data_seed)
    return LocalData(train, held_out, fingerprint(dataset))
