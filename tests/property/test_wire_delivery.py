"""A device's session against a small coordinator, over a link that loses, doubles and reorders.

Whatever happened, every batch is taken up within a stated time once the link is good. The coordinator's seat is the
production one; only its rounds are a model: a list of N_OWED batches, taken up in order within a window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.protocol.samples import ASSIGNMENT, HELLO, STATE
from toolkit.wire import seats, session
from toolkit.wire.messages import State
from toolkit.wire.seats import Judgement, Reply, Seat
from toolkit.wire.session import DeviceState, may_send

RUN = "run1"
N_OWED = 7
WINDOW = 3
STATE_EVERY_S = 5.0
PROMISED_S = session.LEASE_S + session.REHELLO_AFTER_S + 2 * (session.RESEND_AFTER_S + STATE_EVERY_S)
"""From a good link to the end of the round: noticing the silence, joining, and sending again what was lost."""


@dataclass(frozen=True)
class Rendering:
    """A whole payload's address."""

    orders: tuple[int, int, int]
    round: int
    seq: int


Up = bytes | Rendering
"""A hello, by its boot nonce, or a payload."""


class Delivery(RuleBasedStateMachine):
    """Chaos by rules; ``teardown`` makes the link good."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.up: list[Up] = []
        self.down: list[Reply | State] = []
        self.n_processes = 0
        self.connected = False
        # What the coordinator made durable
        self.term = 0
        self.incarnation = 0
        self.round = 1
        # What it forgets
        self.seat = Seat("dev1", RUN, 1)
        self.next = 1
        self.waiting: set[int] = set()
        self.taken: list[tuple[int, int]] = []

    @initialize()
    def begin(self) -> None:
        self.coordinator_starts()
        self.device_starts()

    @rule()
    def goes_well(self) -> None:
        """For a moment nothing is lost."""
        if not self.connected:
            self.connects()
        self.coordinator_tells()
        self.drain()

    @rule()
    def sends_in_vain(self) -> None:
        """All that is under way is lost, and nobody notices."""
        self.coordinator_tells()
        self.delivers_down_in_order()
        self.device_sends(N_OWED)
        self.up.clear()
        self.down.clear()

    @rule(what=st.sampled_from(["device", "coordinator", "link", "link"]))
    def goes_wrong(self, what: str) -> None:
        if what == "device":
            self.device_starts()
        elif what == "coordinator":
            self.coordinator_starts()
        else:
            self.loses_the_link()

    # The device

    def feed(self, event: session.Event) -> None:
        before = self.device
        self.device, actions = session.step(before, event)
        if before.flow is not None and self.device.flow is not None:
            assert (self.device.flow.term, self.device.flow.n) >= (before.flow.term, before.flow.n)
        for action in actions:
            if isinstance(action, session.SayHello):
                self.up.append(self.device.boot_nonce)
            assert not isinstance(action, session.Stop), action

    def device_starts(self) -> None:
        """Another process of the device; hellos of the one before it are gone, since a topic keeps its order."""
        self.n_processes += 1
        self.up = [message for message in self.up if isinstance(message, Rendering)]
        self.device = DeviceState(self.n_processes.to_bytes(16))
        self.connects()

    @rule()
    def connects(self) -> None:
        self.connected = True
        self.feed(session.LinkUp())
        self.feed(session.BridgeSeen(RUN, self.now))  # retained: it comes with the subscription

    def loses_the_link(self) -> None:
        self.connected = False
        self.feed(session.LinkDown())
        self.up.clear()
        self.down.clear()

    @rule(n=st.integers(1, 4))
    def device_sends(self, n: int) -> None:
        for seq in list(may_send(self.device))[:n]:
            flow = self.device.flow
            assert flow is not None
            orders = (self.device.term, self.device.incarnation, self.device.plan_version)
            self.up.append(Rendering(orders, flow.round, seq))
            self.feed(session.Sent(seq, self.now))

    # The coordinator

    def advance(self, event: seats.SeatEvent) -> None:
        self.seat, replies = seats.step(self.seat, event)
        self.down += replies

    def coordinator_starts(self) -> None:
        """Its last commit was the round's opening; both its words are lost on the way to the device."""
        self.term += 1
        self.seat = Seat("dev1", RUN, self.term)
        self.next = 1
        self.waiting.clear()
        self.taken = [entry for entry in self.taken if entry[0] < self.round]
        self.advance(seats.Assigned(msgspec.structs.replace(ASSIGNMENT, term=self.term)))

    @rule()
    def coordinator_tells(self) -> None:
        if not self.seat.incarnation:
            return
        self.seat = replace(self.seat, n=self.seat.n + 1)
        self.down.append(
            msgspec.structs.replace(
                STATE,
                term=self.term,
                incarnation=self.seat.incarnation,
                n=self.seat.n,
                round=self.round,
                next=self.next,
                limit=min(self.next + WINDOW, N_OWED + 1),
            )
        )

    def take(self, message: Up) -> None:
        if isinstance(message, bytes):
            if message != self.seat.boot_nonce and message not in self.seat.superseded:
                self.incarnation += 1
            hello = msgspec.structs.replace(HELLO, boot_nonce=message)
            self.advance(seats.HelloHeard(hello, Judgement(), self.incarnation, self.now))
            return
        orders = (self.term, self.seat.incarnation, ASSIGNMENT.plan_version)
        wanted = range(self.next, min(self.next + WINDOW, N_OWED + 1))
        if message.orders != orders or message.round != self.round or message.seq not in wanted:
            return
        self.waiting.add(message.seq)
        while self.next in self.waiting:
            self.taken.append((self.round, self.next))
            self.next += 1
        if self.next > N_OWED:
            self.round, self.next = self.round + 1, 1
            self.waiting.clear()

    # The link

    @precondition(lambda self: self.up)
    @rule(at=st.integers(0, 99), twice=st.booleans())
    def delivers_up(self, at: int, *, twice: bool) -> None:
        at %= len(self.up)
        self.take(self.up[at] if twice else self.up.pop(at))

    @precondition(lambda self: self.down)
    @rule(at=st.integers(0, 99), twice=st.booleans())
    def delivers_down(self, at: int, *, twice: bool) -> None:
        at %= len(self.down)
        message = self.down[at] if twice else self.down.pop(at)
        if self.connected:
            self.feed(session.Got(message, self.now))

    @precondition(lambda self: self.up)
    @rule(at=st.integers(0, 99))
    def loses_up(self, at: int) -> None:
        self.up.pop(at % len(self.up))

    @precondition(lambda self: self.down)
    @rule(at=st.integers(0, 99))
    def loses_down(self, at: int) -> None:
        self.down.pop(at % len(self.down))

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.feed(session.Tick(self.now))

    def delivers_down_in_order(self) -> None:
        while self.down:
            message = self.down.pop(0)
            if self.connected:
                self.feed(session.Got(message, self.now))

    def drain(self) -> None:
        """Deliver all there is, in order; the device sends what it may."""
        self.device_sends(N_OWED)
        while self.up or self.down:
            while self.up:
                self.take(self.up.pop(0))
            self.delivers_down_in_order()
            self.device_sends(N_OWED)

    # What holds throughout

    @invariant()
    def batches_are_taken_up_in_order_each_once(self) -> None:
        expected = [(round_, seq) for round_ in range(1, self.round + 1) for seq in range(1, N_OWED + 1)]
        assert self.taken == expected[: len(self.taken)]

    @invariant()
    def credit_is_never_exceeded(self) -> None:
        if self.n_processes:
            flow, credit = self.device.flow, may_send(self.device)
            assert not credit or (flow is not None and flow.next <= credit.start < credit.stop <= flow.limit)

    def teardown(self) -> None:
        """The link is good from here on: nothing is lost, all arrives in order, whatever was under way arrives first."""
        if not self.n_processes:
            return
        if not self.connected:
            self.connects()
        goal = self.round + 2  # what was under way may end the first without a device that listens
        deadline, told_at, told = self.now + PROMISED_S, self.now, (self.round, self.next)
        while self.round < goal:
            assert self.now < deadline, f"round {self.round} stands at {self.next}: {self.device}"
            self.drain()
            self.now += 0.5
            self.feed(session.Tick(self.now))
            if (self.round, self.next) != told or self.now - told_at >= STATE_EVERY_S:
                told_at, told = self.now, (self.round, self.next)
                self.coordinator_tells()


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
