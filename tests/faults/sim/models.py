"""What is trained in a simulation: hash chains, in which loss, doubling and reordering always show."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from coordinator.fleet.planning import FleetPlan
from coordinator.fleet.registry import DataFacts
from coordinator.store.checkpoints import Generation
from coordinator.strategy.base import PooledBatch, Strategy, SubBatch
from device_agent.course import Course, Cursor
from toolkit.config import Run
from toolkit.errors import CheckpointError
from toolkit.wire import frames
from toolkit.wire.job import Job, ModelSpec, SyncSpec
from toolkit.wire.messages import Hello, Lowered, Payload
from toolkit.wire.payloads import Batch
from toolkit.wire.weights import FlatWeights, RowLengths, to_weights

CUT = "stem"
WIDTH = 4
BATCH_SIZE = 2
ACTIVATION_LIMIT = 1000.0
NOT_FINITE = np.float32(3e38)
"""Stands for a value that is not finite until it is past an honest sender's check."""
BATCH_BYTES = BATCH_SIZE * (4 * WIDTH + 8)
"""A batch in the coordinator's memory: activations and labels."""
SPACE = 2**256
FILE = "model.chain"


def chain(state: str, *parts: object) -> str:
    return sha256("|".join((state, *map(str, parts))).encode()).hexdigest()


def digest_of(batch: Batch) -> str:
    """The digest that its payload names: of the body, which is the plain tensors."""
    return sha256(batch.h.tobytes() + batch.y.tobytes()).hexdigest()


def item_id(device: str, round_: int, seq: int) -> str:
    return f"{device}/{round_}/{seq}"


def total(copies: Mapping[str, str], weights: Mapping[str, int]) -> str:
    """A sum that knows no order."""
    return f"{sum(weight * int(copies[device], 16) for device, weight in weights.items()) % SPACE:064x}"


def in_numbers(state: str) -> FlatWeights:
    """A chain's state as weights: 16 numbers of two bytes each, which float32 holds exactly."""
    values = np.frombuffer(bytes.fromhex(state), "<u2").astype(np.float32)
    return FlatWeights(values, np.empty(0, np.int64), np.empty(0, np.float32))


def from_numbers(weights: FlatWeights) -> str:
    return weights.values.astype("<u2").tobytes().hex()


def spoiled(payload: bytearray) -> bytearray:
    """The payload with NaN or infinity in place of ``NOT_FINITE``, and the digest that belongs to it."""
    header, body = frames.decode(payload)
    if not isinstance(header, Payload) or body[:4] != NOT_FINITE.tobytes():
        return payload
    value = np.float32(np.nan if header.seq % 2 else -np.inf)
    content = value.tobytes() + bytes(body[4:])
    return frames.encode(structs.replace(header, sha256=sha256(content).digest()), [content])


class ChainLayout:
    """``toolkit.nn.layout.SegmentLayout`` of a chain."""

    lengths = RowLengths(16, 0, 0)

    def named(self, weights: FlatWeights) -> dict[str, str]:
        return {"chain": from_numbers(weights)}


class ChainSegments:
    """``coordinator.model.segments.Segments`` of chains: made one by a sum that knows no order."""

    def __init__(self, *_args: Any, made: Callable[[int, str], None], **_kwargs: Any) -> None:
        self._said = made
        self._gathered: dict[str, str] = {}
        self.made = ""
        self.round = 0

    def layout_of(self, _device: str) -> ChainLayout:
        return ChainLayout()

    def gather(self, device: str, segment: Mapping[str, str]) -> None:
        self._gathered[device] = segment["chain"]

    def make_one(self, devices: Collection[str], *, round_: int) -> None:
        self.made, self.round = total(self._gathered, dict.fromkeys(devices, 1)), round_
        self._gathered.clear()
        self._said(round_, self.made)


