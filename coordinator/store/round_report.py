"""What a closed round came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What a round came to for one device; accuracies are over its own held-out samples, None if none came.

    Attributes:
        n_steps: batches the server trained on.
        n_void: items of the list that never came.
        n_bytes: up, of payloads; ``weights_bytes`` of these are weights.
        lowered_bytes: down, of what was handed down.
        shallow_accuracy: by stage, of the exits before the cut; ``server_exit_accuracy`` of those behind it.
        n_refused: items that came and were unfit.
        exit_loss: mean over its training batches, nats; None if there were none.
        server_loss: likewise, at the server.
        excused: why the round did not wait for it; empty where it did.
    """

    device: str
    n_steps: int
    n_void: int
    n_bytes: int
    n_eval: int
    exit_loss: float | None
    server_loss: float | None
    exit_accuracy: float | None
    server_accuracy: float | None
    excused: str = ""
    weights_bytes: int = 0
    lowered_bytes: int = 0
    shallow_accuracy: Mapping[str, float] = field(default_factory=dict)
    n_refused: int = 0
    server_exit_accuracy: Mapping[str, float] = field(default_factory=dict)

    @property
    def further_exits(self) -> dict[str, float]:
        """Accuracy by stage of every exit on the device's route but that at its cut, input first."""
        return {**self.shallow_accuracy, **self.server_exit_accuracy}


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What a round came to."""

    round: int
    seconds: float
    reason: str
    devices: tuple[DeviceReport, ...]
