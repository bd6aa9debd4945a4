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
