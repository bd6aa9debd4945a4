"""How a program stands with its broker: until when it hears, and for how long it did not."""

import pytest

from toolkit.errors import BrokerLostError, BrokerUnreachableError
from toolkit.link.contact import Contact

LOST = BrokerLostError("The connection was lost.")
NOBODY = BrokerUnreachableError("Nobody answers.")


class Time:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def contact(time):
    return Contact(time, who="this program", connect_s=5.0)


def test_before_its_first_connection_time_goes_by(contact, time):
    time.now += 3.0
    assert contact.heard_until() == 103.0
    assert contact.made() == 0.0


def test_time_stands_still_while_it_is_cut_off(contact, time):
    contact.made()
    time.now += 10.0
    assert contact.heard_until() == 110.0
    contact.lost(LOST)
    for _ in range(3):  # attempts that fail change nothing
        time.now += 20.0
        contact.lost(NOBODY)
        assert contact.heard_until() == 110.0
    assert contact.made() == 60.0
    assert contact.heard_until() == 170.0
    time.now += 1.0
    contact.lost(LOST)
    time.now += 2.0
    assert contact.made() == 2.0


def test_the_first_connection_is_waited_for_only_so_long(contact, time):
    assert contact.lost(NOBODY) == "Nobody answers. Trying again for 5 s."
    assert contact.lost(NOBODY) == ""
    time.now += 5.0
    with pytest.raises(BrokerUnreachableError):
        contact.lost(NOBODY)
