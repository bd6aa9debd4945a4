"""What a device's round came to, summed up as it closes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from coordinator.rounds.device_round import Delivery, DeviceRound
from coordinator.store.round_report import DeviceReport
from toolkit.wire.payloads import Batch


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
        n_correct: counts right answers, see :meth:`coordinator.model.trainer.Trainer.n_correct`.
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