class ChainModel:
    """``coordinator.rounds.underway.Model`` of a hash chain: theta, a copy a device, or a pool."""

    resident: Collection[str] = ()
    n_free_copies = 9

    def __init__(
        self,
        *,
        strategy: Strategy,
        spend: Callable[[float], None],
        step_s: float,
        segments: ChainSegments | None = None,
    ) -> None:
        self.segments = segments
        self.mode = strategy.mode
        self.theta = chain("theta")
        self.copies: dict[str, str] = {}
        self._pool: dict[tuple[str, int], str] = {}
        self._held_out: dict[str, list[tuple[int, Batch]]] = {}
        self._order: Sequence[PooledBatch] = ()
        self._spend = spend
        self._step_s = step_s

    def apply(self, device: str, batch: Batch, *, round_: int, seq: int) -> float:
        self._spend(self._step_s)
        key, digest = item_id(device, round_, seq), digest_of(batch)
        if self.mode == "copies":
            self.copies[device] = chain(self.copies.get(device, self.theta), key, digest)
        else:
            self.theta = chain(self.theta, key, digest)
        return 1.0

    def pool(self, device: str, batch: Batch, *, seq: int) -> None:
        self._pool[device, seq] = digest_of(batch)

    def begin_mixing(self, batches: Sequence[PooledBatch]) -> None:
        self._order = batches

    def apply_mixed(self, parts: Sequence[SubBatch], *, round_: int, step: int) -> list[float]:
        self._spend(self._step_s)
        mixed = [
            (self._pool[self._order[index].device, self._order[index].seq], int(row))
            for part in parts
            for index, row in zip(part.batches.tolist(), part.rows.tolist(), strict=True)
        ]
        self.theta = chain(self.theta, round_, step, mixed)
        return [1.0] * len(parts)

    def aggregate(self, weights: Mapping[str, int]) -> None:
        if weights:
            self.theta = total(self.copies, weights)
        self.copies.clear()

    def gather(self, device: str, segment: Mapping[str, Any]) -> None:
        assert self.segments is not None
        self.segments.gather(device, segment)

    def make_segments_one(self, devices: Collection[str], *, round_: int) -> None:
        assert self.segments is not None
        self.segments.make_one(devices, round_=round_)

    @property
    def lowered_round(self) -> int:
        return self.segments.round if self.segments is not None else 0

    def end_round(self, round_: int) -> None:
        del round_
        self._pool.clear()
        self._held_out.clear()

    def hold_out(self, device: str, batch: Batch, *, seq: int) -> None:
        self._held_out.setdefault(device, []).append((seq, batch))

    def held_out(self, device: str) -> Iterator[Batch]:
        return (batch for _, batch in self._held_out.get(device, []))

    def n_correct(self, device: str, batch: Batch) -> dict[str, int]:
        del device
        return {"server": len(batch.y)}

    def lowered(self, device: str, *, taken: int) -> tuple[FlatWeights | None, None]:
        del device
        segments = self.segments
        is_newer = segments is not None and segments.round > taken
        return in_numbers(segments.made) if segments is not None and is_newer else None, None

    def files(self) -> Iterator[tuple[str, bytes]]:
        of_segments = [self.segments.round, self.segments.made] if self.segments is not None else [0, ""]
        yield FILE, json.dumps([self.theta, self.copies, *of_segments]).encode()

    def load(self, generation: Generation) -> None:
        self.theta, self.copies, round_, made = json.loads(generation.read(FILE))
        if self.segments is not None:
            self.segments.round, self.segments.made = round_, made


