"""The coordinator's end of the wire, for one device under test: what it said, and what is said to it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import msgspec

from toolkit.errors import RemoteProtocolError
from toolkit.link.base import Connected, Link, Received
from toolkit.wire import chunks, frames, payloads
from toolkit.wire.limits import MAX_MESSAGE_BYTES
from toolkit.wire.messages import Bye, Chunk, DownMessage, Fetch, Hello, Pace, Payload
from toolkit.wire.topics import Topics
from toolkit.wire.words import BridgeWord, DeviceWord, Presence, encode_word, read_device_word

_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Batch:
    """A payload as it came.

    Attributes:
        payload_id: of its chunks.
        at_s: when its last chunk came, monotonic.
        n_samples: of it.
    """

    header: Payload
    payload_id: bytes
    at_s: float
    n_samples: int


@dataclass(frozen=True, slots=True)
class Greeting:
    """A hello, and when it came."""

    hello: Hello
    at_s: float


class Stage:
    """Listens to one run and speaks as its coordinator.

    Args:
        link: not started yet.
        topics: of the fleet.
        run: a run that no coordinator serves.
        device: the one under test; the first that says hello where it is empty.
        batch_size: of the job.
    """

    def __init__(self, link: Link, *, topics: Topics, run: str, device: str, batch_size: int) -> None:
        self._link = link
        self._topics = topics
        self.run = run
        self.device = device
        self._batch_size = batch_size
        self._assembler = chunks.Assembler()
        self.greetings: list[Greeting] = []
        self.batches: list[Batch] = []
        self.words: list[DeviceWord] = []
        self.byes: list[Bye] = []
        self.faults: list[str] = []
        """What it sent that a receiver refuses, in words."""
        self.answer: Callable[[], None] | None = None
        """Answers each hello, where there is something to say."""

    def __enter__(self) -> Self:
        self._link.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._link.close()

    def connect(self, cap_s: float) -> bool:
        """Connect and subscribe; whether the broker let us in."""
        deadline_s = time.monotonic() + cap_s
        while time.monotonic() < deadline_s:
            for event in self._link.poll(_LOOK_S):
                if isinstance(event, Connected):
                    self._link.subscribe(self._topics.all_up(self.run), self._topics.all_device_states)
                    return True
        return False

    def say_word(self, state: Presence, term: int) -> None:
        """Publish the bridge word, retained."""
        word = encode_word(BridgeWord(state, self.run, term))
        self._link.publish(self._topics.bridge_state, word, retain=True)

    def say(self, *messages: DownMessage) -> None:
        """Send messages to the device."""
        for message in messages:
            self.say_bytes(bytes(frames.encode(message)))

    def say_bytes(self, frame: bytes) -> None:
        """Send any bytes to the device."""
        self._link.publish(self._topics.down(self.run, self.device), frame)

    def wait_for(self, holds: Callable[[], bool], cap_s: float) -> bool:
        """Listen until something holds; whether it did within the cap, which counts only time in which we listened."""
        left_s = cap_s
        while not holds():
            if left_s <= 0:
                return False
            began_s = time.monotonic()
            self._listen()
            # What goes beyond two looks is time in which this machine stood still.
            left_s -= min(time.monotonic() - began_s, 2 * _LOOK_S)
        return True

    def listen_for(self, seconds: float) -> None:
        """Listen for some time."""
        self.wait_for(lambda: False, seconds)

    def _listen(self) -> None:
        for event in self._link.poll(_LOOK_S):
            match event:
                case Connected():
                    self._link.subscribe(self._topics.all_up(self.run), self._topics.all_device_states)
                case Received(topic=topic, payload=payload):
                    try:
                        self._take(topic, payload)
                    except RemoteProtocolError as exc:
                        self.faults.append(exc.message)

    def _take(self, topic: str, payload: bytes) -> None:
        is_word = topic.endswith("/state")
        sender = self._topics.device_of(topic, leaf="state" if is_word else "up")
        if self.device and sender != self.device:
            return
        if is_word:
            self.words.append(read_device_word(payload))
        else:
            self._take_frame(sender, payload)

    def _take_frame(self, sender: str, payload: bytes) -> None:
        if len(payload) > MAX_MESSAGE_BYTES:
            raise RemoteProtocolError(f"A message has {len(payload)} bytes.")
        message, body = frames.decode(payload)
        match message:
            case Hello():
                self.device = self.device or sender
                self.greetings.append(Greeting(message, time.monotonic()))
                if self.answer is not None:
                    self.answer()
            case Bye():
                self.byes.append(message)
            case Chunk():
                whole = self._assembler.add(message, body)
                if whole is not None:
                    self._take_whole(message.payload_id, whole)
            case Pace() | Fetch():
                pass  # what a device MAY say
            case _:
                raise RemoteProtocolError(f"A device does not send a {type(message).__name__}.")

    def _take_whole(self, payload_id: bytes, whole: bytes) -> None:
        header, body = payloads.decode(whole, device=self.device)
        # The shape at the cut is the model's affair; that every batch has the same is judged with the batches.
        shape = header.tensors[0].shape[1:]
        n_classes = len(self.greetings[-1].hello.data.classes) if self.greetings else 0
        batch = payloads.to_batch(
            header, body, activation_shape=shape, n_classes=n_classes, batch_size=self._batch_size
        )
        self.batches.append(Batch(header, payload_id, time.monotonic(), len(batch.y)))


def with_unknown_keys(message: DownMessage) -> bytes:
    """Encode a message of a later minor version: with keys that nobody knows yet."""
    known = msgspec.msgpack.decode(frames.encode(message)[12:])
    header = msgspec.msgpack.encode(known | {"later": {"deep": [1, None, "x"]}, "even_later": -1.5})
    return bytes(frames.encode(message)[:8]) + len(header).to_bytes(4, "little") + header
