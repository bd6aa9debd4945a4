"""A mutation fuzzer: seeded, so that a finding can be made again, and guided by the lines of ours that an input reaches.

An input that reaches a line, or is refused in words, that none before it did is kept and mutated further.
"""

from __future__ import annotations

import random
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.fuzz.targets import Target

ROOT = str(Path(__file__).parents[2])
OURS = tuple(f"{ROOT}/{room}/" for room in ("toolkit", "coordinator", "device_agent"))
MAX_INPUT_BYTES = 16 * 1024
SLOW_S = 2.0
"""No input of this size may take so long, on a loaded machine either."""
SPLICED_BYTES = 64
_PLACE = re.compile(r"`\$[a-z_.\[\]]*`\Z")

TOKENS = [
    *(b"\xc0", b"\xc2", b"\x80", b"\x90", b"\xa0", b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff"),
    *(b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xde\xff\xff", b"\xdc\xff\xff", b"\xc7\xff\x01"),
    *(
        b"\xcf" + b"\xff" * 8,
        b"\xd3\x80" + b"\0" * 7,
        b"\xcb\x7f\xf8" + b"\0" * 6,
        b"\xcb\x7f\xf0" + b"\0" * 6,
    ),
    *(
        b"\0\0\xc0\x7f",
        b"\0\0\x80\x7f",
        b"\x00\x7e",
        b"\x00\x7c",
        b"\xff\xff\xff\x7f",
        b"\0" * 4,
        b"\xff" * 8,
    ),
    *(b"HSEE\x01\0\0\0", b"\x28\xb5\x2f\xfd", b"\x91" * 32, b"\x81\xa1k" * 16, b"[" * 64, b'{"a":' * 32),
    *(b"-1", b"1e999", b"9" * 30, b"NaN", b"null", b"true", b'""', b"\\u0000", b"\xed\xa0\x80", b"..", b"/"),
]


class Coverage:
    """Lines that were run while it was on.

    Args:
        rooms: beginnings of the paths of the files whose lines count.
    """

    def __init__(self, rooms: tuple[str, ...]) -> None:
        self._rooms = rooms
        self.hits: set[tuple[int, int]] = set()
        self._is_ours: dict[int, bool] = {}
        self._held: list[CodeType] = []  # a code object that is gone would lend its id to another

    def start(self) -> None:
        self.hits.clear()
        sys.settrace(self._called)

    def stop(self) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        code = frame.f_code
        ours = self._is_ours.get(id(code))
        if ours is None:
            self._held.append(code)
            ours = self._is_ours[id(code)] = code.co_filename.startswith(self._rooms)
        return self._line if ours else None

    def _line(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        self.hits.add((id(frame.f_code), frame.f_lineno))
        return self._line


def _verdict(message: str) -> str:
    """What a refusal says, without what it quotes: its beginning, and the place in a header that it names."""
    place = _PLACE.search(message)
    return re.split(r"[\d'\"`(]", message)[0][:40] + (place.group() if place else "")


@dataclass(frozen=True)
class Finding:
    """An input that a decoder did not stand."""

    target: str
    data: bytes
    error: str


@dataclass
class Fuzzed:
    """One target and what was found of it so far.

    Args:
        name: of the target.
        target: the decoder.
        seed: of the mutations.
        kept: inputs to begin with, beside the target's own.
        rooms: whose lines guide it.
    """

    name: str
    target: Target
    seed: int
    kept: list[bytes] = field(default_factory=list)
    rooms: tuple[str, ...] = OURS
    n_inputs: int = 0
    n_refused: int = 0
    reached: set[object] = field(default_factory=set)
    fresh: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(f"{self.seed}/{self.name}")
        self._coverage = Coverage(self.rooms)
        self._todo = [*self.target.seeds, *self.kept]
        self.kept = []
        with suppress(
            Exception
        ):  # what it imports is no input's fault; what it raises is seen when it is tried
            self.target.decode(self._todo[0])

    def run(self, turn_s: float) -> Finding | None:
        """Try one input, and others until ``turn_s`` is over; returns the first that is not stood."""
        deadline_s = time.perf_counter() + turn_s
        while True:
            data = self._todo.pop(0) if self._todo else self._mutated()
            finding = self.try_one(data)
            if finding is not None or time.perf_counter() >= deadline_s:
                return finding

    def try_one(self, data: bytes) -> Finding | None:
        """Try one input, and keep it if it reached something new."""
        self.n_inputs += 1
        self._coverage.start()
        began_s = time.thread_time()  # others may have the processor
        verdict = "taken"
        try:
            self.target.decode(data)
        except self.target.refusals as exc:
            self.n_refused += 1
            verdict = _verdict(exc.message)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is what is looked for
            return Finding(self.name, data, f"{type(exc).__name__}: {exc}"[:300])
        finally:
            self._coverage.stop()
        took_s = time.thread_time() - began_s
        if took_s > SLOW_S:
            return Finding(self.name, data, f"took {took_s:.1f} s")
        if not self._coverage.hits <= self.reached or verdict not in self.reached or not self.kept:
            if self.n_inputs > len(self.target.seeds):
                self.fresh.append(data)
            self.reached |= self._coverage.hits
            self.reached.add(verdict)
            self.kept.append(data)
        return None

    def _mutated(self) -> bytes:
        draw = self._random
        data = bytearray(draw.choice(self.kept))
        for _ in range(1 + int(draw.random() * draw.random() * 6)):
            at = int(draw.random() * (len(data) + 1))
            match int(draw.random() * 9):
                case 0 if data:
                    data[at % len(data)] ^= 1 << int(draw.random() * 8)
                case 1 if data:
                    data[at % len(data)] = int(draw.random() * 256)
                case 2 if data:
                    data[at % len(data)] = (data[at % len(data)] + draw.choice((-1, 1))) % 256
                case 3:
                    data[at:at] = draw.choice(TOKENS)
                case 4:
                    token = draw.choice(TOKENS)
                    data[at : at + len(token)] = token
                case 5:
                    del data[at : at + 1 + int(draw.random() * 8)]
                case 6:
                    data[at:at] = data[at : at + 1 + int(draw.random() * SPLICED_BYTES)]
                case 7:
                    other = draw.choice(self.kept)
                    start = int(draw.random() * (len(other) + 1))
                    data[at : at + SPLICED_BYTES] = other[start : start + SPLICED_BYTES]
                case _:
                    del data[at:]
        return bytes(data[:MAX_INPUT_BYTES])