class ChainCourse(Course):
    """A device's training: its segment is a hash chain over the steps it made."""

    max_lowered_bytes = ChainLayout.lengths.payload_bytes()

    def __init__(
        self,
        *,
        device: str,
        unfit_every: int,
        taken: Callable[[str, int, str], None],
        n_train: int,
        n_eval: int,
        fingerprint: str,
        spend: Callable[[float], None],
        step_s: float,
        **course: Any,
    ) -> None:
        super().__init__(**course)
        self.n_train = n_train
        self.n_batches = n_train + n_eval
        self.chain = chain("segment", device)
        self.lowered_round = 0
        self._unfit_every = unfit_every
        self._taken = taken
        self.trained: list[list[int]] = []
        self._device = device
        self._fingerprint = fingerprint
        self._spend = spend
        self._step_s = step_s
        self.take_up()

    def _step(self, seq: int) -> Batch:
        self._spend(self._step_s)
        batch = self._batch(seq, "train")
        self.chain = chain(self.chain, self.round, seq)
        self.trained.append([self.round, seq])
        return batch

    def _extra_step(self, index: int) -> None:
        self._spend(self._step_s)
        self.chain = chain(self.chain, "extra", index)

    def make_again(self, seq: int) -> Batch:
        self._spend(self._step_s / 3)
        return self._batch(seq, "train" if seq <= self.n_train else "eval", remade=seq <= self.n_train)

    @property
    def is_untouched(self) -> bool:
        return self.seq == 0 or self.n_steps == 0

    def weights(self) -> FlatWeights:
        return in_numbers(self.chain)

    def take_lowered(self, header: Lowered, body: memoryview) -> None:
        is_late = not self.is_untouched or header.round <= self.lowered_round
        self.chain = from_numbers(to_weights(header, body, ChainLayout.lengths))
        self.lowered_round = header.round
        self._taken(self._device, header.round, "" if is_late else self.chain)

    def _evaluate(self) -> float | None:
        return 0.5

    def _content(self, cursor: Cursor) -> bytes:
        content = json.dumps([list(cursor), self.chain, self.trained, self.lowered_round])
        return f"{sha256(content.encode()).hexdigest()} {content}".encode()

    def _load(self, content: bytes, where: Path) -> Cursor:
        digest, _, rest = content.decode(errors="replace").partition(" ")
        if digest != sha256(rest.encode()).hexdigest():
            raise CheckpointError(f"{where} is damaged.")
        cursor, self.chain, self.trained, self.lowered_round = json.loads(rest)
        return Cursor(*cursor)

    def _batch(self, seq: int, kind: Any, *, remade: bool = False) -> Batch:
        """Made of the recipe and of the segment as it is: two renderings of a batch differ."""
        drawn = sha256(chain(self.chain, self._fingerprint, self.round, seq).encode()).digest()
        h = np.frombuffer(drawn[: BATCH_SIZE * WIDTH], np.uint8).astype(np.float32).reshape(BATCH_SIZE, WIDTH)
        y = np.array([drawn[-1] % 2, drawn[-2] % 2], np.int64)
        if is_unfit(seq, self._unfit_every):
            match (self.round + seq) % 4:
                case 0:
                    y[0] = 2  # there are two classes
                case 1:
                    h[0, 0] = 10 * ACTIVATION_LIMIT
                case _:
                    h[0, 0] = NOT_FINITE  # see "spoiled"
        return Batch(kind, h, y, exit_loss=1.0, exit_correct=1, segment_step=self.n_steps, remade=remade)


def is_unfit(seq: int, every: int) -> bool:
    """Whether a place of a device's list holds what nobody can train on; ``every`` is 0 for none."""
    return every > 0 and seq % every == 0


class ChainPlanner:
    """Everybody is cut at the same place; what a device owes follows from what its hello says that it holds."""

    def __init__(self, *, sync_every: int) -> None:
        self._sync = SyncSpec(mode="prefix", every=sync_every) if sync_every else SyncSpec()

    def refusal_of(self, _settings: Run, _hello: Hello) -> None:
        return None

    def needs_measuring(self, _settings: Run, _hello: Hello) -> None:
        return None

    def plan(self, run: str, settings: Run, facts: DataFacts, hellos: Mapping[str, Hello]) -> FleetPlan:
        job = Job(
            run=run,
            model=ModelSpec(name="chain", input_shape=list(facts.input_shape), n_classes=2),
            cut=CUT,
            classes=list(facts.classes),
            mean=list(facts.mean),
            std=list(facts.std),
            seed=settings.seed,
            rounds=settings.rounds,
            batch_size=BATCH_SIZE,
            sync=self._sync,
        )
        return FleetPlan(
            version=1,
            text="",
            reasons={},
            jobs=dict.fromkeys(hellos, job),
            lists={
                device: (hello.data.n_train // BATCH_SIZE, hello.data.n_eval // BATCH_SIZE)
                for device, hello in hellos.items()
            },
            activation_shapes={device: [WIDTH] for device in hellos},
            classes=tuple(facts.classes),
        )
