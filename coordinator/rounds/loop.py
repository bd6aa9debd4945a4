"""The loop, written once: rounds open, batches are applied in order, rounds close.

Pure of network and clock: deliveries and times are handed in. A device's list in a round is its training batches
(seq 1..n_train) and then its held-out batches, which are kept for the evaluation at the close and never trained on.
In a round that gathers segments the list ends with the device's weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from coordinator.model.trainer import Trainer
from coordinator.rounds.device_round import (
    RETURNS,
    Aside,
    Delivery,
    DeviceRound,
    ItemKind,
    Unfit,
    WeightsDelivery,
)
from coordinator.rounds.summing_up import report_on
from coordinator.rounds.windows import Windows
from coordinator.store.checkpoints import OpenRound
from coordinator.store.ledger import (
    Aggregated,
    Applied,
    Closed,
    Entry,
    Gathered,
    Opened,
    Refused,
    Synchronised,
    Void,
)
from coordinator.store.round_report import RoundReport
from coordinator.strategy.asked import Asked
from coordinator.strategy.base import (
    DeviceProgress,
    PooledBatch,
    PoolView,
    RoundView,
    Strategy,
    SubBatch,
)
from toolkit.failpoints import failpoint
from toolkit.wire.job import Job

PARK_AFTER = 8
"""A device of which so many batches were unfit in a round is parked: no round waits for this process of it."""
PARKED = "parked"


class RoundLoop:
    """Drives one round after the other.

    Args:
        strategy: decides.
        trainer: computes.
        record: takes each ledger entry.
        jobs: device id to its job.
        lists: device id to (training batches, held-out batches) in a round.
        windows: grants credit.
        round_: the round last closed.
        turn_s: longest turn of a device whose turn has come and that has no batch here; then it goes to the end of
            the round's order, once.
        n_applied: training batches of each device that were applied in the run so far.
        shallow_stages: before each device's cut, at whose ends it has exits too; by default none.
    """

    def __init__(
        self,
        strategy: Strategy,
        trainer: Trainer,
        *,
        record: Callable[[Entry], None],
        jobs: Mapping[str, Job],
        lists: Mapping[str, tuple[int, int]],
        windows: Windows,
        round_: int = 0,
        turn_s: float = float("inf"),
        n_applied: Mapping[str, int] | None = None,
        shallow_stages: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._strategy = Asked(strategy)
        self._trainer = trainer
        self._record = record
        self._lists = dict(sorted(lists.items()))
        self._cuts = {device: job.cut for device, job in jobs.items()}
        self._job = next(iter(jobs.values()))
        self.windows = windows
        self.round = round_
        self.opened_at = 0.0
        self.devices: dict[str, DeviceRound] = {}
        self.n_applied = dict(n_applied or {})
        self._shallow_stages = dict(shallow_stages or {})
        self._parked: set[str] = set()
        self.is_open = False
        self._is_overdue = False
        self._turn_s = turn_s
        self._turn: tuple[str, float] | None = None
        self._pooled: list[PooledBatch] = []
        self._mixes: deque[tuple[int, Sequence[SubBatch]]] | None = None

    def open(self, now: float) -> None:
        """Open the next round for every device of the plan."""
        self.round += 1
        self.is_open = True
        self.opened_at = now
        self.devices = {device: self._list_of(device, self.round) for device in self._lists}
        owed = {device: (held.n_train, held.n_eval) for device, held in self.devices.items()}
        gathers = any(held.n_weights for held in self.devices.values())
        self._is_overdue = False
        self._turn = None
        self._pooled, self._mixes = [], None
        self._record(Opened(self.round, owed, gathers))
        for device in self._parked:
            self.excuse(device, PARKED)
        self.windows.begin_round()
        self.grant()

    def n_owed_in(self, device: str, round_: int) -> int:
        """Length of a device's list in any round."""
        return self._list_of(device, round_).n_owed

    def shallow_stages(self, device: str) -> Sequence[str]:
        """Stages before a device's cut at whose ends it has exits, input first."""
        return self._shallow_stages.get(device, ())

    def kind_of(self, device: str, seq: int) -> ItemKind:
        """What stands at a place of a device's list."""
        return self.devices[device].kind_of(seq)

    def reopen(self, now: float, committed: OpenRound) -> None:
        """Go on in a round that was open at the last commit; time since then does not count on its deadline."""
        self.round = committed.round
        self.is_open = True
        self.opened_at = now - committed.spent_s
        self._is_overdue = False
        self._turn = None
        for device, was in committed.devices.items():
            self.devices[device] = DeviceRound(
                *was.owed,
                next=was.next,
                limit=was.next,
                ready_to=was.next,
                excused=was.excused,
                n_refused=was.n_refused,
                n_samples=was.n_samples,
                n_bytes=was.n_bytes,
                loss_sum=was.loss_sum,
                loss_weight=was.loss_weight,
                exit_loss_sum=was.exit_loss_sum,
            )
        self.windows.begin_round()
        self.grant()

    def as_committed(self, now: float) -> OpenRound | None:
        """What a commit within the open round keeps of it; None where its training begins only when it is whole."""
        if self._strategy.mode == "pooled":
            return None
        devices = {device: held.as_committed() for device, held in self.devices.items()}
        return OpenRound(round=self.round, spent_s=now - self.opened_at, devices=devices)

    def relist(self, device: str, owed: tuple[int, int]) -> None:
        """Give a device another list from the next round on, and wait for it no longer in the open one."""
        self._lists[device] = owed
        if device in self.devices:
            self.excuse(device, "data_changed")

    def wants(self, device: str, *, round_: int, seq: int) -> bool:
        """Whether a delivery would be taken: of the open round, within the window, not here yet."""
        held = self.devices.get(device)
        return (
            held is not None
            and self.is_open
            and round_ == self.round
            and held.next <= seq < self.limit(device)
            and seq not in held.waiting
            and (held.weights is None or held.kind_of(seq) != "weights")
            and not held.excused
        )

    def deliver(self, device: str, seq: int, delivery: Delivery | Unfit) -> None:
        """Take a delivery that is wanted; held-out and unfit batches at the cursor are put aside at once."""
        held = self.devices[device]
        held.put(seq, delivery)
        self._put_aside(device, held)

    def deliver_weights(self, device: str, delivery: WeightsDelivery) -> None:
        """Take a device's weights that are wanted; they are gathered once all before them in the list is here."""
        held = self.devices[device]
        held.weights = delivery
        held.n_bytes += delivery.n_bytes
        held.weights_bytes += delivery.n_bytes
        self._put_aside(device, held)

    def limit(self, device: str) -> int:
        """First seq that a device may not send yet."""
        held = self.devices[device]
        return held.wanted if held.excused else max(held.limit, held.wanted)

    def grant(self) -> None:
        """Give devices the credit that there is room for."""
        self.windows.grant(self.devices, lambda: self._strategy.turn(self._view()))

    def excuse(self, device: str, reason: str) -> None:
        """Wait no longer for a device in this round; what it still owes is void at the close."""
        self.devices[device].excuse(reason)

    def welcome_back(self, device: str) -> None:
        """Expect a device again that had been excused, unless the round waits for nobody any more."""
        held = self.devices[device]
        if not self._is_overdue and self._mixes is None and held.excused in RETURNS:
            held.expect()
            self.grant()

    def forgive(self, device: str) -> None:
        """Take a device's batches again from the next round on: another process speaks for it."""
        self._parked.discard(device)

    def pass_turn(self, now: float) -> str | None:
        """Send a device to the end of the round's order if its turn has lasted too long without its batch.

        Returns: the device, if there is one.
        """
        device = self._strategy.turn(self._view())
        others_owe = any(not held.complete for name, held in self.devices.items() if name != device)
        if device is None or self.devices[device].postponed or not others_owe:
            self._turn = None
            return None
        if self._turn is None or self._turn[0] != device:
            self._turn = device, now
        if now - self._turn[1] < self._turn_s:
            return None
        self.devices[device].postponed = True
        return device

    def put_off(self, seconds: float) -> None:
        """Let the deadlines of the round and of the turn be so much later: meanwhile nobody could be heard."""
        self.opened_at += seconds
        if self._turn is not None:
            self._turn = self._turn[0], self._turn[1] + seconds

    def stop_waiting(self, reason: str) -> None:
        """Excuse every device that still owes; what is here is trained on, what comes now is refused."""
        self._is_overdue = True
        for held in self.devices.values():
            if not held.complete:
                held.excuse(reason)

    @property
    def is_overdue(self) -> bool:
        """Whether the round stopped waiting for its devices."""
        return self._is_overdue

    @property
    def complete(self) -> bool:
        """Whether the round has all that it waits for, trained."""
        mixed = self._strategy.mode != "pooled" or (self._mixes is not None and not self._mixes)
        return mixed and all(held.complete for held in self.devices.values())

    def train_one(self) -> str | None:
        """Train on the batch that the strategy chooses, or make the next mixed step.

        Returns: its device (the strategy's name for a mixed step), or None where nothing can be done before a
            delivery.
        Raises: StrategyError: it failed, or decided what makes no sense. TrainingError: the loss is not finite.
        """
        if self._strategy.mode == "pooled":
            return self._pool_one() or self._mix_one()
        device = self._strategy.next_device(self._view())
        if device is None:
            return None
        held = self.devices[device]
        delivery = held.waiting.pop(held.next)
        if isinstance(delivery, Delivery):  # unfit ones never wait at the cursor
            loss = self._trainer.apply(device, delivery.batch, round_=self.round, seq=held.next)
            held.loss_sum += loss
            held.loss_weight += 1
            self._enter_trained(device, held, delivery)
        return device

    def close(self, now: float, reason: str) -> RoundReport:
        """Close the round: void what is owed, aggregate copies, evaluate both routes.

        Args:
            now: on the clock that ``open`` was given.
            reason: "complete" or why not.
        """
        for device, held in self.devices.items():
            for seq, taken in enumerate(held.held_out, start=held.n_train + 1):
                self._enter(device, seq, taken, evaluated=True)
            if held.given is not None:
                self._record(held.given)
            if held.next <= held.n_owed:
                self._record(Void(device, self.round, held.next, held.n_owed, held.excused or reason))
        if self._strategy.mode == "copies":
            weights = self._strategy.weights(self._view())
            failpoint("coordinator.mid_fold")
            self._trainer.aggregate(weights)
            self._record(Aggregated(self.round, weights))
            failpoint("coordinator.aggregated")
        given = {device: 1 for device, held in self.devices.items() if held.given}
        if given:
            self._trainer.make_segments_one(given, round_=self.round)
            self._record(Synchronised(self.round, given))
        reports = tuple(
            report_on(device, held, self._trainer, self.shallow_stages(device))
            for device, held in self.devices.items()
        )
        self._trainer.end_round(self.round)
        self._record(Closed(self.round, reason))
        self.is_open = False
        return RoundReport(self.round, now - self.opened_at, reason, reports)

    def _list_of(self, device: str, round_: int) -> DeviceRound:
        n_train, n_eval = self._lists[device]
        return DeviceRound(n_train, n_eval * self._job.evaluates(round_), int(self._job.gathers(round_)))

    def _pool_one(self) -> str | None:
        for device, held in self.devices.items():
            if held.n_ready():
                delivery = held.waiting.pop(held.next)
                if isinstance(delivery, Delivery):
                    self._trainer.pool(device, delivery.batch, seq=held.next)
                    n_samples = len(delivery.batch.y)
                    self._pooled.append(PooledBatch(device, held.next, self._cuts[device], n_samples))
                    self._enter_trained(device, held, delivery)
                return device
        return None

    def _mix_one(self) -> str | None:
        if not all(held.complete for held in self.devices.values()):
            return None
        if self._mixes is None:
            self._pooled.sort(key=lambda batch: (batch.device, batch.seq))
            self._trainer.begin_mixing(self._pooled)
            pool = PoolView(self.round, self._job.seed, self._job.batch_size, tuple(self._pooled))
            steps = self._strategy.mixed_steps(pool) if self._pooled else []
            self._mixes = deque(enumerate(steps, start=1))
        if not self._mixes:
            return None
        step, parts = self._mixes.popleft()
        losses = self._trainer.apply_mixed(parts, round_=self.round, step=step)
        for part, loss in zip(parts, losses, strict=True):
            for index in part.batches.tolist():
                held = self.devices[self._pooled[index].device]
                held.loss_sum += loss
                held.loss_weight += 1
        return self._strategy.name

    def _enter_trained(self, device: str, held: DeviceRound, delivery: Delivery) -> None:
        held.exit_loss_sum += delivery.batch.exit_loss
        held.n_samples += len(delivery.batch.y)
        aside = Aside(delivery.digest, delivery.batch.segment_step)
        self._enter(device, held.next, aside, evaluated=False)
        self.n_applied[device] = self.n_applied.get(device, 0) + 1
        held.next += 1
        failpoint("coordinator.applied")
        self._put_aside(device, held)

    def _enter(self, device: str, seq: int, taken: Aside | Unfit, *, evaluated: bool) -> None:
        if isinstance(taken, Unfit):
            self._record(Refused(device, self.round, seq, taken.digest, taken.reason))
        else:
            self._record(Applied(device, self.round, seq, taken.digest, taken.segment_step, evaluated))

    def _put_aside(self, device: str, held: DeviceRound) -> None:
        """Move the cursor over what is not trained on: unfit batches, held-out ones, weights."""
        while (delivery := held.waiting.get(held.next)) is not None:
            if held.next > held.n_train:
                held.held_out.append(self._set_aside(device, held.next, delivery))
            elif isinstance(delivery, Unfit):
                self._enter(device, held.next, delivery, evaluated=False)
                held.n_refused += 1
                if held.n_refused >= PARK_AFTER:
                    self._parked.add(device)
                    held.excuse(held.excused or PARKED)
            else:
                return
            del held.waiting[held.next]
            held.next += 1
        weights = held.weights
        if weights is not None and held.next == held.n_owed:
            held.weights = None
            held.given = Gathered(device, self.round, held.next, weights.digest, weights.segment_step)
            self._trainer.gather(device, weights.segment)
            held.next += 1

    def _set_aside(self, device: str, seq: int, delivery: Delivery | Unfit) -> Aside | Unfit:
        if isinstance(delivery, Unfit):
            return delivery
        self._trainer.hold_out(device, delivery.batch, seq=seq)
        return Aside(delivery.digest, delivery.batch.segment_step)

    def _view(self) -> RoundView:
        resident = self._trainer.resident
        progress = []
        for device, held in self.devices.items():
            n_applied, n_ready = held.n_applied, held.n_ready()
            n_owed = n_applied + n_ready if held.excused else held.n_train - held.n_refused
            progress.append(
                DeviceProgress(
                    device,
                    n_owed,
                    n_applied,
                    n_ready,
                    held.n_samples,
                    has_copy=device in resident,
                    postponed=held.postponed,
                    window=self.limit(device) - held.next,
                )
            )
        return RoundView(self.round, self._job.seed, tuple(progress), self._trainer.n_free_copies)
