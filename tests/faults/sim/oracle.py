"""The judge: what is told, sent, entered and kept, held against each other. It shares no code with what it judges
but the ledger's types and the chains."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from coordinator.store.checkpoints import CommittedState
from coordinator.store.ledger import (
    Aggregated,
    Applied,
    Closed,
    Entry,
    Gathered,
    Opened,
    Refused,
    Synchronised,
    TermRaised,
    Void,
)
from coordinator.strategy.base import PooledBatch, PoolView
from coordinator.strategy.catalogue import make_strategy
from tests.faults.sim.models import (
    BATCH_SIZE,
    CUT,
    ChainLayout,
    chain,
    from_numbers,
    is_unfit,
    item_id,
    total,
)
from toolkit.errors import RemoteProtocolError
from toolkit.wire import chunks, frames, payloads
from toolkit.wire.messages import Chunk, State, Weights
from toolkit.wire.weights import to_weights

PARK_AFTER = 8
Item = tuple[str, int, int]


@dataclass
class Tape:
    """What every agent sent and every coordinator told, written before it left."""

    sent: dict[tuple[Item, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    """(item, digest) -> terms under which it was sent."""
    confirmed: dict[object, dict[str, tuple[int, int]]] = field(default_factory=lambda: defaultdict(dict))
    """The disk that a coordinator takes up the run from -> device -> the watermark that it was told."""
    granted: dict[tuple[str, int], int] = field(default_factory=dict)
    """(device, round) -> first seq beyond all credit that was ever told."""
    problems: list[str] = field(default_factory=list)
    segments: dict[str, str] = field(default_factory=dict)
    """Digest of weights that were sent -> the chain they hold."""
    made_in: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Round -> what coordinators made of the segments it gathered."""
    _assemblers: dict[str, chunks.Assembler] = field(default_factory=dict)

    def agent_published(self, device: str, process: str, topic: str, payload: bytes) -> None:
        if not topic.endswith("/up"):
            return
        message, body = frames.decode(payload)
        if not isinstance(message, Chunk):
            return
        if message.index == 0:  # a rendering is handed over in one go
            self._assemblers[process] = chunks.Assembler()
        whole = self._assemblers[process].add(message, body)
        if whole is None:
            return
        try:
            header, content = payloads.decode_up(whole, device=device)
        except RemoteProtocolError as exc:
            self.problems.append(f"(e) {device} sent what is no payload: {exc.message}")
            return
        digest = header.sha256.hex()
        self.sent[(device, header.round, header.seq), digest].add(header.term)
        if isinstance(header, Weights):
            self.segments[digest] = from_numbers(to_weights(header, content, ChainLayout.lengths))
        if header.seq >= self.granted.get((device, header.round), 0):
            self.problems.append(f"(d) {device} sent {header.round}/{header.seq}, for which it has no credit")

    def coordinator_published(self, disk: object, topic: str, payload: bytes) -> None:
        if not topic.endswith("/down"):
            return
        message, _ = frames.decode(payload)
        if not isinstance(message, State):
            return
        device = topic.split("/")[-2]
        place = device, message.round
        self.granted[place] = max(self.granted.get(place, 0), message.limit)
        confirmed = self.confirmed[disk]
        told, before = (message.watermark_round, message.watermark_seq), confirmed.get(device, (0, 0))
        if told < before:
            self.problems.append(f"(b) the watermark of {device} fell from {before} to {told}")
        confirmed[device] = max(told, before)

    def begin_anew(self, disk: object) -> None:
        """An operator took the run back: what was confirmed before is void."""
        self.confirmed[disk].clear()

    def copy(self, disk: object, elsewhere: object) -> None:
        """Whoever takes up the copy of a disk keeps what was confirmed before it was made."""
        self.confirmed[elsewhere].update(self.confirmed[disk])

    def made(self, round_: int, segment: str) -> None:
        """A coordinator made one segment of those that a round gathered."""
        self.made_in[round_].add(segment)

    def taken(self, device: str, round_: int, segment: str) -> None:
        """A device goes on from what it was handed down."""
        if segment not in self.made_in[round_]:
            self.problems.append(f"(e) {device} took what no coordinator made of round {round_}")

    def check_taken_up(self, disk: object, state: CommittedState | None) -> None:
        """(b) what was confirmed is still there after a restart."""
        for device, told in self.confirmed[disk].items():
            kept = (0, 0) if state is None else state.watermark(device)
            if kept < told:
                self.problems.append(f"(b) {device} was told {told}; after the restart {kept} is kept")


def judge(
    entries: list[Entry],
    tape: Tape,
    *,
    theta: str,
    copies: dict[str, str],
    made: tuple[int, str],
    strategy: str,
    seed: int,
    unfit: Mapping[str, int],
    n_waiting: int,
) -> list[str]:
    """(a), (c), (d), (e) over a whole ledger, and P1: what is unfit is refused and nothing else is."""
    return [
        *tape.problems,
        *_once_and_in_order(entries),
        *_as_sent(entries, tape),
        *_conserved(entries),
        *_replayed(entries, theta=theta, copies=copies, strategy=strategy, seed=seed),
        *_made_one(entries, tape, made=made),
        *_refused(entries, unfit),
        *_parked(entries, n_waiting),
    ]


def _seqs(entry: Entry) -> range:
    if isinstance(entry, Void):
        return range(entry.first, entry.last + 1)
    is_item = isinstance(entry, Applied | Refused | Gathered)
    return range(entry.seq, entry.seq + 1) if is_item else range(0)  # type: ignore[union-attr]


def _once_and_in_order(entries: list[Entry]) -> list[str]:
    reached: dict[tuple[str, int], int] = defaultdict(int)
    problems = []
    for entry in entries:
        for seq in _seqs(entry):
            place = entry.device, entry.round  # type: ignore[union-attr]
            if seq != reached[place] + 1:
                problems.append(f"(a) {item_id(*place, seq)} follows {reached[place]}")
            reached[place] = seq
    return problems


