"""What a closed round came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.device_round import Delivery, DeviceRound
from toolkit.wire.payloads import Batch


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


def report_on(
    device: str,
    held: DeviceRound,
    n_correct: Callable[[str, Batch], Mapping[str, int]],
    shallow_stages: Sequence[str] = (),
) -> DeviceReport:
    """Sum up a device's round, and evaluate its held-out batches at the server.

    Args:
        device: its id.
        held: its round, closed.
        n_correct: counts right answers, see :meth:`coordinator.trainer.Trainer.n_correct`.
        shallow_stages: before the cut, at whose ends it has exits; every batch counts for each of them.
    """
    held_out = [delivery.batch for delivery in held.held_out if isinstance(delivery, Delivery)]
    n_eval = sum(len(batch.y) for batch in held_out)
    n_steps = held.n_applied
    n_server: Counter[str] = Counter()
    for batch in held_out:
        n_server.update(n_correct(device, batch))
    at_classifier = n_server.pop("server", 0)
    return DeviceReport(
        device=device,
        n_steps=n_steps,
        n_void=held.n_owed - (held.next - 1),
        n_bytes=held.n_bytes,
        n_eval=n_eval,
        exit_loss=held.exit_loss_sum / n_steps if n_steps else None,
        server_loss=held.loss_sum / held.loss_weight if held.loss_weight else None,
        exit_accuracy=sum(batch.exit_correct for batch in held_out) / n_eval if n_eval else None,
        server_accuracy=at_classifier / n_eval if n_eval else None,
        excused=held.excused,
        weights_bytes=held.weights_bytes,
        lowered_bytes=held.lowered_bytes,
        shallow_accuracy={
            stage: sum(batch.shallow_correct[place] for batch in held_out) / n_eval
            for place, stage in enumerate(shallow_stages if n_eval else ())
        },
        n_refused=held.n_refused + len(held.held_out) - len(held_out),
        server_exit_accuracy={stage: n / n_eval for stage, n in n_server.items()},
    )
