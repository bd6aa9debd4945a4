"""How a device sends what it makes: addressed, laid out, in chunks."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from device_agent.tape import tape_from_environment
from device_agent.trains_rounds import TrainsRounds
from toolkit.failpoints import failpoint
from toolkit.link.base import Link, chunk_bytes_of
from toolkit.wire import chunks, payloads, weights
from toolkit.wire.job import Job
from toolkit.wire.limits import DEFAULT_CHUNK_BYTES
from toolkit.wire.messages import Acceptance
from toolkit.wire.payloads import Batch
from toolkit.wire.session import DeviceState
from toolkit.wire.topics import Topics


@dataclass(frozen=True, slots=True)
class Conduct:
    """What a device does, and lets be done to it, whatever the run.

    Attributes:
        accept_weights: whether a coordinator may influence its weights.
        trains_alone: whether it trains on while no coordinator is heard.
        chunk_bytes: most payload bytes in a message.
        draw: makes so many random bytes.
    """

    accept_weights: Acceptance = "never"
    trains_alone: bool = True
    chunk_bytes: int = DEFAULT_CHUNK_BYTES
    draw: Callable[[int], bytes] = os.urandom


USUAL_CONDUCT = Conduct()


class Sender:
    """Sends payloads of one device.

    Args:
        link: to send on.
        topics: of the fleet.
        device: this device's id.
        conduct: of this device.
    """

    def __init__(self, link: Link, topics: Topics, device: str, conduct: Conduct) -> None:
        self._link = link
        self._topics = topics
        self._device = device
        self._conduct = conduct
        self._chunk_bytes = min(conduct.chunk_bytes, chunk_bytes_of(link))
        self._tape = tape_from_environment()

    def send_batch(self, state: DeviceState, job: Job, seq: int, batch: Batch) -> int:
        """Send batch ``seq`` of the open round, under the orders that ``state`` obeys; returns its bytes."""
        address = payloads.PayloadAddress(
            device=self._device,
            round=state.flow.round if state.flow else 0,
            seq=seq,
            term=state.term,
            incarnation=state.incarnation,
            plan_version=state.plan_version,
            cut=job.cut,
            run=job.run,
        )
        return self._send(job.run, payloads.encode(address, batch, job.codec))

    def send_weights(self, state: DeviceState, job: Job, seq: int, trainer: TrainsRounds) -> int:
        """Send the segment as it stands, likewise."""
        address = weights.WeightsAddress(
            device=self._device,
            round=state.flow.round if state.flow else 0,
            seq=seq,
            term=state.term,
            incarnation=state.incarnation,
            plan_version=state.plan_version,
            cut=job.cut,
            segment_step=trainer.n_steps,
            run=job.run,
        )
        return self._send(job.run, weights.encode_weights(address, trainer.weights(), job.sync.codec))

    def _send(self, run: str, payload: bytearray) -> int:
        if self._tape is not None:
            self._tape(payload)
        topic = self._topics.up(run, self._device)
        for chunk in chunks.split(payload, payload_id=self._conduct.draw(16), chunk_bytes=self._chunk_bytes):
            self._link.publish(topic, chunk)
            failpoint("device.mid_chunks")
        return len(payload)
