"""The roll of a run: which process speaks for each device, and what every hello is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import msgspec

from coordinator.fleet.events import Notice, RunEvent
from coordinator.fleet.planning import Planner, influence_of, list_of
from coordinator.fleet.registry import refusal_of
from coordinator.rounds.underway import Underway
from coordinator.store.ledger import Entry, Issued, StateLost
from coordinator.store.run_folder import RunFolder
from toolkit.config import Run
from toolkit.wire import seats as protocol
from toolkit.wire.messages import DownMessage, Hello
from toolkit.wire.seats import Seat, SeatPhase


class Roll:
    """Every device's seat. Who spoke for a device is known again after a restart.

    Args:
        folder: of the run; numbers are issued from it.
        term: of this coordinator process.
        settings: of the run.
        planner: says what devices must measure, and which it can't plan for.
        record: takes each ledger entry.
        send: takes each message to a device.
        observe: takes each event of the run.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        term: int,
        settings: Run,
        planner: Planner,
        record: Callable[[Entry], None],
        send: Callable[[str, DownMessage], None],
        observe: Callable[[RunEvent], None],
        clock: Callable[[], float],
    ) -> None:
        self._folder = folder
        self._term = term
        self._settings = settings
        self._planner = planner
        self._record = record
        self._send = send
        self._observe = observe
        self._clock = clock
        self._seats: dict[str, Seat] = {}

    def __getitem__(self, device: str) -> Seat:
        """A device's seat, as its run knows it."""
        if device not in self._seats:
            known = self._folder.record
            self._seats[device] = Seat(
                device,
                known.run,
                self._term,
                boot_nonce=bytes.fromhex(known.nonces.get(device, "")),
                incarnation=known.incarnations.get(device, 0),
                superseded=tuple(map(bytes.fromhex, known.superseded.get(device, []))),
            )
        return self._seats[device]

    def __contains__(self, device: str) -> bool:
        """Whether a device was heard of."""
        return device in self._seats

    def __iter__(self) -> Iterator[str]:
        """Devices heard of, by id."""
        return iter(sorted(self._seats))

    @property
    def seats(self) -> Mapping[str, Seat]:
        """The seats of devices heard of."""
        return self._seats

    @property
    def is_anybody_here(self) -> bool:
        """Whether a device is connected, as far as is known."""
        return any(seat.connected for seat in self._seats.values())

    @property
    def is_everybody_gone_for_good(self) -> bool:
        """Whether every device said goodbye."""
        return all(seat.left for seat in self._seats.values())

    def ready(self) -> dict[str, Hello]:
        """Devices that can be planned for, by id, and what they said."""
        return {
            device: seat.hello
            for device, seat in sorted(self._seats.items())
            if seat.phase is SeatPhase.READY and seat.connected and seat.hello is not None
        }

    def count_state(self, device: str) -> Seat:
        """Count one more state message to a device; returns its seat, whose ``n`` is the message's."""
        self._seats[device] = replace(self[device], n=self[device].n + 1)
        return self._seats[device]

    def advance(self, device: str, event: protocol.SeatEvent) -> None:
        """Apply an event to a device's seat, and send what follows."""
        before = self[device]
        after, replies = protocol.step(before, event)
        self._seats[device] = after
        for reply in replies:
            self._send(device, reply)
        if after.phase is SeatPhase.ACTIVE and before.connected != after.connected:
            why = f": {event.why}" if isinstance(event, protocol.Gone) and event.why else "."
            self._observe(
                Notice(f"Device {device} is back." if after.connected else f"Device {device} is offline{why}")
            )

    def hello(self, device: str, hello: Hello, underway: Underway | None) -> tuple[bool, bool]:
        """Answer a hello.

        Returns: whether the device is heard from now on, and whether it is by a process that is new here.
        """
        judgement = self._judge(device, hello, underway)
        seat = self[device]
        known = hello.boot_nonce == seat.boot_nonce or hello.boot_nonce in seat.superseded
        fresh = not known and judgement.refusal is None
        incarnation = seat.incarnation
        if fresh:
            incarnation = self._folder.issue_incarnation(device, hello.boot_nonce)
            self._record(Issued(device, incarnation))
            if underway is not None and underway.loop.n_applied.get(device) and not hello.trained_round:
                self._record(StateLost(device, incarnation))
                self._observe(Notice(f"Device {device} lost what it had learned; it begins afresh."))
        self.advance(device, protocol.HelloHeard(hello, judgement, incarnation, self._clock()))
        if judgement.refusal is not None:
            self._observe(Notice(f"Refused device {device}: {judgement.refusal[1]}"))
            return False, False
        accepted = self[device].boot_nonce == hello.boot_nonce
        if accepted and underway is not None:
            self._hold_to_data(device, hello, underway)
        return accepted, fresh

    def _judge(self, device: str, hello: Hello, underway: Underway | None) -> protocol.Judgement:
        state = underway.state if underway else None
        present = [
            seat.hello.data.input_shape
            for seat in self._seats.values()
            if seat.hello is not None and seat.device != device and seat.connected
        ]
        refusal = refusal_of(
            hello,
            device=device,
            classes=state.common.classes if state else self._settings.classes,
            input_shape=state.common.model.input_shape if state else next(iter(present), None),
            members=state.jobs if state else None,
            influence=state.common.influence if state else influence_of(self._settings),
        )
        if refusal is None and state is None and not present:
            refusal = self._planner.refusal_of(self._settings, hello)
        if refusal is not None:
            return protocol.Judgement(refusal=refusal)
        measure = self._planner.needs_measuring(self._settings, hello)
        if measure is not None and self._has_measured(device, hello):
            text = (
                f"{device} measured itself, and its profile still is not of this run's model: the code of "
                f"{self._settings.model!r} or of hsee is another one there than here. Install the same on both."
            )
            return protocol.Judgement(refusal=("model", text))
        return protocol.Judgement(measure=measure)

    def _has_measured(self, device: str, hello: Hello) -> bool:
        """Whether this process was asked to measure and brings what it measured: to ask again would go on for ever."""
        seat = self[device]
        return (
            seat.phase is SeatPhase.MEASURING
            and seat.hello is not None
            and seat.boot_nonce == hello.boot_nonce
            and hello.profile not in ("", seat.hello.profile)
        )

    def _hold_to_data(self, device: str, hello: Hello, underway: Underway) -> None:
        """Rule 13: a changed data fingerprint voids the rest of the device's round."""
        state = underway.state
        if state.fingerprints.get(device) == hello.data.fingerprint:
            return
        owed = list_of(state.jobs[device], hello.data)
        underway.state = msgspec.structs.replace(
            state,
            fingerprints={**state.fingerprints, device: hello.data.fingerprint},
            lists={**state.lists, device: owed},
        )
        underway.loop.relist(device, owed)
        self._observe(
            Notice(
                f"The data of {device} changed: {owed[0]} training batches a round from the next round on;"
                " the rest of this one is void."
            )
        )
