"""The loop over rounds: in order, without a gap, each batch once; closing voids what is owed."""

from collections.abc import Mapping

import numpy as np
import pytest

from coordinator.rounds.device_round import Delivery, Unfit
from coordinator.rounds.loop import PARK_AFTER, RoundLoop
from coordinator.rounds.windows import Windows
from coordinator.store.ledger import Aggregated, Applied, Closed, Opened, Refused, Void
from coordinator.strategy.base import RoundView, Strategy
from coordinator.strategy.sequential import Sequential
from tests.unit.test_checkpoints import JOB
from toolkit.errors import StrategyError
from toolkit.wire.payloads import Batch

LISTS = {"bee": (2, 1), "ant": (3, 2)}


class Notebook:
    """A trainer that only writes down what it is given; its loss is the seq, and every second sample is right."""

    resident = ()
    n_free_copies = 1

    def __init__(self):
        self.applied = []
        self.aggregated = []
        self.kept = {}

    def apply(self, device, batch, *, round_, seq):
        assert batch.kind == "train"
        self.applied.append((device, round_, seq, int(batch.y[0])))
        return float(seq)

    def aggregate(self, weights: Mapping[str, int]):
        self.aggregated.append(dict(weights))

    def end_round(self, _round):
        self.kept.clear()

    def hold_out(self, device, batch, *, seq):
        self.kept.setdefault(device, []).append((seq, batch))

    def held_out(self, device):
        return (batch for _, batch in self.kept.get(device, []))

    def n_correct(self, _device, batch):
        assert batch.kind == "eval"
        return {"server": len(batch.y) // 2}


class Copies(Strategy):
    name = "copies"
    mode = "copies"


def delivery(seq, *, kind="train", n=4):
    h = np.zeros((n, 1), np.float32)
    batch = Batch(kind, h, np.full(n, seq), exit_loss=0.5, exit_correct=1, segment_step=seq)
    return Delivery(batch, f"digest {seq}", n_bytes=100)


@pytest.fixture
def book():
    return []


@pytest.fixture
def trainer():
    return Notebook()


@pytest.fixture
def make_loop(book, trainer):
    def make(strategy=None, *, window=8, lists=LISTS, round_=0):
        loop = RoundLoop(
            strategy or Sequential(order="fixed"),
            trainer,
            record=book.append,
            jobs=dict.fromkeys(lists, JOB),
            lists=lists,
            windows=Windows(dict.fromkeys(lists, (1, 1)), budget_bytes=window * len(lists)),
            round_=round_,
        )
        loop.open(100.0)
        return loop

    return make


def put(loop, device, *seqs):
    n_train = loop.devices[device].n_train
    for seq in seqs:
        if loop.wants(device, round_=loop.round, seq=seq):
            loop.deliver(device, seq, delivery(seq, kind="train" if seq <= n_train else "eval"))


def train_all(loop):
    while loop.train_one() is not None:
        pass


def applied(book, device):
    return [
        (entry.seq, entry.evaluated)
        for entry in book
        if isinstance(entry, Applied) and entry.device == device
    ]


@pytest.mark.parametrize("order", [(1, 2, 3, 4, 5), (5, 4, 3, 2, 1), (4, 1, 5, 3, 2)])
def test_batches_enter_in_order_however_they_come(make_loop, book, trainer, order):
    loop = make_loop(lists={"ant": (3, 2)})
    for seq in order:
        put(loop, "ant", seq)
        train_all(loop)
    assert trainer.applied == [("ant", 1, seq, seq) for seq in (1, 2, 3)]
    assert loop.complete
    loop.close(0.0, "complete")  # only then held-out batches enter
    assert applied(book, "ant") == [(1, False), (2, False), (3, False), (4, True), (5, True)]


def test_a_gap_is_waited_for(make_loop, trainer):
    loop = make_loop()
    put(loop, "ant", 1, 3)
    train_all(loop)
    assert [seq for _, _, seq, _ in trainer.applied] == [1]
    put(loop, "ant", 2)
    train_all(loop)
    assert [seq for _, _, seq, _ in trainer.applied] == [1, 2, 3]


def test_each_batch_enters_once(make_loop, trainer):
    loop = make_loop()
    put(loop, "ant", 1)
    assert not loop.wants("ant", round_=1, seq=1)  # waiting here
    train_all(loop)
    assert not loop.wants("ant", round_=1, seq=1)  # entered
    put(loop, "ant", 1, 1, 2)
    train_all(loop)
    assert [seq for _, _, seq, _ in trainer.applied] == [1, 2]


def test_only_the_open_round_and_its_devices_are_wanted(make_loop):
    loop = make_loop(round_=4)
    assert loop.round == 5
    assert loop.wants("ant", round_=5, seq=1)
    assert not loop.wants("ant", round_=4, seq=1)
    assert not loop.wants("ant", round_=6, seq=1)
    assert not loop.wants("stranger", round_=5, seq=1)
    assert not loop.wants("ant", round_=5, seq=6)


def test_the_window_moves_with_the_cursor_and_ends_with_the_list(make_loop):
    loop = make_loop(window=2)
    assert loop.limit("ant") == 3
    assert not loop.wants("ant", round_=1, seq=3)
    put(loop, "ant", 1, 2)
    assert loop.limit("ant") == 3  # nothing was taken up yet
    train_all(loop)
    loop.grant()
    assert loop.limit("ant") == 5
    put(loop, "ant", 3, 4)
    train_all(loop)
    loop.grant()
    assert loop.limit("ant") == 6
    put(loop, "ant", 5)
    assert loop.limit("ant") == 6


def test_held_out_batches_are_never_trained_on(make_loop, trainer):
    loop = make_loop()
    put(loop, "ant", 1, 2, 3, 4, 5)
    put(loop, "bee", 1, 2, 3)
    train_all(loop)
    assert loop.complete
    assert [(device, seq) for device, _, seq, _ in trainer.applied] == [
        ("ant", 1),
        ("ant", 2),
        ("ant", 3),
        ("bee", 1),
        ("bee", 2),
    ]


def test_a_complete_round_is_reported(make_loop, book):
    loop = make_loop()
    put(loop, "ant", 1, 2, 3, 4, 5)
    put(loop, "bee", 1, 2, 3)
    train_all(loop)
    report = loop.close(107.5, "complete")
    assert (report.round, report.seconds, report.reason) == (1, 7.5, "complete")
    ant, bee = report.devices
    assert (ant.device, ant.n_steps, ant.n_void, ant.n_bytes, ant.n_eval) == ("ant", 3, 0, 500, 8)
    assert (ant.exit_loss, ant.server_loss) == (0.5, 2.0)
    assert (ant.exit_accuracy, ant.server_accuracy) == (2 / 8, 4 / 8)
    assert (bee.n_steps, bee.server_loss) == (2, 1.5)
    assert book[0] == Opened(1, {"ant": (3, 2), "bee": (2, 1)})
    assert book[-1] == Closed(1, "complete")
    assert not [entry for entry in book if isinstance(entry, Void)]


def test_closing_voids_what_is_owed_and_nothing_of_it_is_applied_later(make_loop, book, trainer):
    loop = make_loop()
    put(loop, "ant", 1, 3)
    train_all(loop)
    loop.stop_waiting("deadline")
    assert loop.complete
    assert not loop.wants("ant", round_=1, seq=2)
    report = loop.close(200.0, "deadline")
    assert [entry for entry in book if isinstance(entry, Void)] == [
        Void("ant", 1, 2, 5, "deadline"),
        Void("bee", 1, 1, 3, "deadline"),
    ]
    assert [device.n_void for device in report.devices] == [4, 3]
    assert report.devices[1].server_accuracy is None
    loop.open(200.0)
    assert not loop.wants("ant", round_=1, seq=2)
    put(loop, "ant", 1)
    train_all(loop)
    assert [(round_, seq) for _, round_, seq, _ in trainer.applied] == [(1, 1), (2, 1)]


def test_what_came_before_the_deadline_is_still_trained_on(make_loop, trainer):
    loop = make_loop()
    put(loop, "bee", 1, 2)  # ant's turn is first, and it sends nothing
    train_all(loop)
    assert trainer.applied == []
    loop.stop_waiting("deadline")
    train_all(loop)
    assert [(device, seq) for device, _, seq, _ in trainer.applied] == [("bee", 1), ("bee", 2)]


def test_an_excused_device_is_not_waited_for_and_one_that_returns_goes_on(make_loop, trainer):
    loop = make_loop()
    put(loop, "ant", 1)
    put(loop, "bee", 1, 2, 3)
    train_all(loop)
    loop.excuse("ant", "offline")
    train_all(loop)
    assert loop.complete
    assert not loop.wants("ant", round_=1, seq=2)
    loop.welcome_back("ant")
    assert not loop.complete
    put(loop, "ant", 2, 3, 4, 5)
    train_all(loop)
    assert loop.complete
    assert [seq for device, _, seq, _ in trainer.applied if device == "ant"] == [1, 2, 3]


def test_who_returns_after_the_deadline_waits_for_the_next_round(make_loop):
    loop = make_loop()
    loop.stop_waiting("deadline")
    loop.welcome_back("ant")
    assert not loop.wants("ant", round_=1, seq=1)
    loop.close(300.0, "deadline")
    loop.open(300.0)
    assert loop.wants("ant", round_=2, seq=1)


def test_copies_are_made_one_at_the_close_by_those_that_trained(make_loop, trainer, book):
    loop = make_loop(Copies())
    put(loop, "ant", 1)
    train_all(loop)
    loop.excuse("bee", "offline")
    loop.stop_waiting("deadline")
    loop.close(0.0, "deadline")
    assert trainer.aggregated == [{"ant": 1}]
    assert Aggregated(1, {"ant": 1}) in book
    assert book.index(Aggregated(1, {"ant": 1})) < book.index(Closed(1, "deadline"))


def test_a_strategy_that_names_a_device_without_a_batch_is_stopped(make_loop):
    class Wrong(Strategy):
        name = "wrong"

        def next_device(self, view: RoundView) -> str | None:
            return view.devices[0].device

    with pytest.raises(StrategyError, match="chose 'ant', which has no batch here"):
        make_loop(Wrong()).train_one()


def unfit(seq):
    return Unfit(f"digest {seq}", "holds NaN", n_bytes=10)


def test_an_unfit_batch_is_entered_with_its_reason_and_trains_nothing(make_loop, book, trainer):
    loop = make_loop(lists={"ant": (3, 1)})
    loop.deliver("ant", 2, unfit(2))
    put(loop, "ant", 1, 3)
    loop.deliver("ant", 4, unfit(4))
    train_all(loop)
    assert loop.complete
    (report,) = loop.close(101.0, "complete").devices
    assert [seq for _, _, seq, _ in trainer.applied] == [1, 3]
    entered = [(type(e).__name__, e.seq) for e in book if isinstance(e, Applied | Refused)]
    assert entered == [("Applied", 1), ("Refused", 2), ("Applied", 3), ("Refused", 4)]
    assert [e.reason for e in book if isinstance(e, Refused)] == ["holds NaN", "holds NaN"]
    assert (report.n_steps, report.n_refused, report.n_void) == (2, 2, 0)


def test_a_device_of_many_unfit_batches_is_parked_until_another_process_speaks(make_loop, book):
    loop = make_loop(lists={"ant": (PARK_AFTER + 2, 0), "bee": (1, 0)}, window=PARK_AFTER + 2)
    for seq in range(1, PARK_AFTER + 1):
        loop.deliver("ant", seq, unfit(seq))
    put(loop, "bee", 1)
    train_all(loop)
    assert loop.complete
    loop.welcome_back("ant")
    assert not loop.wants("ant", round_=1, seq=PARK_AFTER + 1)
    loop.close(101.0, "complete")
    assert Void("ant", 1, PARK_AFTER + 1, PARK_AFTER + 2, "parked") in book
    loop.open(102.0)
    assert loop.devices["ant"].excused == "parked"
    loop.forgive("ant")
    loop.close(103.0, "complete")
    loop.open(104.0)
    assert loop.wants("ant", round_=3, seq=1)


def test_a_device_that_misses_its_turn_comes_last_once(make_loop, trainer):
    loop = make_loop(lists={"ant": (2, 0), "bee": (2, 0), "cat": (1, 0)})
    loop._turn_s = 10.0
    put(loop, "bee", 1, 2)
    train_all(loop)
    assert loop.pass_turn(100.0) is None
    assert loop.pass_turn(109.0) is None
    assert trainer.applied == []
    assert loop.pass_turn(110.0) == "ant"
    train_all(loop)
    assert [device for device, *_ in trainer.applied] == ["bee", "bee"]
    put(loop, "ant", 1, 2)
    assert loop.pass_turn(111.0) is None
    assert loop.pass_turn(121.0) == "cat"  # both came too late: in their own order from here on
    train_all(loop)
    assert [device for device, *_ in trainer.applied[2:]] == ["ant", "ant"]
    assert loop.pass_turn(200.0) is None  # once


def test_a_device_whose_data_changed_owes_another_list_from_the_next_round_on(make_loop, book):
    loop = make_loop(lists={"ant": (3, 0), "bee": (1, 0)})
    put(loop, "ant", 1)
    put(loop, "bee", 1)
    train_all(loop)
    loop.relist("ant", (5, 1))
    train_all(loop)
    assert (loop.limit("ant"), loop.complete) == (2, True)
    loop.close(101.0, "complete")
    assert Void("ant", 1, 2, 3, "data_changed") in book
    loop.open(102.0)
    assert (loop.devices["ant"].n_train, loop.devices["ant"].n_eval, loop.devices["ant"].excused) == (
        5,
        1,
        "",
    )


def test_a_round_goes_on_where_it_was_committed_and_its_deadline_with_it(make_loop):
    loop = make_loop(lists={"ant": (3, 1)})
    put(loop, "ant", 1, 2)
    train_all(loop)
    committed = loop.as_committed(130.0)
    assert (committed.spent_s, committed.devices["ant"].next) == (30.0, 3)
    again = make_loop(lists={"ant": (3, 1)})
    again.reopen(1000.0, committed)
    assert (again.round, again.opened_at, again.devices["ant"].next) == (1, 970.0, 3)
    put(again, "ant", 3, 4)
    train_all(again)
    (report,) = again.close(1001.0, "complete").devices
    assert (report.n_steps, report.exit_loss) == (3, 0.5)


def test_held_out_batches_are_asked_for_again_after_a_commit_within_the_round(make_loop):
    loop = make_loop(lists={"ant": (1, 2), "bee": (2, 0)})
    put(loop, "ant", 1, 2, 3)
    train_all(loop)
    assert loop.devices["ant"].next == 4
    assert loop.as_committed(101.0).devices["ant"].next == 2


def test_a_device_excused_for_good_stays_so_through_a_commit_within_the_round(make_loop):
    """Its list is of other data: asked for it, it would send what nobody owes."""
    loop = make_loop(lists={"ant": (3, 0), "bee": (2, 0)})
    loop.relist("ant", (1, 1))
    loop.excuse("bee", "offline")
    again = make_loop(lists={"ant": (1, 1), "bee": (2, 0)})
    again.reopen(200.0, loop.as_committed(101.0))
    assert (again.devices["ant"].excused, again.limit("ant")) == ("data_changed", 1)
    assert again.devices["bee"].excused == ""
