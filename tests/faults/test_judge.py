"""The judge passes a run without faults, and finds each way in which ledger, tape and weights can disagree."""

import shutil

import msgspec
import pytest

from coordinator.store.checkpoints import Checkpoints
from coordinator.store.ledger import Applied, Ledger, Void, read_ledger
from device_agent.tape import Tape
from tests.faults.judge import judge
from tests.numerics.fleet import Fleet, Member, local_data, patterns
from toolkit.config import Run


@pytest.fixture(scope="module", params=["sequential", "averaging"])
def played(request, tmp_path_factory):
    """A run of two devices, and its tape."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = Run(
        model="mlp",
        model_options={"width": 8},
        rounds=2,
        devices=2,
        batch_size=8,
        exit_head="pooled",
        classes=["a", "b", "c"],
        strategy=request.param,
    )
    members = [
        Member(name, cut, local_data(*patterns(30, (5,), seed=n), classes="abc"))
        for n, (name, cut) in enumerate({"ant": "hidden1", "bee": "hidden2"}.items())
    ]
    with Fleet(folder, members, settings) as fleet:
        fleet.start()
        for member in members:
            member.agent._sender._tape = Tape(folder / "tape").keep
        fleet.run_until(lambda: fleet.coordinator.over)
    return folder


@pytest.fixture
def copied(played, tmp_path):
    """A copy to break."""
    shutil.copytree(played, tmp_path / "played")
    return tmp_path / "played"


def rewrite(folder, change):
    """Write another ledger, in a chain that is right."""
    path = folder / "run/ledger.jsonl"
    entries = change(read_ledger(path))
    path.unlink()
    with Ledger(path) as ledger:
        for entry in entries:
            ledger.append(entry)


def applied(entries):
    return [n for n, entry in enumerate(entries) if isinstance(entry, Applied) and not entry.evaluated]


def swapped(entries):
    """In the first round the other device comes first; each device's own order stays."""
    places = [n for n, entry in enumerate(entries) if isinstance(entry, Applied) and entry.round == 1]
    for place, entry in zip(
        places, sorted((entries[n] for n in places), key=lambda e: e.device, reverse=True), strict=True
    ):
        entries[place] = entry
    return entries


def doubled(entries):
    at = applied(entries)[1]
    return [*entries[: at + 1], *entries[at:-1]]


def left_out(entries):
    del entries[applied(entries)[0]]
    return entries


def forged(entries):
    at = applied(entries)[0]
    entries[at] = msgspec.structs.replace(entries[at], digest="00" * 32)
    return entries


def void_once_more(entries):
    at = applied(entries)[-1]
    entry = entries[at]
    return [
        *entries[: at + 1],
        Void(entry.device, entry.round, entry.seq, entry.seq, "x"),
        *entries[at + 1 :],
    ]


def test_a_run_passes(played):
    judged = judge(played / "run", played / "tape")
    assert (judged.n_rounds, judged.n_refused, judged.n_void) == (2, 0, 0)
    assert judged.n_applied == judged.n_sent > 10


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (doubled, "belongs"),
        (left_out, "belongs"),
        (forged, "never sent"),
        (void_once_more, "belongs"),
    ],
)
def test_a_ledger_that_does_not_add_up_is_found(copied, change, found):
    rewrite(copied, change)
    with pytest.raises(AssertionError, match=found):
        judge(copied / "run", copied / "tape")


def test_another_order_gives_other_weights(copied):
    rewrite(copied, swapped)
    if Checkpoints(copied / "run/checkpoints").kept()[-1].state().strategy == "sequential":
        with pytest.raises(AssertionError, match="not equal"):
            judge(copied / "run", copied / "tape")
    else:  # copies do not meet within a round
        judge(copied / "run", copied / "tape")


def test_a_rendering_that_nobody_kept_is_found(copied):
    next(copied.joinpath("tape").iterdir()).unlink()
    with pytest.raises(AssertionError, match="never sent"):
        judge(copied / "run", copied / "tape")
