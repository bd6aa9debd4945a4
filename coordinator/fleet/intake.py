"""What devices deliver: chunks become payloads, payloads become batches of the open round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from coordinator.fleet.allowance import MESSAGE_COST_BYTES, WITHOUT_A_JOB_BYTES, Allowance
from coordinator.rounds.device_round import Delivery, Unfit, WeightsDelivery
from coordinator.rounds.loop import RoundLoop
from coordinator.rounds.underway import Underway
from coordinator.store.checkpoints import CommittedState
from toolkit.errors import RemoteProtocolError
from toolkit.failpoints import failpoint
from toolkit.wire import chunks, payloads
from toolkit.wire.messages import Chunk, Payload, Weights
from toolkit.wire.payloads import Batch
from toolkit.wire.seats import Seat
from toolkit.wire.weights import to_weights

if TYPE_CHECKING:
    import torch


class Intake:
    """Takes what arrives of each device, within bounds.

    Args:
        activation_limit: largest magnitude of an activation; 0 for none.
        doubt: is called where a device obeys a higher term than this coordinator's.
    """

    def __init__(self, activation_limit: float, *, doubt: Callable[[], None]) -> None:
        self._activation_limit = activation_limit
        self._doubt = doubt
        self._assemblers: dict[str, chunks.Assembler] = {}
        self._allowances: dict[str, Allowance] = {}

    def admits(self, device: str, n_bytes: int, *, underway: Underway | None, now: float) -> bool:
        """Whether a message of a device is to be read at all."""
        # PROTOCOL.md 12: "A receiver MAY drop unread what a device sends beyond twice its window in 5 s"
        capacity = WITHOUT_A_JOB_BYTES
        if underway is not None and device in underway.state.jobs:
            window = underway.loop.windows.window(device)
            capacity += 2 * window * max(MESSAGE_COST_BYTES, _largest(device, underway))
        allowance = self._allowances.get(device)
        if allowance is None:
            allowance = self._allowances[device] = Allowance(capacity, capacity, now)
        allowance.grow(capacity)
        return allowance.take(n_bytes, now)

    def forget(self, device: str) -> None:
        """Drop what a replaced process left half sent."""
        self._assemblers.pop(device, None)

    def take(
        self, device: str, chunk: Chunk, body: memoryview, *, seat: Seat, underway: Underway | None
    ) -> None:
        """Take one chunk; a payload that is whole with it is delivered to the open round if it is wanted there.

        Raises: RemoteProtocolError: the chunk, or the payload, breaks the protocol or is unfit to train on.
        """
        if underway is None or device not in underway.state.jobs:
            return  # it owes nothing, so that nothing of it is collected
        assembler = self._assemblers.get(device)
        if assembler is None:
            assembler = self._assemblers[device] = chunks.Assembler(_largest(device, underway))
        whole = assembler.add(chunk, body)
        if whole is None:
            return
        failpoint("coordinator.payload_whole")
        header, content = payloads.decode_up(whole, device=device)
        if not self._is_in_order(header, seat, underway.state):
            return
        if underway.loop.wants(device, round_=header.round, seq=header.seq):
            self._allowances[device].give_back(len(whole) + chunk.n_chunks * MESSAGE_COST_BYTES)
            self._deliver(device, header, content, n_bytes=len(whole), underway=underway)

    def _is_in_order(self, header: Payload | Weights, seat: Seat, state: CommittedState) -> bool:
        # PROTOCOL.md 6: "A payload that names another run MUST be ignored, whatever topic it came on."
        if header.run not in ("", seat.run):
            return False
        # PROTOCOL.md 6: "A payload of another term, incarnation, plan or round is ignored; its batch stays owed."
        orders = (header.term, header.incarnation, header.plan_version)
        if header.term > seat.term:
            self._doubt()
        return orders == (seat.term, seat.incarnation, state.plan_version)

    def _deliver(
        self, device: str, header: Payload | Weights, content: memoryview, *, n_bytes: int, underway: Underway
    ) -> None:
        loop, digest = underway.loop, header.sha256.hex()
        try:
            _check_kind(device, header, loop)
            if isinstance(header, Weights):
                segment = _read_weights(device, header, content, underway)
                loop.deliver_weights(device, WeightsDelivery(segment, header.segment_step, digest, n_bytes))
            else:
                batch = self._read_batch(device, header, content, underway)
                loop.deliver(device, header.seq, Delivery(batch, digest, n_bytes))
        except RemoteProtocolError as exc:
            # PROTOCOL.md 6: "A whole payload that is unfit is entered as refused: it is not asked for again."
            loop.deliver(device, header.seq, Unfit(digest, exc.message, n_bytes))
            raise

    def _read_batch(self, device: str, header: Payload, content: memoryview, underway: Underway) -> Batch:
        state, n_shallow = underway.state, len(underway.loop.shallow_stages(device))
        batch = payloads.to_batch(
            header,
            content,
            activation_shape=state.activation_shapes[device],
            n_classes=len(state.common.classes),
            batch_size=state.jobs[device].batch_size,
        )
        # PROTOCOL.md 6: "`shallow_correct` MUST hold as many counts as the job has exits before the cut."
        if len(batch.shallow_correct) != n_shallow:
            raise RemoteProtocolError(
                f"A payload of device {device!r} counts for {len(batch.shallow_correct)} exits before its cut, "
                f"and its job has {n_shallow}."
            )
        limit = self._activation_limit
        if limit and (largest := float(np.abs(batch.h).max(initial=0.0))) > limit:
            raise RemoteProtocolError(
                f"A payload of device {device!r} holds an activation of {largest:.3g}; the limit is {limit:g}."
            )
        return batch


def _largest(device: str, underway: Underway) -> int:
    """Bytes of the longest payload that a device's job has: a batch, or its weights where they are gathered."""
    state, segments = underway.state, underway.model.segments
    of_weights = 0 if segments is None else segments.layout_of(device).lengths.payload_bytes()
    shape, batch_size = state.activation_shapes[device], state.jobs[device].batch_size
    return max(of_weights, payloads.largest_payload_bytes(shape, batch_size=batch_size))


def _check_kind(device: str, header: Payload | Weights, loop: RoundLoop) -> None:
    kind = loop.kind_of(device, header.seq)
    if kind != ("weights" if isinstance(header, Weights) else header.kind):
        raise RemoteProtocolError(f"Item {header.seq} of device {device!r} is not of kind {kind!r}.")


def _read_weights(
    device: str, header: Weights, content: memoryview, underway: Underway
) -> Mapping[str, torch.Tensor]:
    segments = underway.model.segments
    if segments is None:
        raise RemoteProtocolError(f"Device {device!r} sent weights, and its run gathers none.")
    layout = segments.layout_of(device)
    return layout.named(to_weights(header, content, layout.lengths))
