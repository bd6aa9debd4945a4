"""What is trained in a simulation: hash chains, in which loss, doubling and reordering always show."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.checkpoints import Generation
from coordinator.planning import FleetPlan
from coordinator.registry import DataFacts
from coordinator.strategy.base import PooledBatch, Strategy, SubBatch
from device_agent.course import Course, Cursor
from toolkit.config import Run
from toolkit.errors import CheckpointError
from toolkit.wire.job import Job, ModelSpec
from toolkit.wire.messages import Hello
from toolkit.wire.payloads import Batch

CUT = "stem"
WIDTH = 4
BATCH_SIZE = 2
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


class ChainModel:
    """``coordinator.underway.Model`` of a hash chain: theta, a copy a device, or a pool."""

    segments = None
    lowered_round = 0
    resident: Collection[str] = ()
    n_free_copies = 9

    def __init__(self, *, strategy: Strategy, spend: Callable[[float], None], step_s: float) -> None:
        self.mode = strategy.mode
        self.theta = chain("theta")
        self.copies: dict[str, str] = {}
        self._pool: dict[tuple[str, int], str] = {}
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
        raise NotImplementedError

    def make_segments_one(self, devices: Collection[str], *, round_: int) -> None:
        raise NotImplementedError

    def end_round(self, round_: int) -> None:
        del round_
        self._pool.clear()

    def n_correct(self, device: str, batch: Batch) -> dict[str, int]:
        del device
        return {"server": len(batch.y)}

    def lowered(self, device: str, *, taken: int) -> tuple[None, None]:
        del device, taken
        return None, None

    def files(self) -> Iterator[tuple[str, bytes]]:
        yield FILE, json.dumps([self.theta, self.copies]).encode()

    def load(self, generation: Generation) -> None:
        self.theta, self.copies = json.loads(generation.read(FILE))


class ChainCourse(Course):
    """A device's training: its segment is a hash chain over the steps it made."""

    lowered_round = 0
    max_lowered_bytes = 0
    is_untouched = True

    def __init__(
        self,
        *,
        device: str,
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

    def weights(self) -> Any:
        raise NotImplementedError

    def take_lowered(self, header: Any, body: memoryview) -> None:
        raise NotImplementedError

    def _evaluate(self) -> float | None:
        return 0.5

    def _content(self, cursor: Cursor) -> bytes:
        content = json.dumps([list(cursor), self.chain, self.trained])
        return f"{sha256(content.encode()).hexdigest()} {content}".encode()

    def _load(self, content: bytes, where: Path) -> Cursor:
        digest, _, rest = content.decode(errors="replace").partition(" ")
        if digest != sha256(rest.encode()).hexdigest():
            raise CheckpointError(f"{where} is damaged.")
        cursor, self.chain, self.trained = json.loads(rest)
        return Cursor(*cursor)

    def _batch(self, seq: int, kind: Any, *, remade: bool = False) -> Batch:
        """Made of the recipe and of the segment as it is: two renderings of a batch differ."""
        drawn = sha256(chain(self.chain, self._fingerprint, self.round, seq).encode()).digest()
        h = np.frombuffer(drawn[: BATCH_SIZE * WIDTH], np.uint8).astype(np.float32).reshape(BATCH_SIZE, WIDTH)
        y = np.array([drawn[-1] % 2, drawn[-2] % 2], np.int64)
        return Batch(kind, h, y, exit_loss=1.0, exit_correct=1, segment_step=self.n_steps, remade=remade)


class ChainPlanner:
    """Everybody is cut at the same place."""

    def __init__(self, lists: Mapping[str, tuple[int, int]]) -> None:
        self._lists = lists

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
        )
        return FleetPlan(
            version=1,
            text="",
            reasons={},
            jobs=dict.fromkeys(hellos, job),
            lists={device: self._lists[device] for device in hellos},
            activation_shapes={device: [WIDTH] for device in hellos},
            classes=tuple(facts.classes),
        )
