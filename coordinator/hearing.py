"""What devices say, and what of the run it changes."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.fleet.advice import Advisor
from coordinator.fleet.handing_down import HandingDown
from coordinator.fleet.intake import Intake
from coordinator.fleet.roll import Roll
from coordinator.flow import Flow
from coordinator.rounds.underway import Underway
from toolkit.errors import RemoteProtocolError
from toolkit.wire import frames, seats
from toolkit.wire.messages import RUN_OVER, STOPPED, Bye, Chunk, Fetch, Hello, Message, Pace
from toolkit.wire.topics import Topics
from toolkit.wire.words import read_device_word


class Hearing:
    """Brings each message of a device to whom it is for.

    Args:
        topics: of the fleet.
        roll: who speaks for each device.
        intake: takes what they deliver.
        flow: tells them how far they may go.
        handing_down: sends what they fetch.
        advisor: looks at their pace.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        topics: Topics,
        *,
        roll: Roll,
        intake: Intake,
        flow: Flow,
        handing_down: HandingDown,
        advisor: Advisor,
        clock: Callable[[], float],
    ) -> None:
        self._topics = topics
        self._roll = roll
        self._intake = intake
        self._flow = flow
        self._handing_down = handing_down
        self._advisor = advisor
        self._clock = clock

    def take(self, topic: str, payload: bytes, underway: Underway | None) -> None:
        """Take one message.

        Raises: RemoteProtocolError: it is refused.
        """
        if topic.endswith("/state"):
            self._on_word(self._topics.device_of(topic, leaf="state"), payload)
            return
        device = self._topics.device_of(topic, leaf="up")
        if not self._intake.admits(device, len(payload), underway=underway, now=self._clock()):
            raise RemoteProtocolError("it sends more than it was asked for.")
        self._on_up(device, *frames.decode(payload), underway)

    def _on_word(self, device: str, payload: bytes) -> None:
        """The last will of a device's process, or its own word."""
        word = read_device_word(payload)
        if word.state == "offline" and device in self._roll:
            self._roll.advance(device, seats.Gone(bytes.fromhex(word.boot_nonce)))

    def _on_up(self, device: str, message: Message, body: memoryview, underway: Underway | None) -> None:
        match message:
            case Hello():
                self._on_hello(device, message, underway)
            case Fetch():
                self._handing_down.fetch(device, message, seat=self._roll[device], underway=underway)
            case Bye():
                why = "" if message.reason in (STOPPED, RUN_OVER) else message.reason
                self._roll.advance(device, seats.Gone(message.boot_nonce, on_purpose=True, why=why))
            case Pace():
                # PROTOCOL.md 18: "The coordinator MUST refuse a pace that names another device than its topic"
                if message.device != device:
                    raise RemoteProtocolError(f"A pace on the topic of {device!r} names {message.device!r}.")
                self._advisor.hear(device, message)
            case Chunk():
                self._roll.advance(device, seats.Heard(self._clock()))
                self._intake.take(device, message, body, seat=self._roll[device], underway=underway)
            case _:
                raise RemoteProtocolError(f"A device does not send a {type(message).__name__}.")

    def _on_hello(self, device: str, hello: Hello, underway: Underway | None) -> None:
        accepted, fresh = self._roll.hello(device, hello, underway)
        if fresh:
            self._intake.forget(device)
            if underway is not None:
                underway.loop.forgive(device)
        if accepted and underway is not None and underway.loop.is_open:
            underway.loop.welcome_back(device)
            self._flow.tell(device, underway, phase="training")
