"""What a device may say that is of no use, and how often a flood is told of."""

from coordinator.fleet.allowance import FILLS_IN_S, MESSAGE_COST_BYTES, SAID_EVERY_S, Allowance, Seldom


def test_a_flood_is_dropped_once_the_allowance_is_spent_and_fills_with_time():
    allowance = Allowance(10 * MESSAGE_COST_BYTES, 10 * MESSAGE_COST_BYTES, 0.0)
    assert [allowance.take(1, 0.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert allowance.n_dropped == 2
    assert [allowance.take(1, FILLS_IN_S / 2) for _ in range(6)] == [True] * 5 + [False]
    assert [allowance.take(1, 100 * FILLS_IN_S) for _ in range(11)] == [True] * 10 + [False]


def test_what_is_taken_up_costs_nothing():
    allowance = Allowance(100_000, 100_000, 0.0)
    for _ in range(1000):
        assert allowance.take(60_000, 0.0)
        allowance.give_back(60_000)
    assert allowance.left_bytes == 100_000


def test_a_message_longer_than_the_allowance_is_dropped():
    assert not Allowance(100_000, 100_000, 0.0).take(100_001, 0.0)


def test_a_flood_is_told_of_now_and_then_with_its_number():
    seldom = Seldom()
    assert [seldom.worth_saying("a", 0.0) for _ in range(3)] == [0, None, None]
    assert seldom.worth_saying("b", 0.0) == 0
    assert seldom.worth_saying("a", SAID_EVERY_S) == 2
    assert seldom.worth_saying("a", 2 * SAID_EVERY_S) == 0
