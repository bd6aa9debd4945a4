"""A model as a user might bring one: random layers, a stage of two, no pictures."""

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
