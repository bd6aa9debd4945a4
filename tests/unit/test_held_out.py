"""Held-out batches wait for the round's end on disk: however many there are, they take no memory."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from coordinator.model.held_out import HeldOut
from coordinator.rounds.device_round import Delivery
from coordinator.rounds.loop import RoundLoop
from coordinator.rounds.windows import Windows
from coordinator.strategy.sequential import Sequential
from tests.unit.test_checkpoints import JOB
from tests.unit.test_rounds import Notebook
from toolkit.errors import MachineError
from toolkit.wire.payloads import Batch

MB = 1 << 20
DEVICES = ("ant", "bee", "cat", "dog")
N_EVAL = 16


def batch(seq, kind="eval"):
    return Batch(kind, np.full((4, MB // 16), seq, np.float32), np.arange(4), 0.5, 1, seq)


class Spilling(Notebook):
    """Keeps held-out batches as the server's model does, and notes what is evaluated."""

    def __init__(self, folder):
        super().__init__()
        self._held_out = HeldOut(folder)
        self.evaluated = []

    def hold_out(self, device, batch, *, seq):
        self._held_out.add(device, seq, batch)

    def held_out(self, device):
        return self._held_out.of(device)

    def end_round(self, _round):
        self._held_out.clear()

    def n_correct(self, device, batch):
        self.evaluated.append((device, int(batch.h[0, 0]), batch.h.nbytes))
        return super().n_correct(device, batch)


def test_no_number_of_held_out_batches_takes_memory(tmp_path):
    trainer, book = Spilling(tmp_path), []
    loop = RoundLoop(
        Sequential(),
        trainer,
        record=book.append,
        jobs=dict.fromkeys(DEVICES, JOB),
        lists=dict.fromkeys(DEVICES, (1, N_EVAL)),
        windows=Windows(dict.fromkeys(DEVICES, (MB, 0)), budget_bytes=8 * MB),
    )
    tracemalloc.start()
    try:
        loop.open(0.0)
        for seq in range(1, N_EVAL + 2):
            for device in DEVICES:
                kind = "train" if seq == 1 else "eval"
                assert loop.wants(device, round_=1, seq=seq)
                loop.deliver(device, seq, Delivery(batch(seq, kind), f"digest {seq}", n_bytes=MB))
            while loop.train_one() is not None:
                pass
            loop.grant()
        assert loop.complete
        report = loop.close(1.0, "complete")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(DEVICES) * N_EVAL * MB > 6 * 8 * MB
    assert peak < 8 * MB
    assert trainer.evaluated == [(device, seq, MB) for device in DEVICES for seq in range(2, N_EVAL + 2)]
    assert [(own.n_eval, own.exit_accuracy, own.server_accuracy) for own in report.devices] == [
        (4 * N_EVAL, 0.25, 0.5)
    ] * len(DEVICES)
    assert sum(getattr(entry, "evaluated", False) for entry in book) == len(DEVICES) * N_EVAL
    assert not list(tmp_path.iterdir())


def test_a_batch_comes_back_as_it_was(tmp_path):
    held = HeldOut(tmp_path / "scratch")
    given = [replace(batch(seq), shallow_correct=(seq, 2)) for seq in (3, 4)]
    for seq, own in enumerate(given, start=3):
        held.add("ant", seq, own)
    for own, got in zip(given, held.of("ant"), strict=True):
        assert (got.h == own.h).all()
        assert got.h.flags.writeable
        assert replace(got, h=own.h) == own
    assert list(held.of("bee")) == []


def test_a_disk_that_has_no_room_is_told(tmp_path):
    (tmp_path / "scratch").write_text("in the way")
    with pytest.raises(MachineError):
        HeldOut(tmp_path / "scratch").add("ant", 1, batch(1))
