"""The lines that are kept: the newest of each source, in one order, whatever a device floods."""

from coordinator.watching.log_ring import COORDINATOR, KEPT_LINES, MAX_SOURCES, LogRing


def texts(entries):
    return [entry.text for entry in entries]


def test_lines_of_all_sources_come_in_the_order_they_came():
    ring = LogRing(lambda: 5.0)
    for number in range(10):
        ring.add(str(number), device=("ant", "bee", COORDINATOR)[number % 3])
    assert texts(ring.since(0)) == [str(n) for n in range(10)]
    assert texts(ring.since(7)) == ["7", "8", "9"]
    assert texts(ring.since(0, "bee")) == ["1", "4", "7"]
    assert texts(ring.newest(2)) == ["8", "9"]
    assert texts(ring.newest(2, COORDINATOR)) == ["5", "8"]
    assert ring.newest(0) == ring.since(10) == ring.since(0, "cat") == []
    assert ring.last == 10


def test_a_flood_pushes_out_nobody_else_s_lines():
    ring = LogRing(lambda: 5.0)
    ring.add("keep me", "warning", device="ant")
    for number in range(10 * KEPT_LINES):
        ring.add(str(number), device="bee")
    assert texts(ring.since(0, "ant")) == ["keep me"]
    assert len(ring.since(0)) == KEPT_LINES + 1


def test_sources_are_bounded_and_the_longest_silent_one_goes():
    ring = LogRing(lambda: 5.0)
    for number in range(MAX_SOURCES):
        ring.add("x", device=f"d{number}")
    ring.add("again", device="d0")
    ring.add("new", device="another")
    assert texts(ring.since(0, "d1")) == []
    assert texts(ring.since(0, "d0")) == ["x", "again"]
    assert len(ring.since(0)) == MAX_SOURCES + 1
