"""What a device's round came to, summed up as it closes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from coordinator.model.trainer import Trainer
from coordinator.rounds.device_round import DeviceRound, Unfit
from coordinator.store.round_report import DeviceReport


def report_on(
    device: str, held: DeviceRound, trainer: Trainer, shallow_stages: Sequence[str] = ()
) -> DeviceReport:
    """Sum up a device's round, and evaluate its held-out batches at the server, one at a time.

    Args:
        device: its id.
        held: its round, all of it entered.
        trainer: has its held-out batches.
        shallow_stages: before the cut, at whose ends it has exits; every batch counts for each of them.
    """
    n_eval = n_exit = 0
    n_shallow = [0] * len(shallow_stages)
    n_server: Counter[str] = Counter()
    for batch in trainer.held_out(device):
        n_eval += len(batch.y)
        n_exit += batch.exit_correct
        n_shallow = [n + own for n, own in zip(n_shallow, batch.shallow_correct, strict=True)]
        n_server.update(trainer.n_correct(device, batch))
    n_steps = held.n_applied
    at_classifier = n_server.pop("server", 0)
    return DeviceReport(
        device=device,
        n_steps=n_steps,
        n_void=held.n_owed - (held.next - 1),
        n_bytes=held.n_bytes,
        n_eval=n_eval,
        exit_loss=held.exit_loss_sum / n_steps if n_steps else None,
        server_loss=held.loss_sum / held.loss_weight if held.loss_weight else None,
        exit_accuracy=n_exit / n_eval if n_eval else None,
        server_accuracy=at_classifier / n_eval if n_eval else None,
        excused=held.excused,
        weights_bytes=held.weights_bytes,
        lowered_bytes=held.lowered_bytes,
        shallow_accuracy={
            stage: n / n_eval for stage, n in zip(shallow_stages, n_shallow, strict=True) if n_eval
        },
        n_refused=held.n_refused + sum(isinstance(taken, Unfit) for taken in held.held_out),
        server_exit_accuracy={stage: n / n_eval for stage, n in n_server.items()},
    )
