"""A model as a user might bring one: random layers, a stage of two, no pictures."""

import torch
from torch import nn


def with_dropout(input_shape, n_classes, hidden=16):
    """Three stages for windows (F, W), with dropout before and behind every cut."""
    n_features, _ = input_shape
    return [
        ("first", nn.Sequential(nn.Conv1d(n_features, hidden, 3, padding=1), nn.Dropout(0.3), nn.ReLU())),
        ("second", nn.Sequential(nn.Conv1d(hidden, hidden, 3, padding=1), nn.BatchNorm1d(hidden))),
        ("third", nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(0.3))),
        ("answer", nn.Linear(hidden, n_classes)),
    ]


class Drift(nn.Module):
    """Shifts what passes by a mean of what passed before, which it keeps out of its state_dict, and by its turns."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("turns", torch.zeros((), dtype=torch.complex64), persistent=False)

    def forward(self, x):
        """Training moves the buffers."""
        if self.training:
            self.seen = 0.5 * self.seen + x.detach().mean()
            self.turns = self.turns + 1j
        return x + self.seen + self.turns.imag


def with_drift(input_shape, n_classes, hidden=8):
    """Stages for tables whose buffers are no part of their state_dict, before and behind every cut."""
    return [
        ("first", nn.Sequential(nn.Linear(*input_shape, hidden), Drift(), nn.ReLU())),
        ("second", nn.Sequential(nn.Linear(hidden, hidden), Drift(), nn.ReLU())),
        ("third", nn.Sequential(nn.Linear(hidden, hidden), Drift(), nn.ReLU())),
        ("answer", nn.Linear(hidden, n_classes)),
    ]


class InPlace(nn.Module):
    """Shifts what it is given, in its memory."""

    def forward(self, x):
        """As a user's module may."""
        return x.sub_(0.25)


class As(nn.Module):
    """Another type of number from here on."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        """(B, ...) to the same."""
        return x.to(self.dtype)


def working_in_place(input_shape, n_classes, *, shift=True):
    """Stages for pictures that each begin by changing their input where it stands."""
    shifts = [InPlace()] if shift else []
    return [
        ("first", nn.Sequential(*shifts, nn.Conv2d(input_shape[0], 4, 3, padding=1))),
        ("second", nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1))),
        ("third", nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1))),
        ("answer", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, n_classes))),
    ]


def of_other_numbers(input_shape, n_classes, dtype="bfloat16"):
    """Stages for pictures whose weights are no float32, between which float32 passes."""
    kind = getattr(torch, dtype)
    return [
        (name, nn.Sequential(As(kind), stage.to(kind), As(torch.float32)))
        for name, stage in working_in_place(input_shape, n_classes, shift=False)
    ]


def with_nothing_to_learn(input_shape, n_classes):
    """Nothing before the first cut has parameters, nor has anything behind the second."""
    return [
        ("first", nn.AvgPool2d(2)),
        ("second", nn.Conv2d(input_shape[0], n_classes, 3, padding=1)),
        ("third", nn.ReLU()),
        ("answer", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
    ]
