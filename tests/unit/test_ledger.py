"""The ledger: a chain that shows every change, cut back to what was committed."""

import errno
import os

import pytest

from coordinator.store.ledger import (
    Aggregated,
    Applied,
    Closed,
    Issued,
    Ledger,
    Opened,
    Planned,
    TermRaised,
    Void,
    read_ledger,
)
from toolkit.errors import CheckpointError, MachineError

ENTRIES = [
    TermRaised(1),
    Issued("ant", 1),
    Planned(1, {"ant": "stem"}),
    Opened(1, {"ant": (2, 1)}),
    Applied("ant", 1, 1, "ab", 0),
    Applied("ant", 1, 3, "cd", 1, evaluated=True),
    Void("ant", 1, 2, 2, "deadline"),
    Aggregated(1, {"ant": 1}),
    Closed(1, "deadline"),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def write(path, entries, *, length=0):
    with Ledger(path, length=length) as ledger:
        for entry in entries:
            ledger.append(entry)
        return ledger.length, ledger.head


def test_every_kind_of_entry_comes_back(path):
    assert write(path, ENTRIES)[0] == len(ENTRIES)
    assert read_ledger(path) == ENTRIES


def test_the_chain_goes_on_where_it_stood(path, tmp_path):
    write(path, ENTRIES[:4])
    there = write(path, ENTRIES[4:], length=4)
    assert there == write(tmp_path / "at once", ENTRIES)
    assert path.read_bytes() == (tmp_path / "at once").read_bytes()


def test_rows_that_were_never_committed_are_cut_off(path):
    _, head = write(path, ENTRIES[:4])
    write(path, ENTRIES[4:], length=4)
    with Ledger(path, length=4) as ledger:
        assert (ledger.length, ledger.head) == (4, head)
    assert read_ledger(path) == ENTRIES[:4]


def test_a_torn_row_beyond_the_committed_ones_does_not_matter(path):
    write(path, ENTRIES[:4])
    with path.open("ab") as file:
        file.write(b'{"hash":"12')
    assert write(path, ENTRIES[4:], length=4)[0] == len(ENTRIES)
    assert read_ledger(path) == ENTRIES


def test_nothing_committed_starts_anew(path):
    write(path, ENTRIES)
    write(path, ENTRIES[:1])
    assert read_ledger(path) == ENTRIES[:1]


def test_fewer_rows_than_committed_is_damage(path):
    write(path, ENTRIES[:4])
    with pytest.raises(CheckpointError, match=r"has 4 rows; its checkpoint names 5"):
        Ledger(path, length=5)
    with pytest.raises(CheckpointError, match="0 rows"):
        Ledger(path.with_name("none"), length=5)


def test_any_flipped_byte_is_found_with_its_row(path):
    write(path, ENTRIES)
    whole = path.read_bytes()
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        row = sum(end < position for end in ends) + 1
        with pytest.raises(CheckpointError, match=f"row {row}: the ledger's chain is broken"):
            read_ledger(path)


@pytest.mark.parametrize("change", ["swapped", "doubled", "left out"])
def test_rows_out_of_order_are_found(path, change):
    write(path, ENTRIES)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1:3] = {"swapped": [lines[2], lines[1]], "doubled": [lines[1]] * 2, "left out": []}[change]
    path.write_bytes(b"".join(lines))
    with pytest.raises(CheckpointError, match="chain is broken"):
        read_ledger(path)


def test_a_full_disk_is_told_with_path_and_fix(path, monkeypatch):
    def refuse(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    ledger = Ledger(path)
    ledger.append(ENTRIES[0])
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(MachineError, match=r"ledger\.jsonl can't be written: No space left") as caught:
        ledger.sync()
    assert caught.value.exit_status == 6
    assert "Free some space" in caught.value.hint
    with pytest.raises(MachineError):
        ledger.close()
