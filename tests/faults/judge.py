"""Holds a run that went through faults to what is left of it: ledger, checkpoint, and what devices say they sent.

Imports of the coordinator nothing but the reading of its files; the weights are computed again by the oracle's steps.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

from coordinator.store.checkpoints import Checkpoints, CommittedState
from coordinator.store.ledger import (
    Aggregated,
    Applied,
    Closed,
    Entry,
    Gathered,
    Opened,
    Refused,
    Void,
    read_ledger,
)
from tests.numerics import oracle
from tests.numerics.same import assert_same
from toolkit.nn.seeds import derive_seed
from toolkit.nn.zoo import build_network
from toolkit.wire import payloads

ALONE_WITH_TORCH = threading.RLock()
"""Its generator and its number of threads are the process's, and rows are played side by side in one."""


@dataclass(frozen=True)
class Judged:
    """What stands in the ledger of a run that passed."""

    n_rounds: int
    n_applied: int
    n_refused: int
    n_void: int
    n_sent: int

    def __str__(self) -> str:
        return (
            f"{self.n_rounds} rounds: {self.n_applied} applied, {self.n_refused} refused, {self.n_void} void;"
            f" devices sent {self.n_sent} renderings"
        )


def judge(run: Path, tape: Path, *, momentum: str = "average") -> Judged:
    """Judge a run folder.

    Args:
        run: no coordinator holds it.
        tape: what its agents kept.
        momentum: the strategy's rule, where it averages.
    Returns: counts, for the report.
    Raises: AssertionError: says what does not hold.
    """
    newest = Checkpoints(run / "checkpoints").kept()[-1]
    state = newest.state()
    entries = read_ledger(run / "ledger.jsonl")[: state.ledger_length]
    sent = {path.name: path for path in tape.iterdir() if not path.name.startswith(".")}
    counts = _held_to_its_rounds(entries)
    assert counts[1], "nothing was applied"
    _held_to_what_was_sent(entries, sent)
    with ALONE_WITH_TORCH:
        replayed = _replayed(entries, state, sent, momentum=momentum)
    assert_same(newest.tensors(), replayed)
    return Judged(*counts, n_sent=len(sent))


def _held_to_its_rounds(entries: list[Entry]) -> tuple[int, int, int, int]:
    """(a) and (d): every seq of a closed round has one entry, in order, without a gap."""
    owed: dict[str, int] = {}
    following: dict[str, int] = {}
    is_open, n_rounds, n_applied, n_refused, n_void = 0, 0, 0, 0, 0
    for entry in entries:
        match entry:
            case Opened(round=number, owed=lists, gathers=gathers):
                assert not is_open, f"round {number} was opened in round {is_open}"
                is_open = number
                owed = {device: sum(lengths) + gathers for device, lengths in lists.items()}
                following = dict.fromkeys(owed, 1)
            case (
                Applied(device=device, round=number, seq=seq)
                | Gathered(device=device, round=number, seq=seq)
                | Refused(device=device, round=number, seq=seq)
            ):
                assert number == is_open, f"{entry} stands in round {is_open}"
                assert seq == following[device], f"{entry} stands where seq {following[device]} belongs"
                following[device] += 1
                n_applied += isinstance(entry, Applied)
                n_refused += isinstance(entry, Refused)
            case Void(device=device, round=number, first=first, last=last):
                assert number == is_open, f"{entry} stands in round {is_open}"
                assert first == following[device], f"{entry} stands where seq {following[device]} belongs"
                following[device] = last + 1
                n_void += last + 1 - first
            case Closed(round=number):
                assert number == is_open, f"{entry} stands in round {is_open}"
                short = {d: n for d, n in owed.items() if following[d] != n + 1}
                assert not short, f"round {number} closed and {short} has no entry for some seqs"
                is_open, n_rounds = 0, n_rounds + 1
    return n_rounds, n_applied, n_refused, n_void


def _held_to_what_was_sent(entries: list[Entry], sent: dict[str, Path]) -> None:
    """(e): each applied digest is one that this device kept of this batch."""
    for entry in entries:
        if isinstance(entry, Applied | Gathered):
            name = _name(entry)
            assert name in sent, f"{entry}: its device never sent that"


def _name(entry: Applied | Gathered) -> str:
    return f"{entry.digest}.{entry.device}.{entry.round}.{entry.seq}"


def _replayed(
    entries: list[Entry], state: CommittedState, sent: dict[str, Path], *, momentum: str
) -> dict[str, torch.Tensor]:
    """(c): initial weights, ledger and tape give the weights again."""
    job = state.common
    torch.set_num_threads(job.threads)  # bit for bit holds for one thread count
    network = build_network(job.model, seed=job.seed)
    suffixes = {device: oracle.split(network, own.cut)[1] for device, own in state.jobs.items()}
    shallowest = max(suffixes, key=lambda device: len(suffixes[device]))
    if state.strategy == "averaging":
        servers = {device: oracle.Learner(copy.deepcopy(suffixes[device])) for device in suffixes}
    else:
        servers = dict.fromkeys(suffixes, oracle.Learner(suffixes[shallowest]))
    for entry in entries:
        match entry:
            case Applied(evaluated=False, device=device, round=number, seq=seq):
                header, body = payloads.decode(sent[_name(entry)].read_bytes(), device=device)
                batch = payloads.to_batch(
                    header,
                    body,
                    activation_shape=state.activation_shapes[device],
                    n_classes=len(job.classes),
                    batch_size=job.batch_size,
                )
                rows = servers[device].rows[-len(suffixes[device]) :]
                seed = derive_seed(job.seed, "server", number, device, seq)
                lr = oracle.learning_rate(job, number)
                h, y = torch.from_numpy(batch.h), torch.from_numpy(batch.y)
                oracle.step(servers[device], rows, h, y, lr=lr, job=job, seed=seed)
            case Aggregated(weights=weights) if weights:
                oracle.average(servers, weights, momentum)
            case _:
                pass
    return servers[shallowest].tensors()