def _as_sent(entries: list[Entry], tape: Tape) -> list[str]:
    term, problems = 0, []
    for entry in entries:
        if isinstance(entry, TermRaised):
            term = entry.term
        if isinstance(entry, Applied | Refused | Gathered):
            item = entry.device, entry.round, entry.seq
            terms = tape.sent.get((item, entry.digest), set())
            if not terms:
                problems.append(f"(e) {item_id(*item)} was applied as {entry.device} never sent it")
            elif not any(sent <= term for sent in terms):
                problems.append(f"(e) {item_id(*item)} was applied before it was sent")
            elif isinstance(entry, Applied) and not entry.evaluated and term not in terms:
                problems.append(f"(e) {item_id(*item)} was applied under term {term}, sent under {terms}")
    return problems


def _conserved(entries: list[Entry]) -> list[str]:
    owed: dict[str, tuple[int, ...]] = {}
    count: dict[str, int] = defaultdict(int)
    open_round, problems = 0, []
    for entry in entries:
        if isinstance(entry, Opened):
            if open_round:
                problems.append(f"(d) round {entry.round} opens while {open_round} is open")
            owed = {device: (*item, int(entry.gathers)) for device, item in entry.owed.items()}
            open_round = entry.round
            count.clear()
        elif isinstance(entry, Closed):
            for device, item in owed.items():
                if count[device] != sum(item):
                    problems.append(f"(d) {device} owed {sum(item)} in round {entry.round}: {count[device]}")
            open_round = 0
        for _ in _seqs(entry):
            if entry.round != open_round:  # type: ignore[union-attr]
                problems.append(f"(d) {entry} stands outside its round")
            count[entry.device] += 1  # type: ignore[union-attr]
    return problems


def _replayed(
    entries: list[Entry], *, theta: str, copies: dict[str, str], strategy: str, seed: int
) -> list[str]:
    made, made_copies = chain("theta"), dict[str, str]()
    mode = make_strategy(strategy).mode
    pool: dict[tuple[str, int], str] = {}
    for entry in entries:
        match entry:
            case Applied(evaluated=False, device=device, round=round_, seq=seq, digest=digest):
                key = item_id(device, round_, seq)
                if mode == "copies":
                    made_copies[device] = chain(made_copies.get(device, made), key, digest)
                elif mode == "pooled":
                    pool[device, seq] = digest
                else:
                    made = chain(made, key, digest)
            case Aggregated(weights=weights):
                made = total(made_copies, weights) if weights else made
                made_copies = {}
            case Closed(round=round_) if mode == "pooled":
                made = _mixed(made, pool, round_=round_, strategy=strategy, seed=seed)
                pool = {}
    same = (made, made_copies) == (theta, copies)
    return [] if same else [f"(c) the ledger gives {made[:8]}, the weights are {theta[:8]}"]


def _made_one(entries: list[Entry], tape: Tape, *, made: tuple[int, str]) -> list[str]:
    """(c) for segments: what was made of them is the sum of what the ledger says was gathered."""
    gathered: dict[str, str] = {}
    latest = (0, "")
    for entry in entries:
        if isinstance(entry, Gathered):
            gathered[entry.device] = tape.segments[entry.digest]
        elif isinstance(entry, Synchronised):
            latest = entry.round, total(gathered, entry.weights)
            gathered = {}
    return [] if latest == made else [f"(c) the ledger gives segments of {latest}, there are {made}"]


def _refused(entries: list[Entry], unfit: Mapping[str, int]) -> list[str]:
    return [
        f"(P1) {entry}"
        for entry in entries
        if isinstance(entry, Applied | Refused)
        and isinstance(entry, Refused) != is_unfit(entry.seq, unfit.get(entry.device, 0))
    ]


def _parked(entries: list[Entry], n_waiting: int) -> list[str]:
    """(P1) a device is parked after so many refusals in a round, and not before: what is refused then was here already."""
    problems = []
    n_train: dict[str, int] = {}
    n_refused: dict[str, int] = defaultdict(int)
    ever: set[str] = set()
    for entry in entries:
        match entry:
            case Opened(owed=owed):
                n_train = {device: n for device, (n, _) in owed.items()}
                n_refused.clear()
            case Refused(device=device, seq=seq) if seq <= n_train[device]:
                n_refused[device] += 1
                if n_refused[device] >= PARK_AFTER:
                    ever.add(device)
                if n_refused[device] >= PARK_AFTER + n_waiting:
                    problems.append(f"(P1) {entry} comes after {n_refused[device] - 1} others in its round")
            case Void(device=device, reason="parked") if device not in ever:
                problems.append(f"(P1) {entry}, and nothing it is parked for")
    return problems


def _mixed(theta: str, pool: dict[tuple[str, int], str], *, round_: int, strategy: str, seed: int) -> str:
    batches = tuple(PooledBatch(device, seq, CUT, BATCH_SIZE) for device, seq in sorted(pool))
    if not batches:
        return theta
    steps = make_strategy(strategy).mixed_steps(PoolView(round_, seed, BATCH_SIZE, batches))
    for step, parts in enumerate(steps, start=1):
        mixed = [
            (pool[batches[index].device, batches[index].seq], int(row))
            for part in parts
            for index, row in zip(np.asarray(part.batches).tolist(), part.rows.tolist(), strict=True)
        ]
        theta = chain(theta, round_, step, mixed)
    return theta


def model_in(content: bytes) -> tuple[str, dict[str, str], tuple[int, str]]:
    theta, copies, round_, made = json.loads(content)
    return theta, copies, (round_, made)
