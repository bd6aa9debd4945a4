"""How long a link waits before it tries again."""

import pytest

from toolkit.link.mqtt import MAX_BACKOFF_S, SHORT_LIVED_S, backoff_bound_s


@pytest.mark.parametrize("was_accepted", [True, False])
def test_it_doubles_from_half_a_second(was_accepted):
    bounds = [backoff_bound_s(n, MAX_BACKOFF_S, was_accepted=was_accepted) for n in range(5)]
    assert bounds == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_a_broker_that_is_not_there_is_asked_ever_more_seldom():
    assert backoff_bound_s(1_000_000, MAX_BACKOFF_S, was_accepted=False) == MAX_BACKOFF_S


def test_one_that_was_there_is_asked_again_within_seconds_however_often_it_restarted():
    bound_s = backoff_bound_s(1_000_000, MAX_BACKOFF_S, was_accepted=True)
    assert SHORT_LIVED_S <= bound_s <= MAX_BACKOFF_S / 3


def test_who_wants_it_shorter_gets_it_shorter():
    assert backoff_bound_s(9, 1.0, was_accepted=True) == backoff_bound_s(9, 1.0, was_accepted=False) == 1.0
